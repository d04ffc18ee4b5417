//! Revokes sessions, tokens, subjects and tenants. First the sessions that the batch may end are
//! locked. Then each revocation is decided on the state that the revocations before it in the batch
//! have left.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    convert::Infallible,
};

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    super::{
        batch::BatchWrite,
        connection::{fault::Fault, pool::PooledConnection},
        feed::entries,
        rows::{instant, revoked_key, timestamp, uuid},
        schema::blacklist,
        sql::statement,
    },
    lock,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{
            BlacklistEntry, Coverage, CutOff, Revocation, RevocationTarget, Revoked, cut_off_key,
        },
        revoke::{
            MOST_ENDED_AT_ONCE, OldestLive, RevocationDecision, RevocationState, Survey,
            UncoveredCount,
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
        for revocation in revocations {
            let RevocationTarget::Tenant(tenant) = &revocation.target else { continue };
            if let Entry::Vacant(vacant) = surveys.entry(cut_off_key(tenant, None)) {
                vacant.insert(survey_tenant(connection, tenant, revocation.ended.at).await?);
            }
        }
        let mut ids: Vec<SessionId> =
            of_subjects.iter().flat_map(|live| &live.ids).copied().collect();
        ids.extend(revocations.iter().filter_map(|revocation| match &revocation.target {
            RevocationTarget::Session(id) => Some(*id),
            RevocationTarget::Token { session_id, .. } => Some(*session_id),
            RevocationTarget::Subject { .. }
            | RevocationTarget::Tenant(_)
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
        let outcomes = decided.into_iter().map(|(decision, entry)| {
            let position = entry.and_then(|entry| positions.get(entry)).copied();
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

/// The state of tenants and subjects, by the keys of their blacklist entries.
type Surveys = HashMap<String, Survey>;

/// Reads the state of the subjects that are to be revoked.
async fn survey_subjects(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
) -> Result<Surveys, Fault> {
    let mut surveys = Surveys::new();
    let (mut keys, mut tenants, mut subjects) = (vec![], vec![], vec![]);
    for revocation in revocations {
        let RevocationTarget::Subject { tenant, subject, .. } = &revocation.target else {
            continue;
        };
        let key = cut_off_key(tenant, Some(subject));
        if surveys.insert(key.clone(), Survey::default()).is_none() {
            keys.push(key);
            tenants.push(&**tenant);
            subjects.push(&**subject);
        }
    }
    if keys.is_empty() {
        return Ok(surveys);
    }
    type Row = (String, Option<Uuid>, Option<PgTimestamp>, Option<Uuid>);
    let rows: Vec<Row> =
        statement::<(Text, Nullable<SqlUuid>, Nullable<Timestamptz>, Nullable<SqlUuid>)>(
            "SELECT
            given.key,
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
            ),
            b.up_to,
            b.session_id
        FROM unnest(?, ?, ?) AS given (key, tenant, subject)
        LEFT JOIN blacklist AS b ON b.kind = 'subject' AND b.key = given.key",
        )
        .bind::<Array<Text>, _>(keys)
        .bind::<Array<Text>, _>(tenants)
        .bind::<Array<Text>, _>(subjects)
        .load(&mut **connection)
        .await?;
    let session_id = |id: Uuid| SessionId::from_bytes(id.into_bytes());
    for (key, newest, up_to, spared) in rows {
        let covered =
            up_to.map(|up_to| CutOff { up_to: timestamp(up_to), spared: spared.map(session_id) });
        let coverage = Coverage { newest: newest.map(session_id), covered };
        surveys.insert(key, Survey { coverage, uncovered: None });
    }
    Ok(surveys)
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
    let Some(survey) = surveys.get_mut(&cut_off_key(tenant, Some(subject))) else { return Ok(()) };
    let covered = survey.coverage.covered;
    let last = covered.map_or(SessionId::from_bytes([0; 16]), |covered| {
        SessionId::last_of_millisecond(covered.up_to)
    });
    let spared = covered.and_then(|covered| covered.spared);
    let sessions = statement::<BigInt>(
        "SELECT count(*)
        FROM sessions
        WHERE tenant = ? AND subject = ? AND NOT is_over
            AND (id > ? OR id = ?)
            AND id IS DISTINCT FROM ?
            AND ended_at IS NULL AND idle_expires_at > ?",
    )
    .bind::<Text, _>(&**tenant)
    .bind::<Text, _>(&**subject)
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<Nullable<SqlUuid>, _>(spared.map(|id| uuid(id.bytes())))
    .bind::<Nullable<SqlUuid>, _>(except.map(|id| uuid(id.bytes())))
    .bind::<Timestamptz, _>(instant(revocation.ended.at))
    .get_result(&mut **connection)
    .await?;
    survey.uncovered = Some(UncoveredCount { sessions, covered });
    Ok(())
}

async fn survey_tenant(
    connection: &mut PooledConnection<'_>,
    tenant: &Tenant,
    now: Timestamp,
) -> Result<Survey, Fault> {
    let up_to: Vec<Option<PgTimestamp>> = statement::<Nullable<Timestamptz>>(
        "SELECT up_to FROM blacklist WHERE kind = 'tenant' AND key = ?",
    )
    .bind::<Text, _>(cut_off_key(tenant, None))
    .load(&mut **connection)
    .await?;
    let up_to = up_to.into_iter().next().flatten().map(timestamp);
    let covered = up_to.map(|up_to| CutOff { up_to, spared: None });
    // If the tenant has no entry, all its sessions are uncovered: each identifier is greater than
    // zero.
    let last = up_to.map_or(SessionId::from_bytes([0; 16]), SessionId::last_of_millisecond);
    let sessions = statement::<BigInt>(
        "SELECT count(*)
        FROM sessions
        WHERE tenant = ? AND NOT is_over AND id > ? AND ended_at IS NULL AND idle_expires_at > ?",
    )
    .bind::<Text, _>(&**tenant)
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<Timestamptz, _>(instant(now))
    .get_result(&mut **connection)
    .await?;
    let newest: Option<Uuid> = statement::<Nullable<SqlUuid>>(
        "SELECT greatest(
            (SELECT id FROM sessions WHERE tenant = ? AND NOT is_over ORDER BY id DESC LIMIT 1),
            (SELECT id FROM sessions WHERE tenant = ? AND is_over ORDER BY id DESC LIMIT 1)
        )",
    )
    .bind::<Text, _>(&**tenant)
    .bind::<Text, _>(&**tenant)
    .get_result(&mut **connection)
    .await?;
    let newest = newest.map(|id| SessionId::from_bytes(id.into_bytes()));
    let coverage = Coverage { newest, covered };
    Ok(Survey { coverage, uncovered: Some(UncoveredCount { sessions, covered }) })
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

/// Returns the keys of the entries that a revocation may replace. The entries of tenants and
/// subjects are not among them, because they are part of the surveys.
fn replaceable(revocation: &Revocation) -> impl Iterator<Item = EntryKey> {
    let named = match &revocation.target {
        RevocationTarget::Token { token, .. } => Some(Revoked::Token(*token)),
        RevocationTarget::Lost(entry) => Some(entry.revoked.clone()),
        RevocationTarget::Session(_)
        | RevocationTarget::Subject { .. }
        | RevocationTarget::Tenant(_) => None,
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
    /// index of its entry among the entries of the batch.
    fn decide(
        &mut self,
        revocation: &Revocation,
        live: &LiveIds,
    ) -> (RevocationDecision, Option<usize>) {
        let Ok(decision) =
            revocation.decide(&mut State { batch: self, live, at: revocation.ended.at });
        for session in &decision.ended {
            self.current.insert(session.id, session.clone());
            self.changed.insert(session.id, session.clone());
        }
        let entry = decision.entry.as_ref().map(|entry| {
            let (kind, key) = revoked_key(&entry.revoked);
            if let Some(cut_off) = entry.revoked.cut_off()
                && let Some(survey) = self.surveys.get_mut(&key)
            {
                let covered = survey.coverage.covered;
                survey.coverage.covered =
                    Some(covered.map_or(cut_off, |covered| covered.union(cut_off)));
            }
            self.present.insert((kind, key));
            self.entries.push(entry.clone());
            self.entries.len() - 1
        });
        (decision, entry)
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

    fn survey(&mut self, tenant: &Tenant, subject: Option<&Subject>) -> Result<Survey, Infallible> {
        let key = cut_off_key(tenant, subject.map(|subject| &**subject));
        Ok(self.batch.surveys.get(&key).copied().unwrap_or_default())
    }

    fn live_sessions(&mut self, _: &Tenant, _: &Subject) -> Result<OldestLive, Infallible> {
        let sessions = self.live.ids.iter().filter_map(|id| self.batch.current.get(id));
        let live = sessions.filter(|session| session.is_live(self.at)).cloned().collect();
        Ok(OldestLive { sessions: live, has_more: self.live.has_more })
    }
}
