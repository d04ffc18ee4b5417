//! Reads one session, and the clock of the database, which decides whether sessions are live.

use diesel::{OptionalExtension, QueryDsl, SelectableHelper, sql_types::Timestamptz};
use diesel_async::RunQueryDsl;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{SessionRow, timestamp, uuid},
    schema::sessions,
    sql::statement,
};
use crate::domain::{ids::SessionId, session::Session, time::Timestamp};

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

/// Reads the clock of the database.
pub async fn now(connection: &mut PooledConnection<'_>) -> Result<Option<Timestamp>, Fault> {
    Ok(Some(timestamp(
        statement::<Timestamptz>("SELECT clock_timestamp()").get_result(&mut **connection).await?,
    )))
}
