//! Creating sessions, within the limits of their subjects: where there is room it takes one statement, the rest is made one
//! by one.

use std::collections::HashSet;

use async_trait::async_trait;
use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::{
    insert::insert_sessions,
    pool::{self, BatchWrite, Fault, Lease, Pool},
    rows::{SessionRow, instant},
    schema::sessions,
    turns, writes,
};
use crate::{
    domain::{
        ids::SessionId,
        policy::OnQuota,
        revocation::{BlacklistEntry, Place, tenant_covers},
        session::{EndReason, Ended, Session},
        text::Note,
    },
    store::{Created, Creation, Eviction, StoreError, batch::BatchOutcome},
};

/// Commits a batch of creations.
pub async fn commit(pool: &Pool, creations: &[Creation]) -> BatchOutcome<Created> {
    pool::commit_in_two(pool, creations, Swift, Careful).await
}

/// A creation for which there may be room, and nothing made for its request before.
struct Swift<'a>(&'a Creation);

#[async_trait]
impl BatchWrite for Swift<'_> {
    /// None if it was left out.
    type Outcome = Option<Created>;

    async fn apply(
        lease: &mut Lease<'_>,
        creations: &[Self],
    ) -> Result<Vec<Result<Option<Created>, StoreError>>, Fault> {
        let creations: Vec<&Creation> = creations.iter().map(|Self(creation)| *creation).collect();
        let inserted = insert_sessions(lease, &creations).await?;
        let inserted: HashSet<SessionId> = inserted.into_iter().collect();
        let is_new = |creation: &Creation| inserted.contains(&creation.session.id);
        Ok(creations
            .into_iter()
            .map(|creation| Ok(is_new(creation).then_some(Created::New { eviction: None })))
            .collect())
    }
}

/// A creation for which there may be an earlier one, or no room.
struct Careful<'a>(&'a Creation);

#[async_trait]
impl BatchWrite for Careful<'_> {
    type Outcome = Created;

    async fn apply(lease: &mut Lease<'_>, creations: &[Self]) -> Result<Vec<Result<Created, StoreError>>, Fault> {
        let creations: Vec<&Creation> = creations.iter().map(|Self(creation)| *creation).collect();
        let begin = turns::begin(&turns::turns(lease, &creations));
        lease.run(&begin).await?;
        let mut entries = vec![];
        // Each with the number of entries after its own evictions, if it had any.
        let mut outcomes = Vec::with_capacity(creations.len());
        for creation in creations {
            let before = entries.len();
            let created = create(lease, creation, &mut entries).await?;
            outcomes.push((created, (entries.len() > before).then_some(entries.len())));
        }
        let places = writes::insert_entries(lease, &entries).await?;
        lease.commit().await?;
        let outcomes = outcomes.into_iter().map(|(created, last)| match (created, last) {
            (Created::New { eviction: Some(eviction) }, Some(end)) => {
                let place = places.get(end - 1).copied().unwrap_or(eviction.place);
                Ok(Created::New { eviction: Some(Eviction { place, ..eviction }) })
            }
            (created, _) => Ok(created),
        });
        Ok(outcomes.collect())
    }
}

/// Creates one session for which there may be an earlier one, or no room.
async fn create(
    lease: &mut Lease<'_>,
    creation: &Creation,
    entries: &mut Vec<BlacklistEntry>,
) -> Result<Created, Fault> {
    let session = &creation.session;
    if let Some(earlier) = earlier(lease, session).await? {
        return Ok(Created::for_used_request_id(session, earlier));
    }
    let revoked = writes::tenants_up_to(lease, [&session.tenant]).await?;
    if let Some(up_to) = revoked.get(&*session.tenant).filter(|up_to| tenant_covers(**up_to, session.id)) {
        return Ok(Created::TenantRevoked { up_to: *up_to });
    }
    let mut eviction = None;
    if creation.max_sessions > 0 {
        let now = session.created_at;
        let live = lock_live(lease, session).await?;
        let keep = usize::try_from(creation.max_sessions - 1).unwrap_or(usize::MAX);
        let surplus = live.len().saturating_sub(keep);
        if surplus > 0 && creation.on_quota == OnQuota::Refuse {
            return Ok(Created::QuotaExceeded);
        }
        let mut evicted = vec![];
        for oldest in live.into_iter().take(surplus) {
            let ended = Ended { at: now, reason: EndReason::QuotaEvicted, note: Note::default() };
            entries.push(BlacklistEntry::for_session(&oldest, &ended));
            evicted.push(oldest.end(ended));
        }
        writes::save(lease, &evicted).await?;
        if !evicted.is_empty() {
            let sessions = evicted.iter().map(|session| session.id).collect();
            // The place is known once the entries of the batch are written.
            eviction = Some(Eviction { place: Place::default(), sessions });
        }
    }
    let unlimited = Creation { max_sessions: 0, ..creation.clone() };
    if insert_sessions(lease, &[&unlimited]).await?.is_empty() {
        // Somebody else has made the same request since. What was evicted for it comes back with the transaction.
        return Err(Fault::Again(StoreError::Unavailable("the same request is being made by others".to_owned())));
    }
    Ok(Created::New { eviction })
}

/// The session that was created before with the same request id.
async fn earlier(lease: &mut Lease<'_>, session: &Session) -> Result<Option<Session>, Fault> {
    let Some(request_id) = &session.request_id else { return Ok(None) };
    let row: Option<SessionRow> = sessions::table
        .filter(sessions::tenant.eq(&*session.tenant).and(sessions::request_id.eq(&**request_id)))
        .select(SessionRow::as_select())
        .first(&mut **lease)
        .await
        .optional()?;
    Ok(row.map(Session::try_from).transpose()?)
}

/// The live sessions of a session's subject, the oldest first.
async fn lock_live(lease: &mut Lease<'_>, session: &Session) -> Result<Vec<Session>, Fault> {
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::tenant.eq(&*session.tenant).and(sessions::subject.eq(&*session.subject)))
        .filter(sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(instant(session.created_at))))
        .order(sessions::id.asc())
        .for_update()
        .select(SessionRow::as_select())
        .load(&mut **lease)
        .await?;
    Ok(rows.into_iter().map(Session::try_from).collect::<Result<_, _>>()?)
}
