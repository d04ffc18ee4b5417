//! Revokes sessions, tokens, subjects and tenants. First the sessions that the batch may end are
//! locked. Then each revocation is decided on the state that the revocations before it in the batch
//! have left.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    ops::Range,
};

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl,
    sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    super::{
        batch::BatchWrite,
        connection::{fault::Fault, pool::PooledConnection},
        feed::{cut_offs, entries},
        rows::{instant, revoked_key, uuid},
        schema::blacklist,
        sql::statement,
    },
    lock,
};
use crate::{
    domain::{
        cut_off::{CutOff, CutOffKey, Scope},
        ids::SessionId,
        revocation::{BlacklistEntry, Coverage, Revocation, RevocationTarget, Revoked},
        revoke::{
            MOST_COUNTED, MOST_ENDED_AT_ONCE, OldestLive, RevocationDecision, RevocationState,
            Survey, UncoveredCount,
        },
        session::Session,
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::{RevocationOutcome, StoreError},
};

#[async_trait]
impl BatchWrite for Revocation {
    type Outcome = RevocationOutcome;

    async fn apply(
        connection: &mut PooledConnection<'_>,
        revocations: &[Self],
    ) -> Result<Vec<Result<RevocationOutcome, StoreError>>, Fault> {
        connection.begin().await?;
        let of_subjects = of_subjects(connection, revocations).await?;
        let mut surveys = survey_subjects(connection, revocations).await?;
        // The sessions are counted before anything is locked, because it takes a while to count
        // those of a large tenant.
        survey_others(connection, revocations, &mut surveys).await?;
        let mut ids: Vec<SessionId> =
            of_subjects.iter().flat_map(|live| &live.ids).copied().collect();
        ids.extend(revocations.iter().filter_map(|revocation| match &revocation.target {
            RevocationTarget::Session(id) => Some(*id),
            RevocationTarget::Token { session_id, .. } => Some(*session_id),
            RevocationTarget::Subject { .. }
            | RevocationTarget::Subjects { .. }
            | RevocationTarget::Tenant(_)
            | RevocationTarget::Sessions { .. }
            | RevocationTarget::Lost(_) => None,
        }));
        ids.sort_unstable();
        ids.dedup();

        let current = lock::lock_sessions(connection, &ids).await?;
        let present = present(connection, revocations.iter().flat_map(replaceable)).await?;
        for (revocation, live) in revocations.iter().zip(&of_subjects) {
            if live.has_more {
                count_uncovered(connection, revocation, &mut surveys).await?;
            }
        }
        let mut batch =
            Batch { current, present, surveys, changed: HashMap::new(), entries: vec![] };
        let decided: Vec<_> = revocations
            .iter()
            .zip(&of_subjects)
            .map(|(revocation, live)| batch.decide(revocation, live))
            .collect();
        let changed: Vec<_> = batch.changed.into_values().collect();
        lock::save_sessions(connection, &changed).await?;
        let positions = entries::insert_entries(connection, &batch.entries).await?;
        // A revocation that adds no entry may have found an entry that has not reached every index
        // yet. So it waits for all entries up to the head of the feed, including those of this
        // batch. The newest row of the blacklist does not show where the head is, because that row
        // may have been deleted.
        let head = match positions.iter().copied().max_by_key(|position| position.seq) {
            Some(last) => last,
            None => entries::feed_head(connection).await?,
        };
        connection.commit().await?;
        let outcomes = decided.into_iter().map(|(decision, entries)| {
            let own = positions.get(entries).unwrap_or_default();
            let position = own.iter().copied().max_by_key(|position| position.seq);
            Ok(RevocationOutcome::new(&decision, position.unwrap_or(head)))
        });
        Ok(outcomes.collect())
    }
}

/// The oldest live sessions of a subject, the oldest first: at most as many as one transaction may
/// end.
#[derive(Default)]
struct LiveIds {
    ids: Vec<SessionId>,
    has_more: bool,
}

/// Returns, for each revocation of a subject, the live sessions of that subject.
async fn of_subjects(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
) -> Result<Vec<LiveIds>, Fault> {
    let mut found: Vec<LiveIds> = revocations.iter().map(|_| LiveIds::default()).collect();
    let (mut ordinals, mut tenants, mut subjects, mut instants) = (vec![], vec![], vec![], vec![]);
    for (ordinal, revocation) in (0_i64..).zip(revocations) {
        if let RevocationTarget::Subject { tenant, subject, .. } = &revocation.target {
            ordinals.push(ordinal);
            tenants.push(&**tenant);
            subjects.push(&**subject);
            instants.push(instant(revocation.ended.at));
        }
    }
    if ordinals.is_empty() {
        return Ok(found);
    }
    let rows: Vec<(i64, Uuid)> = statement::<(BigInt, SqlUuid)>(
        "SELECT given.ordinal, s.id
        FROM unnest(?, ?, ?, ?) AS given (ordinal, tenant, subject, instant)
        CROSS JOIN LATERAL (
            SELECT id
            FROM sessions
            WHERE tenant = given.tenant AND subject = given.subject AND NOT is_over
                AND ended_at IS NULL AND idle_expires_at > given.instant
            ORDER BY id
            LIMIT ?
        ) AS s
        ORDER BY given.ordinal, s.id",
    )
    .bind::<Array<BigInt>, _>(ordinals)
    .bind::<Array<Text>, _>(tenants)
    .bind::<Array<Text>, _>(subjects)
    .bind::<Array<Timestamptz>, _>(instants)
    .bind::<BigInt, _>(i64::try_from(MOST_ENDED_AT_ONCE).unwrap_or(i64::MAX) + 1)
    .load(&mut **connection)
    .await?;
    for (ordinal, id) in rows {
        let live = usize::try_from(ordinal).ok().and_then(|ordinal| found.get_mut(ordinal));
        match live {
            Some(live) if live.ids.len() < MOST_ENDED_AT_ONCE => {
                live.ids.push(SessionId::from_bytes(id.into_bytes()));
            }
            Some(live) => live.has_more = true,
            None => {}
        }
    }
    Ok(found)
}

/// The state of the sessions of scopes, by the keys of their blacklist entries.
type Surveys = HashMap<CutOffKey, Survey>;

/// Reads the state of the subjects that are to be revoked.
async fn survey_subjects(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
) -> Result<Surveys, Fault> {
    let keys = revocations.iter().flat_map(|revocation| match &revocation.target {
        RevocationTarget::Subject { .. } | RevocationTarget::Subjects { .. } => {
            revocation.target.cut_off_keys()
        }
        _ => vec![],
    });
    let mut surveys: Surveys = keys.map(|key| (key, Survey::default())).collect();
    if surveys.is_empty() {
        return Ok(surveys);
    }
    let keys: Vec<&CutOffKey> = surveys.keys().collect();
    let cut_offs = cut_offs::with_keys(connection, keys.iter().copied()).await?;
    let column = |of: fn(&Scope) -> Option<&str>| -> Vec<&str> {
        keys.iter().map(|key| of(key.scope()).unwrap_or_default()).collect()
    };
    let newest: Vec<Option<Uuid>> = statement::<Nullable<SqlUuid>>(
        "SELECT
            greatest(
                (
                    SELECT id FROM sessions AS s
                    WHERE s.tenant = given.tenant AND s.subject = given.subject AND NOT s.is_over
                    ORDER BY id DESC LIMIT 1
                ),
                (
                    SELECT id FROM sessions AS s
                    WHERE s.tenant = given.tenant AND s.subject = given.subject AND s.is_over
                    ORDER BY id DESC LIMIT 1
                )
            )
        FROM unnest(?, ?) WITH ORDINALITY AS given (tenant, subject, ordinal)
        ORDER BY given.ordinal",
    )
    .bind::<Array<Text>, _>(column(|scope| scope.tenant().map(|tenant| &**tenant)))
    .bind::<Array<Text>, _>(column(|scope| scope.subject().map(|subject| &**subject)))
    .load(&mut **connection)
    .await?;
    let found: Vec<(CutOffKey, Option<Uuid>)> = keys.into_iter().cloned().zip(newest).collect();
    for (key, newest) in found {
        let coverage = coverage(newest, cut_offs.get(&key));
        surveys.insert(key, Survey { coverage, uncovered: None });
    }
    Ok(surveys)
}

fn coverage(newest: Option<Uuid>, covered: Option<CutOff>) -> Coverage {
    Coverage { newest: newest.map(|id| SessionId::from_bytes(id.into_bytes())), covered }
}

/// Reads the state of the tenants and of the other scopes that are to be revoked.
async fn survey_others(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
    surveys: &mut Surveys,
) -> Result<(), Fault> {
    for revocation in revocations {
        let counts = match &revocation.target {
            RevocationTarget::Tenant(_) => true,
            RevocationTarget::Sessions { .. } => false,
            _ => continue,
        };
        for key in revocation.target.cut_off_keys() {
            let known = surveys.get(&key);
            if known.is_some_and(|known| known.uncovered.is_some() || !counts) {
                continue;
            }
            let cut_offs = cut_offs::with_keys(connection, [&key]).await?;
            let covered = cut_offs.get(&key);
            let uncovered = match key.scope().tenant() {
                Some(tenant) if counts => {
                    let at = revocation.ended.at;
                    Some(count_uncovered_of_tenant(connection, tenant, covered, at).await?)
                }
                _ => None,
            };
            let newest = newest(connection, key.scope().tenant()).await?;
            surveys.insert(key, Survey { coverage: coverage(newest, covered), uncovered });
        }
    }
    Ok(())
}

/// Counts the live sessions that no cut-off covers, for a subject that has more live sessions than
/// one transaction may end.
async fn count_uncovered(
    connection: &mut PooledConnection<'_>,
    revocation: &Revocation,
    surveys: &mut Surveys,
) -> Result<(), Fault> {
    let RevocationTarget::Subject { tenant, subject, except } = &revocation.target else {
        return Ok(());
    };
    let key = CutOffKey::created(Scope::Subject(tenant.clone(), subject.clone()));
    let Some(survey) = surveys.get_mut(&key) else { return Ok(()) };
    let covered = survey.coverage.covered;
    let last = covered.map_or(SessionId::from_bytes([0; 16]), |covered| {
        SessionId::last_of_millisecond(covered.up_to)
    });
    let spared = covered.and_then(|covered| covered.spared);
    let sessions = statement::<BigInt>(
        "SELECT count(*)
        FROM (
            SELECT
            FROM sessions
            WHERE tenant = ? AND subject = ? AND NOT is_over
                AND (id > ? OR id = ?)
                AND id IS DISTINCT FROM ?
                AND ended_at IS NULL AND idle_expires_at > ?
            LIMIT ?
        ) AS counted",
    )
    .bind::<Text, _>(&**tenant)
    .bind::<Text, _>(&**subject)
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<Nullable<SqlUuid>, _>(spared.map(|id| uuid(id.bytes())))
    .bind::<Nullable<SqlUuid>, _>(except.map(|id| uuid(id.bytes())))
    .bind::<Timestamptz, _>(instant(revocation.ended.at))
    .bind::<BigInt, _>(MOST_COUNTED)
    .get_result(&mut **connection)
    .await?;
    survey.uncovered = Some(UncoveredCount { sessions, covered });
    Ok(())
}

/// Counts the live sessions of a tenant that its cut-off does not cover.
async fn count_uncovered_of_tenant(
    connection: &mut PooledConnection<'_>,
    tenant: &Tenant,
    covered: Option<CutOff>,
    now: Timestamp,
) -> Result<UncoveredCount, Fault> {
    // If the tenant has no entry, all its sessions are uncovered: each identifier is greater than
    // zero.
    let last = covered.map_or(SessionId::from_bytes([0; 16]), |covered| {
        SessionId::last_of_millisecond(covered.up_to)
    });
    let sessions = statement::<BigInt>(
        "SELECT count(*)
        FROM (
            SELECT
            FROM sessions
            WHERE tenant = ? AND NOT is_over AND id > ? AND ended_at IS NULL AND idle_expires_at > ?
            LIMIT ?
        ) AS counted",
    )
    .bind::<Text, _>(&**tenant)
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<Timestamptz, _>(instant(now))
    .bind::<BigInt, _>(MOST_COUNTED)
    .get_result(&mut **connection)
    .await?;
    Ok(UncoveredCount { sessions, covered })
}

/// Returns the newest session of a tenant, or of all tenants.
async fn newest(
    connection: &mut PooledConnection<'_>,
    tenant: Option<&Tenant>,
) -> Result<Option<Uuid>, Fault> {
    let reading = match tenant {
        None => statement::<Nullable<SqlUuid>>(
            "SELECT (SELECT id FROM sessions ORDER BY id DESC LIMIT 1)",
        ),
        Some(tenant) => statement::<Nullable<SqlUuid>>(
            "SELECT greatest(
                (SELECT id FROM sessions WHERE tenant = ? AND NOT is_over ORDER BY id DESC LIMIT 1),
                (SELECT id FROM sessions WHERE tenant = ? AND is_over ORDER BY id DESC LIMIT 1)
            )",
        )
        .bind::<Text, _>(&**tenant)
        .bind::<Text, _>(&**tenant),
    };
    Ok(reading.get_result(&mut **connection).await?)
}

/// Returns the keys for which the blacklist has an entry.
async fn present(
    connection: &mut PooledConnection<'_>,
    keys: impl Iterator<Item = EntryKey>,
) -> Result<HashSet<EntryKey>, Fault> {
    let keys: HashSet<EntryKey> = keys.collect();
    if keys.is_empty() {
        return Ok(keys);
    }
    let rows: HashSet<(String, String)> = blacklist::table
        .filter(blacklist::key.eq_any(keys.iter().map(|(_, key)| key)))
        .select((blacklist::kind, blacklist::key))
        .load(&mut **connection)
        .await?
        .into_iter()
        .collect();
    let is_present = |(kind, key): &EntryKey| rows.contains(&((*kind).to_owned(), key.clone()));
    Ok(keys.into_iter().filter(is_present).collect())
}

type EntryKey = (&'static str, String);

/// Returns the keys of the entries that a revocation may replace. The entries of cut-offs are not
/// among them, because they are part of the surveys.
fn replaceable(revocation: &Revocation) -> impl Iterator<Item = EntryKey> {
    let named = match &revocation.target {
        RevocationTarget::Token { token, .. } => Some(Revoked::Token(*token)),
        RevocationTarget::Lost(entry) => Some(entry.revoked.clone()),
        RevocationTarget::Session(_)
        | RevocationTarget::Subject { .. }
        | RevocationTarget::Subjects { .. }
        | RevocationTarget::Tenant(_)
        | RevocationTarget::Sessions { .. } => None,
    };
    let fallback = revocation.fallback_entry.as_ref().map(|entry| entry.revoked.clone());
    named.into_iter().chain(fallback).map(|revoked| revoked_key(&revoked))
}

/// The state that decisions about revocations are based on, and the changes so far.
struct Batch {
    /// The locked sessions, with the changes so far.
    current: HashMap<SessionId, Session>,
    /// The keys for which the blacklist has an entry, or for which this batch adds one.
    present: HashSet<EntryKey>,
    surveys: Surveys,
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

impl Batch {
    /// Decides a revocation on the state that the revocations before it have left. Also returns the
    /// range of its entries among the entries of the batch.
    fn decide(
        &mut self,
        revocation: &Revocation,
        live: &LiveIds,
    ) -> (RevocationDecision, Range<usize>) {
        let Ok(decision) =
            revocation.decide(&mut State { batch: self, live, at: revocation.ended.at });
        for session in &decision.ended {
            self.current.insert(session.id, session.clone());
            self.changed.insert(session.id, session.clone());
        }
        let first = self.entries.len();
        for entry in &decision.entries {
            if let Revoked::Sessions { key, cut_off } = &entry.revoked
                && let Some(survey) = self.surveys.get_mut(key)
            {
                survey.coverage.covered = Some(survey.coverage.with(*cut_off));
            }
            self.present.insert(revoked_key(&entry.revoked));
            self.entries.push(entry.clone());
        }
        (decision, first..self.entries.len())
    }
}

/// The state that the decision about one revocation is based on.
struct State<'a> {
    batch: &'a Batch,
    live: &'a LiveIds,
    at: Timestamp,
}

impl RevocationState for State<'_> {
    type Error = Infallible;

    fn session(&mut self, id: SessionId) -> Result<Option<Session>, Infallible> {
        Ok(self.batch.current.get(&id).cloned())
    }

    fn has_entry(&mut self, revoked: &Revoked) -> Result<bool, Infallible> {
        Ok(self.batch.present.contains(&revoked_key(revoked)))
    }

    fn survey(&mut self, key: &CutOffKey) -> Result<Survey, Infallible> {
        Ok(self.batch.surveys.get(key).copied().unwrap_or_default())
    }

    fn live_sessions(&mut self, _: &Tenant, _: &Subject) -> Result<OldestLive, Infallible> {
        let sessions = self.live.ids.iter().filter_map(|id| self.batch.current.get(id));
        let live = sessions.filter(|session| session.is_live(self.at)).cloned().collect();
        Ok(OldestLive { sessions: live, has_more: self.live.has_more })
    }
}
