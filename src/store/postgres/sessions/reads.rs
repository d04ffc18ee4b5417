//! Reads sessions, and the clock of the database, which decides whether they are live.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper, dsl,
    sql_types::{Bool, Timestamptz},
};
use diesel_async::RunQueryDsl;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{SessionRow, instant, timestamp, uuid},
    schema::sessions,
    sql::statement,
};
use crate::{
    domain::{ids::SessionId, session::Session, time::Timestamp},
    store::SessionQuery,
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
            // The live sessions are read first. So a session that ends between the two reads is in
            // both lists; in the other order it could be missing from both.
            let live = listed(connection, &query, true).await?;
            let over = listed(connection, &query, false).await?;
            Ok(query.merge(live, over))
        }
    }
}

/// Lists the sessions that are not marked as over if `live` is true, and otherwise those that are.
/// A query for live sessions alone also leaves out sessions that have expired but are not marked
/// yet.
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

/// Reads the clock of the database.
pub async fn now(connection: &mut PooledConnection<'_>) -> Result<Option<Timestamp>, Fault> {
    Ok(Some(timestamp(
        statement::<Timestamptz>("SELECT clock_timestamp()").get_result(&mut **connection).await?,
    )))
}
