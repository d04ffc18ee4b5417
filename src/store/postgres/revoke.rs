//! Revoking: the sessions that are meant are locked, then each revocation is decided on what those
//! before it have left.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    pool::{BatchWrite, Fault, PooledConnection},
    reads,
    rows::{instant, revoked_key, timestamp, uuid},
    schema::blacklist,
    sql::statement,
    writes,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{
            BlacklistEntry, Coverage, CutOff, Revocation, RevocationTarget, Revoked, cut_off_key,
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
        let mut subjects = coverage(connection, revocations).await?;
        // Before anything is locked: a big tenant takes a while.
        let mut tenants = HashMap::new();
        for revocation in revocations {
            let RevocationTarget::Tenant(tenant) = &revocation.target else { continue };
            if tenants.contains_key(tenant) {
                continue;
            }
            tenants.insert(tenant.clone(), survey(connection, tenant, revocation.ended.at).await?);
        }
        let mut ids: Vec<SessionId> =
            of_subjects.iter().flat_map(|ids| ids.iter().take(ENDED_AT_ONCE)).copied().collect();
        ids.extend(revocations.iter().filter_map(|revocation| match &revocation.target {
            RevocationTarget::Session(id) => Some(*id),
            RevocationTarget::Token { session_id, .. } => Some(*session_id),
            RevocationTarget::Subject { .. } | RevocationTarget::Tenant(_) => None,
        }));
        ids.sort_unstable();
        ids.dedup();

        let there = writes::lock(connection, &ids).await?;
        let replaceable =
            revocations.iter().filter_map(|revocation| replaceable(revocation, &there));
        let present = present(connection, replaceable.collect()).await?;
        for (revocation, ids) in revocations.iter().zip(&of_subjects) {
            if ids.len() > ENDED_AT_ONCE {
                count_uncovered(connection, revocation, &mut subjects).await?;
            }
        }
        let mut batch =
            Batch { there, present, tenants, subjects, changed: HashMap::new(), entries: vec![] };
        let mut outcomes = Vec::with_capacity(revocations.len());
        for (revocation, subject) in revocations.iter().zip(&of_subjects) {
            let before = batch.entries.len();
            let outcome = batch.decide(revocation, subject);
            outcomes.push((outcome, (batch.entries.len() > before).then_some(batch.entries.len())));
        }
        let changed: Vec<_> = batch.changed.into_values().collect();
        writes::save(connection, &changed).await?;
        let positions = writes::insert_entries(connection, &batch.entries).await?;
        // Whoever adds nothing may have found what is still on its way to some index, and so waits
        // for all of it, the entries of this batch included. The head tells where that ends, and
        // not the newest row, which may have been swept.
        let head = match positions.iter().copied().max_by_key(|position| position.seq) {
            Some(last) => last,
            None => reads::feed_head(connection).await?,
        };
        connection.commit().await?;
        let outcomes = outcomes.into_iter().map(|(mut outcome, end)| {
            outcome.wrote = end.is_some();
            let entry = end.and_then(|end| batch.entries.get(end - 1));
            outcome.whose =
                entry.and_then(|entry| Some((entry.tenant.clone(), entry.subject.clone()?)));
            outcome.position = end.and_then(|end| positions.get(end - 1)).copied().unwrap_or(head);
            Ok(outcome)
        });
        Ok(outcomes.collect())
    }
}

/// Most sessions of a subject that are ended in the transaction of its revocation. The rest is left
/// to the job that ends what entries cover.
pub const ENDED_AT_ONCE: usize = 256;

/// For each revocation, the live sessions of the subject that it names, the oldest first: no more
/// than can be ended at once, and one that tells that there are more.
async fn of_subjects(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
) -> Result<Vec<Vec<SessionId>>, Fault> {
    let mut found: Vec<Vec<SessionId>> = vec![vec![]; revocations.len()];
    let (mut positions, mut tenants, mut subjects, mut instants) = (vec![], vec![], vec![], vec![]);
    for (position, revocation) in (0_i64..).zip(revocations) {
        if let RevocationTarget::Subject { tenant, subject, .. } = &revocation.target {
            positions.push(position);
            tenants.push(&**tenant);
            subjects.push(&**subject);
            instants.push(instant(revocation.ended.at));
        }
    }
    if positions.is_empty() {
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
    .bind::<Array<BigInt>, _>(positions)
    .bind::<Array<Text>, _>(tenants)
    .bind::<Array<Text>, _>(subjects)
    .bind::<Array<Timestamptz>, _>(instants)
    .bind::<BigInt, _>(i64::try_from(ENDED_AT_ONCE).unwrap_or(i64::MAX) + 1)
    .load(&mut **connection)
    .await?;
    for (position, id) in rows {
        if let Some(ids) =
            usize::try_from(position).ok().and_then(|position| found.get_mut(position))
        {
            ids.push(SessionId::from_bytes(id.into_bytes()));
        }
    }
    Ok(found)
}

/// The state of a tenant or of a subject.
#[derive(Default)]
struct Survey {
    coverage: Coverage,
    /// Its live sessions that its entry does not cover. The covered ones have ended already, though
    /// the job that ends their rows may not have come to them yet. Of a subject without very many,
    /// they are counted when they are ended.
    uncovered: Option<i64>,
}

type Subjects = HashMap<String, Survey>;

/// Reads the state of the subjects that these revocations name, by the keys of their entries.
async fn coverage(
    connection: &mut PooledConnection<'_>,
    revocations: &[Revocation],
) -> Result<Subjects, Fault> {
    let mut surveys = Subjects::new();
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

/// Counts the live sessions of a subject that has too many to be ended at once.
async fn count_uncovered(
    connection: &mut PooledConnection<'_>,
    revocation: &Revocation,
    subjects: &mut Subjects,
) -> Result<(), Fault> {
    let RevocationTarget::Subject { tenant, subject, except } = &revocation.target else {
        return Ok(());
    };
    let Some(survey) = subjects.get_mut(&cut_off_key(tenant, Some(subject))) else { return Ok(()) };
    let covered = survey.coverage.covered;
    let last = covered.map_or(SessionId::from_bytes([0; 16]), |covered| {
        SessionId::last_of_millisecond(covered.up_to)
    });
    let spared = covered.and_then(|covered| covered.spared);
    let uncovered = statement::<BigInt>(
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
    survey.uncovered = Some(uncovered);
    Ok(())
}

async fn survey(
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
    // Without an entry all are uncovered. None has the identifier zero.
    let last = up_to.map_or(SessionId::from_bytes([0; 16]), SessionId::last_of_millisecond);
    let uncovered = statement::<BigInt>(
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
    Ok(Survey { coverage: Coverage { newest, covered }, uncovered: Some(uncovered) })
}

/// Those of these entries that are there.
async fn present(
    connection: &mut PooledConnection<'_>,
    keys: Vec<EntryKey>,
) -> Result<HashSet<EntryKey>, Fault> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<(String, String)> = blacklist::table
        .filter(blacklist::key.eq_any(keys.iter().map(|(_, key)| key)))
        .select((blacklist::kind, blacklist::key))
        .load(&mut **connection)
        .await?;
    Ok(keys
        .into_iter()
        .filter(|(kind, key)| rows.iter().any(|row| row.0 == *kind && row.1 == *key))
        .collect())
}

type EntryKey = (&'static str, String);

/// The entry that a revocation may write in the place of an older one. What ends a live session
/// writes one that is new, and the survey of a tenant tells whether it has one.
fn replaceable(revocation: &Revocation, there: &HashMap<SessionId, Session>) -> Option<EntryKey> {
    let is_live =
        |id: &SessionId| there.get(id).is_some_and(|session| session.is_live(revocation.ended.at));
    let revoked = match (&revocation.target, &revocation.fallback_entry) {
        (RevocationTarget::Token { token, .. }, _) => Revoked::Token(*token),
        (RevocationTarget::Session(id), Some(fallback_entry)) if !is_live(id) => {
            fallback_entry.revoked.clone()
        }
        _ => return None,
    };
    Some(revoked_key(&revoked))
}

/// What a batch has decided so far.
struct Batch {
    /// The locked sessions as they will be.
    there: HashMap<SessionId, Session>,
    /// Entries that would not be new.
    present: HashSet<EntryKey>,
    tenants: HashMap<Tenant, Survey>,
    subjects: Subjects,
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

impl Batch {
    /// Decides a revocation; the outcome still lacks its position in the feed.
    fn decide(&mut self, revocation: &Revocation, subject: &[SessionId]) -> RevocationOutcome {
        let ended = &revocation.ended;
        let nothing = RevocationOutcome { found: true, ..RevocationOutcome::default() };
        match &revocation.target {
            RevocationTarget::Session(id) => match self.there.get(id) {
                Some(session) if session.is_live(ended.at) => self.end(*id, revocation),
                _ => self.blacklist_without_session(*id, revocation),
            },
            RevocationTarget::Token { token, session_id, expires_at } => {
                match self.there.get(session_id) {
                    Some(session) if session.is_live(ended.at) => {
                        let entry = BlacklistEntry::for_token(session, *token, *expires_at, ended);
                        self.add(entry, revocation, nothing)
                    }
                    _ => self.blacklist_without_session(*session_id, revocation),
                }
            }
            RevocationTarget::Subject { tenant, subject: name, except } => {
                self.revoke_subject((tenant, name, *except), subject, revocation, nothing)
            }
            RevocationTarget::Tenant(tenant) => self.revoke_tenant(tenant, revocation, nothing),
        }
    }

    /// Writes a tenant's entry. For the next one who revokes the tenant in this batch, it is there.
    fn revoke_tenant(
        &mut self,
        tenant: &Tenant,
        revocation: &Revocation,
        nothing: RevocationOutcome,
    ) -> RevocationOutcome {
        let Some(survey) = self.tenants.get_mut(tenant) else { return nothing };
        if survey.coverage.covered.is_none() && !revocation.may_add {
            return RevocationOutcome { full: true, ..nothing };
        }
        let cut_off = survey.coverage.cut_off(revocation.ended.at, None);
        let entry = BlacklistEntry::for_all(
            tenant,
            None,
            cut_off,
            &revocation.ended,
            revocation.longest_token,
        );
        self.entries.push(entry);
        let changed = survey.coverage.is_changed_by(cut_off);
        survey.coverage.covered = Some(cut_off);
        RevocationOutcome {
            changed,
            sessions: survey.uncovered.replace(0).unwrap_or_default(),
            ..nothing
        }
    }

    /// Writes a subject's entry, and ends its sessions as far as that is done at once. They need no
    /// entries of their own.
    fn revoke_subject(
        &mut self,
        (tenant, subject, except): (&Tenant, &Subject, Option<SessionId>),
        live: &[SessionId],
        revocation: &Revocation,
        nothing: RevocationOutcome,
    ) -> RevocationOutcome {
        let ended = &revocation.ended;
        let Some(survey) = self.subjects.get_mut(&cut_off_key(tenant, Some(subject))) else {
            return nothing;
        };
        let covered = survey.coverage.covered;
        if covered.is_none() && !revocation.may_add {
            return RevocationOutcome { full: true, ..nothing };
        }
        let cut_off = survey.coverage.cut_off(ended.at, except);
        let mut entry = BlacklistEntry::for_all(
            tenant,
            Some(subject),
            cut_off,
            ended,
            revocation.longest_token,
        );
        entry.unfinished = live.len() > ENDED_AT_ONCE;
        let mut sessions = 0;
        for id in live.iter().take(ENDED_AT_ONCE).filter(|id| cut_off.covers(**id)) {
            let Some(session) = self.there.get_mut(id).filter(|session| session.is_live(ended.at))
            else {
                continue;
            };
            entry.expires_at = entry.expires_at.max(BlacklistEntry::expiry_for(session, ended.at));
            *session = session.clone().end(ended.clone());
            self.changed.insert(*id, session.clone());
            sessions += i64::from(covered.is_none_or(|covered| !covered.covers(*id)));
        }
        if let Some(uncovered) = &mut survey.uncovered {
            sessions = std::mem::take(uncovered);
        }
        let changed = survey.coverage.is_changed_by(cut_off) || sessions > 0;
        survey.coverage.covered = Some(cut_off);
        self.entries.push(entry);
        RevocationOutcome { changed, sessions, ..nothing }
    }

    /// Adds an entry that ends no session, if there is room or it takes the place of an older one.
    fn add(
        &mut self,
        entry: BlacklistEntry,
        revocation: &Revocation,
        nothing: RevocationOutcome,
    ) -> RevocationOutcome {
        let key = revoked_key(&entry.revoked);
        let is_new = !self.present.contains(&key);
        if is_new && !revocation.may_add {
            return RevocationOutcome { full: true, ..nothing };
        }
        self.present.insert(key);
        self.entries.push(entry);
        RevocationOutcome { changed: is_new, ..nothing }
    }

    /// Ends a live session, and stops its tokens.
    fn end(&mut self, id: SessionId, revocation: &Revocation) -> RevocationOutcome {
        let outcome = RevocationOutcome { found: true, ..RevocationOutcome::default() };
        let Some(session) = self.there.get_mut(&id) else { return outcome };
        if !revocation.may_add {
            return RevocationOutcome { full: true, ..outcome };
        }
        self.entries.push(BlacklistEntry::for_session(session, &revocation.ended));
        *session = session.clone().end(revocation.ended.clone());
        self.changed.insert(id, session.clone());
        RevocationOutcome { changed: true, sessions: 1, ..outcome }
    }

    /// What is left to do for a session that does not live. One that was ended has an entry of its
    /// own, which stops all its tokens; one that is unknown, or expired although a token of it
    /// lives, has none.
    fn blacklist_without_session(
        &mut self,
        id: SessionId,
        revocation: &Revocation,
    ) -> RevocationOutcome {
        let session = self.there.get(&id);
        let outcome =
            RevocationOutcome { found: session.is_some(), ..RevocationOutcome::default() };
        match &revocation.fallback_entry {
            Some(entry) if session.is_none_or(|session| session.ended.is_none()) => {
                self.add(entry.clone(), revocation, outcome)
            }
            _ => outcome,
        }
    }
}
