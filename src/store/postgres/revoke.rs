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
    rows::{TENANT, instant, revoked_key, timestamp},
    schema::{blacklist, sessions},
    sql::statement,
    writes,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{BlacklistEntry, Revocation, RevocationTarget, Revoked},
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
        let mut tenants = Vec::new();
        for revocation in revocations {
            tenants.push(match &revocation.target {
                RevocationTarget::Tenant(tenant) => Some(survey(lease, tenant, revocation.ended.at).await?),
                _ => None,
            });
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
        let present = present(lease, revocations).await?;
        let mut batch = Batch { there, present, changed: HashMap::new(), entries: vec![] };
        let mut outcomes = Vec::with_capacity(revocations.len());
        for ((revocation, subject), tenant) in revocations.iter().zip(&of_subjects).zip(tenants) {
            let before = batch.entries.len();
            let outcome = batch.decide(revocation, subject, tenant);
            outcomes.push((outcome, (batch.entries.len() > before).then_some(batch.entries.len())));
        }
        let changed: Vec<_> = batch.changed.into_values().collect();
        writes::save(lease, &changed).await?;
        // What was revoked before may still be on its way to some index: whoever adds nothing waits for all of it. The head
        // tells, and not the newest row, which may have been swept.
        let head = reads::feed_head(lease).await?;
        let places = writes::insert_entries(lease, &batch.entries).await?;
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

/// What a tenant has: its live sessions, counted, and the last instant that its revocation covers.
struct Survey {
    live: i64,
    /// None if there is nothing of this tenant, so that made-up names add no rows.
    up_to: Option<Timestamp>,
}

async fn survey(lease: &mut Lease<'_>, tenant: &Tenant, now: Timestamp) -> Result<Survey, Fault> {
    let live = sessions::table
        .filter(sessions::tenant.eq(&**tenant))
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
    let newest = newest.map(|id| {
        let millis = SessionId::from_bytes(id.into_bytes()).created_millis();
        Timestamp::from_micros(millis.saturating_mul(1000))
    });
    let before = blacklist::table
        .filter(blacklist::kind.eq(TENANT).and(blacklist::key.eq(&**tenant)))
        .select(blacklist::up_to)
        .first(&mut **lease)
        .await
        .optional()?;
    // Now, or later if the clock has been set back since a session was created or the tenant was revoked before.
    let up_to = newest.max(before.flatten().map(timestamp)).map(|instant| instant.max(now));
    Ok(Survey { live, up_to })
}

/// The entries there already are for what is revoked without room for new ones.
async fn present(lease: &mut Lease<'_>, revocations: &[Revocation]) -> Result<HashSet<EntryKey>, Fault> {
    let without_room = revocations.iter().filter(|revocation| !revocation.may_add);
    let keys: Vec<EntryKey> = without_room.filter_map(replaceable).collect();
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

/// The entry that a revocation may write in the place of an older one.
fn replaceable(revocation: &Revocation) -> Option<EntryKey> {
    let revoked = match (&revocation.target, &revocation.orphan) {
        (RevocationTarget::Token { token, .. }, _) => Revoked::Token(*token),
        (RevocationTarget::Tenant(tenant), _) => Revoked::Tenant { tenant: tenant.clone(), up_to: revocation.ended.at },
        (_, Some(orphan)) => orphan.revoked.clone(),
        _ => return None,
    };
    Some(revoked_key(&revoked))
}

/// What a batch has decided so far.
struct Batch {
    /// The locked sessions as they will be.
    there: HashMap<SessionId, Session>,
    /// Entries that may be replaced where there is no room for new ones.
    present: HashSet<EntryKey>,
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

impl Batch {
    /// Decides a revocation; the outcome still lacks its place in the feed.
    fn decide(&mut self, revocation: &Revocation, subject: &[SessionId], tenant: Option<Survey>) -> RevocationOutcome {
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
                    RevocationOutcome { full: !self.add(entry, revocation), ..nothing }
                }
                _ => self.stop_orphan(*session_id, revocation),
            },
            RevocationTarget::Subject { except, .. } => {
                let ids: Vec<_> = subject.iter().copied().filter(|id| Some(*id) != *except).collect();
                self.end_all(&ids, revocation)
            }
            RevocationTarget::Tenant(name) => {
                let Some(Survey { live, up_to: Some(up_to) }) = tenant else { return nothing };
                let entry = BlacklistEntry::for_tenant(name, up_to, ended);
                match self.add(entry, revocation) {
                    true => RevocationOutcome { sessions: live, ..nothing },
                    false => RevocationOutcome { full: true, ..nothing },
                }
            }
        }
    }

    /// Adds an entry that ends no session, if there is room or it takes the place of an older one.
    fn add(&mut self, entry: BlacklistEntry, revocation: &Revocation) -> bool {
        let fits = revocation.may_add || self.present.contains(&revoked_key(&entry.revoked));
        if fits {
            self.entries.push(entry);
        }
        fits
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
                let full = !self.add(entry.clone(), revocation);
                RevocationOutcome { full, ..outcome }
            }
            _ => outcome,
        }
    }
}
