//! Creating sessions, within the limits of their subjects.

use async_trait::async_trait;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper,
    sql_types::{Array, BigInt},
};
use diesel_async::RunQueryDsl;

use super::{
    pool::{BatchWrite, Fault, Lease},
    rows::{SessionRow, instant},
    schema::sessions,
    sql::statement,
    writes,
};
use crate::{
    domain::{
        policy::OnQuota,
        revocation::{BlacklistEntry, tenant_covers},
        session::{EndReason, Ended, Session},
        text::Note,
    },
    store::{Created, Creation, StoreError},
};

#[async_trait]
impl BatchWrite for Creation {
    type Outcome = Created;

    async fn apply(lease: &mut Lease<'_>, creations: &[Self]) -> Result<Vec<Result<Created, StoreError>>, Fault> {
        let all: Vec<&Self> = creations.iter().collect();
        let may_meet_others = |creation: &Self| creation.max_sessions > 0 || creation.session.request_id.is_some();
        if !creations.iter().any(may_meet_others) {
            let inserted = writes::insert_sessions(lease, &all).await?;
            if inserted.len() == creations.len() {
                return Ok(creations.iter().map(|_| Ok(Created::New { seq: None })).collect());
            }
            let up_to = writes::tenants_up_to(lease, creations.iter().map(|creation| &creation.session.tenant)).await?;
            let outcome = |creation: &Self| match up_to.get(&*creation.session.tenant) {
                _ if inserted.contains(&creation.session.id) => Ok(Created::New { seq: None }),
                Some(up_to) => Ok(Created::TenantRevoked { up_to: *up_to }),
                None => Err(StoreError::Unavailable("the tenant's revocation has just been forgotten".to_owned())),
            };
            return Ok(creations.iter().map(outcome).collect());
        }

        lease.begin().await?;
        lock_subjects(lease, creations).await?;
        let inserted = writes::insert_sessions(lease, &all).await?;
        let mut entries = vec![];
        // Each with the number of entries after its own evictions, if it had any.
        let mut outcomes = Vec::with_capacity(creations.len());
        for creation in creations {
            let (created, evicted) = if inserted.contains(&creation.session.id) {
                (Created::New { seq: None }, 0)
            } else {
                let before = entries.len();
                (create(lease, creation, &mut entries).await?, entries.len() - before)
            };
            outcomes.push((created, (evicted > 0).then_some(entries.len())));
        }
        let seqs = writes::insert_entries(lease, &entries).await?;
        lease.commit().await?;
        let outcomes = outcomes.into_iter().map(|(created, last)| match (created, last) {
            (Created::New { .. }, Some(end)) => Ok(Created::New { seq: seqs.get(end - 1).copied() }),
            (created, _) => Ok(created),
        });
        Ok(outcomes.collect())
    }
}

/// Makes everybody who creates sessions of a limited subject take turns, until the transaction ends: replicas too.
///
/// A statement of its own, because the next one must see what those before us have committed.
async fn lock_subjects(lease: &mut Lease<'_>, creations: &[Creation]) -> Result<(), Fault> {
    let limited = creations.iter().filter(|creation| creation.max_sessions > 0);
    let mut keys: Vec<i64> = limited.map(|creation| lock_key(&creation.session)).collect();
    keys.sort_unstable();
    keys.dedup();
    if !keys.is_empty() && lease.has_locks() {
        statement::<()>("SELECT pg_advisory_xact_lock(given.key) FROM unnest(?) AS given (key)")
            .bind::<Array<BigInt>, _>(keys)
            .execute(&mut **lease)
            .await?;
    }
    Ok(())
}

/// FNV-1a over tenant and subject: the same in every version. A collision costs a wait, no more.
fn lock_key(session: &Session) -> i64 {
    let text = b"countersign/".iter().chain(session.tenant.as_bytes()).chain(&[0]).chain(session.subject.as_bytes());
    let hash =
        text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    i64::from_ne_bytes(hash.to_ne_bytes())
}

/// Creates one session for which there may be an earlier one, or no room.
async fn create(
    lease: &mut Lease<'_>,
    creation: &Creation,
    entries: &mut Vec<BlacklistEntry>,
) -> Result<Created, Fault> {
    let session = &creation.session;
    if let Some(earlier) = earlier(lease, session).await? {
        return Ok(Created::Repeated(Box::new(earlier)));
    }
    let revoked = writes::tenants_up_to(lease, [&session.tenant]).await?;
    if let Some(up_to) = revoked.get(&*session.tenant).filter(|up_to| tenant_covers(**up_to, session.id)) {
        return Ok(Created::TenantRevoked { up_to: *up_to });
    }
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
    }
    let unlimited = Creation { max_sessions: 0, ..creation.clone() };
    if writes::insert_sessions(lease, &[&unlimited]).await?.is_empty() {
        // Somebody else has made the same request since. What was evicted for it comes back with the transaction.
        return Err(Fault::Again(StoreError::Unavailable("the same request is being made by others".to_owned())));
    }
    Ok(Created::New { seq: None })
}

/// The session that the same request made before.
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
