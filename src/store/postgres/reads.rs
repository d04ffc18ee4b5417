//! What is read, and the first keys.

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::{
    pool::{Fault, Lease},
    rows::{FeedRow, KeyRow, RevokedTenantRow, SessionRow, TENANT, instant, timestamp, uuid},
    schema::{blacklist, feed_head, sessions, signing_keys, sweeper},
};
use crate::{
    domain::{ids::SessionId, key::SealedKey, revocation::Seq, session::Session, time::Timestamp},
    store::{FeedEntry, RevokedTenant, SessionQuery},
};

pub async fn session(lease: &mut Lease<'_>, id: SessionId) -> Result<Option<Session>, Fault> {
    let row: Option<SessionRow> =
        sessions::table.find(uuid(id.bytes())).select(SessionRow::as_select()).first(&mut **lease).await.optional()?;
    Ok(row.map(Session::try_from).transpose()?)
}

pub async fn sessions(lease: &mut Lease<'_>, query: SessionQuery) -> Result<Vec<Session>, Fault> {
    let now = instant(query.now);
    let mut statement = sessions::table
        .filter(sessions::tenant.eq(query.tenant.into_string()))
        .order(sessions::id.desc())
        .limit(query.limit)
        .select(SessionRow::as_select())
        .into_boxed();
    if let Some(subject) = query.subject {
        statement = statement.filter(sessions::subject.eq(subject.into_string()));
    }
    if let Some(before) = query.before {
        statement = statement.filter(sessions::id.lt(uuid(before.bytes())));
    }
    statement = match query.live {
        None => statement,
        Some(true) => statement.filter(sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(now))),
        Some(false) => statement.filter(sessions::ended_at.is_not_null().or(sessions::idle_expires_at.le(now))),
    };
    let rows: Vec<SessionRow> = statement.load(&mut **lease).await?;
    Ok(rows.into_iter().map(Session::try_from).collect::<Result<_, _>>()?)
}

pub async fn revoked_tenants(lease: &mut Lease<'_>) -> Result<Vec<RevokedTenant>, Fault> {
    let rows: Vec<RevokedTenantRow> = blacklist::table
        .filter(blacklist::kind.eq(TENANT))
        .select(RevokedTenantRow::as_select())
        .load(&mut **lease)
        .await?;
    Ok(rows.into_iter().map(RevokedTenant::try_from).collect::<Result<_, _>>()?)
}

pub async fn revocations_after(lease: &mut Lease<'_>, after: Seq, limit: i64) -> Result<Vec<FeedEntry>, Fault> {
    let rows: Vec<FeedRow> = blacklist::table
        .filter(blacklist::seq.gt(after.0))
        .order(blacklist::seq.asc())
        .limit(limit)
        .select(FeedRow::as_select())
        .load(&mut **lease)
        .await?;
    Ok(rows.into_iter().map(FeedEntry::try_from).collect::<Result<_, _>>()?)
}

/// The last place given out in the feed.
pub async fn feed_head(lease: &mut Lease<'_>) -> Result<Seq, Fault> {
    Ok(Seq(feed_head::table.select(feed_head::seq).first(&mut **lease).await?))
}

pub async fn forgotten_until(lease: &mut Lease<'_>) -> Result<Timestamp, Fault> {
    Ok(timestamp(sweeper::table.select(sweeper::forgotten_until).first(&mut **lease).await?))
}

pub async fn keys(lease: &mut Lease<'_>) -> Result<Vec<SealedKey>, Fault> {
    let rows: Vec<KeyRow> = signing_keys::table.select(KeyRow::as_select()).load(&mut **lease).await?;
    Ok(rows.into_iter().map(SealedKey::try_from).collect::<Result<_, _>>()?)
}

pub async fn insert_first_keys(lease: &mut Lease<'_>, first: Vec<SealedKey>) -> Result<Vec<SealedKey>, Fault> {
    lease.begin().await?;
    // Two who start at once take turns at this row, which is always there.
    let _: i64 = feed_head::table.select(feed_head::seq).for_update().first(&mut **lease).await?;
    let mut present = keys(lease).await?;
    if present.is_empty() {
        let rows: Vec<KeyRow> = first.into_iter().map(KeyRow::from).collect();
        diesel::insert_into(signing_keys::table).values(rows).execute(&mut **lease).await?;
        present = keys(lease).await?;
    }
    lease.commit().await?;
    Ok(present)
}
