//! What is read.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper, sql_types::BigInt,
};
use diesel_async::RunQueryDsl;

use super::{
    pool::{Fault, Lease},
    rows::{RevokedTenantRow, SessionRow, TENANT, instant, uuid},
    schema::{blacklist, sessions},
    sql::statement,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{Place, Seq, Timeline},
        session::Session,
    },
    mutants::broken,
    store::{RevokedTenant, SessionQuery},
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

/// The last place given out in the feed.
pub async fn feed_head(lease: &mut Lease<'_>) -> Result<Place, Fault> {
    let text = match broken("feed-by-bigserial") {
        true => "SELECT feed_timeline(), coalesce(max(seq), 0) FROM blacklist",
        false => "SELECT feed_timeline(), seq FROM feed_head",
    };
    let (timeline, seq) = statement::<(BigInt, BigInt)>(text).get_result(&mut **lease).await?;
    Ok(Place { timeline: Timeline(timeline), seq: Seq(seq) })
}
