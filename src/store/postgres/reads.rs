//! What is read.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper, dsl,
    sql_types::{BigInt, Bool, Timestamptz},
};
use diesel_async::RunQueryDsl;

use super::{
    pool::{Fault, PooledConnection},
    rows::{SessionRow, UnfinishedRow, instant, timestamp, uuid},
    schema::{blacklist, sessions},
    sql::statement,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{FeedPosition, Seq, Timeline},
        session::Session,
        time::Timestamp,
    },
    store::{SessionQuery, Unfinished},
};

pub async fn session(
    connection: &mut PooledConnection<'_>,
    id: SessionId,
) -> Result<Option<Session>, Fault> {
    let row: Option<SessionRow> = sessions::table
        .find(uuid(id.bytes()))
        .select(SessionRow::as_select())
        .first(&mut **connection)
        .await
        .optional()?;
    Ok(row.map(Session::try_from).transpose()?)
}

pub async fn sessions(
    connection: &mut PooledConnection<'_>,
    query: SessionQuery,
) -> Result<Vec<Session>, Fault> {
    match query.live {
        Some(live) => listed(connection, &query, live).await,
        None => {
            // In this order: one that ends meanwhile is in both, and not in neither.
            let live = listed(connection, &query, true).await?;
            let over = listed(connection, &query, false).await?;
            Ok(query.merge(live, over))
        }
    }
}

/// Lists sessions that are not over, and of a query for live ones those that live; or those that
/// are over.
async fn listed(
    connection: &mut PooledConnection<'_>,
    query: &SessionQuery,
    live: bool,
) -> Result<Vec<Session>, Fault> {
    let mut statement = sessions::table
        .filter(sessions::tenant.eq(&*query.tenant))
        .filter(dsl::sql::<Bool>(if live { "NOT is_over" } else { "is_over" }))
        .order(sessions::id.desc())
        .limit(query.limit)
        .select(SessionRow::as_select())
        .into_boxed();
    if let Some(subject) = &query.subject {
        statement = statement.filter(sessions::subject.eq(&**subject));
    }
    if let Some(before) = query.before {
        statement = statement.filter(sessions::id.lt(uuid(before.bytes())));
    }
    if query.live == Some(true) {
        let is_live =
            sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(instant(query.now)));
        statement = statement.filter(is_live);
    }
    let rows: Vec<SessionRow> = statement.load(&mut **connection).await?;
    Ok(rows.into_iter().map(Session::try_from).collect::<Result<_, _>>()?)
}

pub async fn unfinished(connection: &mut PooledConnection<'_>) -> Result<Vec<Unfinished>, Fault> {
    let rows: Vec<UnfinishedRow> = blacklist::table
        .filter(dsl::sql::<Bool>("unfinished"))
        .order(blacklist::seq.asc())
        .select(UnfinishedRow::as_select())
        .load(&mut **connection)
        .await?;
    Ok(rows.into_iter().map(Unfinished::try_from).collect::<Result<_, _>>()?)
}

/// The clock of the database.
pub async fn now(connection: &mut PooledConnection<'_>) -> Result<Option<Timestamp>, Fault> {
    Ok(Some(timestamp(
        statement::<Timestamptz>("SELECT clock_timestamp()").get_result(&mut **connection).await?,
    )))
}

/// The last position given out in the feed.
pub async fn feed_head(connection: &mut PooledConnection<'_>) -> Result<FeedPosition, Fault> {
    let (timeline, seq) =
        statement::<(BigInt, BigInt)>("SELECT feed_timeline(), seq FROM feed_head")
            .get_result(&mut **connection)
            .await?;
    Ok(FeedPosition { timeline: Timeline(timeline), seq: Seq(seq) })
}
