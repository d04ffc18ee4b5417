//! Revoking: the sessions that are meant are locked, then each revocation is decided on what those before it have left.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl,
    sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    pool::{BatchWrite, Fault, Lease},
    reads,
    rows::{TENANT, instant, revoked_key, timestamp, uuid},
    schema::{blacklist, sessions},
    sql::statement,
    writes,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{BlacklistEntry, Revocation, RevocationTarget, Revoked, TenantState},
        session::Session,
        text::Tenant,
        time::Timestamp,
    },
    store::{RevocationOutcome, StoreError},
};

#[async_trait]
impl BatchWrite for Revocation {
    type Outcome = RevocationOutcome;

    async fn apply(
        lease: &mut Lease<'_>,
        revocations: &[Self],
    ) -> Result<Vec<Result<RevocationOutcome, StoreError>>, Fault> {
        lease.begin().await?;
        let of_subjects = of_subjects(lease, revocations).await?;
        // Before anything is locked: a big tenant takes a while.
        let mut tenants = HashMap::new();
        for revocation in revocations {
            let RevocationTarget::Tenant(tenant) = &revocation.target else { continue };
            if tenants.contains_key(tenant) {
                continue;
            }
            tenants.insert(tenant.clone(), survey(lease, tenant, revocation.ended.at).await?);
        }
        let mut ids: Vec<SessionId> = of_subjects.iter().flatten().copied().collect();
        ids.extend(revocations.iter().filter_map(|revocation| match &revocation.target {
            RevocationTarget::Session(id) => Some(*id),
            RevocationTarget::Token { session_id, .. } => Some(*session_id),
            RevocationTarget::Subject { .. } | RevocationTarget::Tenant(_) => None,
        }));
        ids.sort_unstable();
        ids.dedup();

        let there = writes::lock(lease, &ids).await?;
        let replaceable = revocations.iter().filter_map(|revocation| replaceable(revocation, &there));
        let present = present(lease, replaceable.collect()).await?;
        let mut batch = Batch { there, present, tenants, changed: HashMap::new(), entries: vec![] };
        let mut outcomes = Vec::with_capacity(revocations.len());
        for (revocation, subject) in revocations.iter().zip(&of_subjects) {
            let before = batch.entries.len();
            let outcome = batch.decide(revocation, subject);
            outcomes.push((outcome, (batch.entries.len() > before).then_some(batch.entries.len())));
        }
        let changed: Vec<_> = batch.changed.into_values().collect();
        writes::save(lease, &changed).await?;
        let places = writes::insert_entries(lease, &batch.entries).await?;
        // Whoever adds nothing may have found what is still on its way to some index, and so waits
        // for all of it, the entries of this batch included. The head tells where that ends, and not
        // the newest row, which may have been swept.
        let head = match places.iter().copied().max_by_key(|place| place.seq) {
            Some(last) => last,
            None => reads::feed_head(lease).await?,
        };
        lease.commit().await?;
        let outcomes = outcomes.into_iter().map(|(mut outcome, end)| {
            outcome.wrote = end.is_some();
            let entry = end.and_then(|end| batch.entries.get(end - 1));
            outcome.whose = entry.and_then(|entry| Some((entry.tenant.clone(), entry.subject.clone()?)));
            outcome.place = end.and_then(|end| places.get(end - 1)).copied().unwrap_or(head);
            Ok(outcome)
        });
        Ok(outcomes.collect())
    }
}

/// For each revocation, the live sessions of the subject that it names, the oldest first.
async fn of_subjects(lease: &mut Lease<'_>, revocations: &[Revocation]) -> Result<Vec<Vec<SessionId>>, Fault> {
    let mut found: Vec<Vec<SessionId>> = vec![vec![]; revocations.len()];
    let (mut places, mut tenants, mut subjects, mut instants) = (vec![], vec![], vec![], vec![]);
    for (place, revocation) in (0_i64..).zip(revocations) {
        if let RevocationTarget::Subject { tenant, subject, .. } = &revocation.target {
            places.push(place);
            tenants.push(&**tenant);
            subjects.push(&**subject);
            instants.push(instant(revocation.ended.at));
        }
    }
    if places.is_empty() {
        return Ok(found);
    }
    let rows: Vec<(i64, Uuid)> = statement::<(BigInt, SqlUuid)>(
        "SELECT given.place, s.id FROM unnest(?, ?, ?, ?) AS given (place, tenant, subject, instant) \
         JOIN sessions AS s ON s.tenant = given.tenant AND s.subject = given.subject \
         WHERE s.ended_at IS NULL AND s.idle_expires_at > given.instant ORDER BY given.place, s.id",
    )
    .bind::<Array<BigInt>, _>(places)
    .bind::<Array<Text>, _>(tenants)
    .bind::<Array<Text>, _>(subjects)
    .bind::<Array<Timestamptz>, _>(instants)
    .load(&mut **lease)
    .await?;
    for (place, id) in rows {
        if let Some(ids) = usize::try_from(place).ok().and_then(|place| found.get_mut(place)) {
            ids.push(SessionId::from_bytes(id.into_bytes()));
        }
    }
    Ok(found)
}

/// What there is of a tenant.
struct Survey {
    state: TenantState,
    /// Its live sessions that its entry does not cover. The covered ones have ended already, though
    /// the job that ends their rows may not have come to them yet.
    uncovered: i64,
}

async fn survey(lease: &mut Lease<'_>, tenant: &Tenant, now: Timestamp) -> Result<Survey, Fault> {
    let covered = blacklist::table
        .filter(blacklist::kind.eq(TENANT).and(blacklist::key.eq(&**tenant)))
        .select(blacklist::up_to)
        .first(&mut **lease)
        .await
        .optional()?;
    let covered = covered.flatten().map(timestamp);
    // Without an entry all are uncovered. None has the identifier zero.
    let last = covered.map_or(SessionId::from_bytes([0; 16]), SessionId::last_of_millisecond);
    let uncovered = sessions::table
        .filter(sessions::tenant.eq(&**tenant).and(sessions::id.gt(uuid(last.bytes()))))
        .filter(sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(instant(now))))
        .count()
        .get_result(&mut **lease)
        .await?;
    let newest: Option<Uuid> = sessions::table
        .filter(sessions::tenant.eq(&**tenant))
        .order(sessions::id.desc())
        .select(sessions::id)
        .first(&mut **lease)
        .await
        .optional()?;
    let newest = newest.map(|id| SessionId::from_bytes(id.into_bytes()));
    Ok(Survey { state: TenantState { newest, covered }, uncovered })
}

/// Those of these entries that are there.
async fn present(lease: &mut Lease<'_>, keys: Vec<EntryKey>) -> Result<HashSet<EntryKey>, Fault> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<(String, String)> = blacklist::table
        .filter(blacklist::key.eq_any(keys.iter().map(|(_, key)| key)))
        .select((blacklist::kind, blacklist::key))
        .load(&mut **lease)
        .await?;
    Ok(keys.into_iter().filter(|(kind, key)| rows.iter().any(|row| row.0 == *kind && row.1 == *key)).collect())
}

type EntryKey = (&'static str, String);

/// The entry that a revocation may write in the place of an older one. What ends a live session
/// writes one that is new, and the survey of a tenant tells whether it has one.
fn replaceable(revocation: &Revocation, there: &HashMap<SessionId, Session>) -> Option<EntryKey> {
    let is_live = |id: &SessionId| there.get(id).is_some_and(|session| session.is_live(revocation.ended.at));
    let revoked = match (&revocation.target, &revocation.orphan) {
        (RevocationTarget::Token { token, .. }, _) => Revoked::Token(*token),
        (RevocationTarget::Session(id), Some(orphan)) if !is_live(id) => orphan.revoked.clone(),
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
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

impl Batch {
    /// Decides a revocation; the outcome still lacks its place in the feed.
    fn decide(&mut self, revocation: &Revocation, subject: &[SessionId]) -> RevocationOutcome {
        let ended = &revocation.ended;
        let nothing = RevocationOutcome { found: true, ..RevocationOutcome::default() };
        match &revocation.target {
            RevocationTarget::Session(id) => match self.there.get(id) {
                Some(session) if session.is_live(ended.at) => self.end_all(&[*id], revocation),
                _ => self.stop_orphan(*id, revocation),
            },
            RevocationTarget::Token { token, session_id, expires_at } => match self.there.get(session_id) {
                Some(session) if session.is_live(ended.at) => {
                    let entry = BlacklistEntry::for_token(session, *token, *expires_at, ended);
                    self.add(entry, revocation, nothing)
                }
                _ => self.stop_orphan(*session_id, revocation),
            },
            RevocationTarget::Subject { except, .. } => {
                let ids: Vec<_> = subject.iter().copied().filter(|id| Some(*id) != *except).collect();
                self.end_all(&ids, revocation)
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
        let Some(up_to) = survey.state.up_to(revocation.ended.at) else { return nothing };
        if survey.state.covered.is_none() && !revocation.may_add {
            return RevocationOutcome { full: true, ..nothing };
        }
        self.entries.push(BlacklistEntry::for_tenant(tenant, up_to, &revocation.ended));
        let changed = survey.state.has_uncovered();
        let sessions = survey.uncovered;
        (survey.state.covered, survey.uncovered) = (Some(up_to), 0);
        RevocationOutcome { changed, sessions, ..nothing }
    }

    /// Adds an entry that ends no session, if there is room or it takes the place of an older one.
    fn add(&mut self, entry: BlacklistEntry, revocation: &Revocation, nothing: RevocationOutcome) -> RevocationOutcome {
        let key = revoked_key(&entry.revoked);
        let is_new = !self.present.contains(&key);
        if is_new && !revocation.may_add {
            return RevocationOutcome { full: true, ..nothing };
        }
        self.present.insert(key);
        self.entries.push(entry);
        RevocationOutcome { changed: is_new, ..nothing }
    }

    /// Ends those of these sessions that live, and stops their tokens.
    fn end_all(&mut self, ids: &[SessionId], revocation: &Revocation) -> RevocationOutcome {
        let ended = &revocation.ended;
        let mut outcome = RevocationOutcome { found: true, ..RevocationOutcome::default() };
        for id in ids {
            let Some(session) = self.there.get_mut(id).filter(|session| session.is_live(ended.at)) else { continue };
            if !revocation.may_add {
                return RevocationOutcome { full: true, ..outcome };
            }
            self.entries.push(BlacklistEntry::for_session(session, ended));
            *session = session.clone().end(ended.clone());
            self.changed.insert(*id, session.clone());
            outcome.changed = true;
            outcome.sessions += 1;
        }
        outcome
    }

    /// What is left to do for a session that does not live. One that was ended has an entry of its own, which stops all its
    /// tokens; one that is unknown, or expired although a token of it lives, has none.
    fn stop_orphan(&mut self, id: SessionId, revocation: &Revocation) -> RevocationOutcome {
        let session = self.there.get(&id);
        let outcome = RevocationOutcome { found: session.is_some(), ..RevocationOutcome::default() };
        match &revocation.orphan {
            Some(entry) if session.is_none_or(|session| session.ended.is_none()) => {
                self.add(entry.clone(), revocation, outcome)
            }
            _ => outcome,
        }
    }
}
