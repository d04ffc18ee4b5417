//! The audit table. Rows are inserted many at a time. Old rows are removed, most of them with the
//! partition of their day. No row is ever updated or locked, so an operator can revoke the right to
//! do so from the service's role.

pub mod partitions;
pub mod search;

use std::sync::{Mutex, PoisonError};

use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use self::partitions::Maintained;
use super::{
    connection::{fault::Fault, pool::PooledConnection, sqlstate::Class},
    rows::{instant, uuid},
    sql::{column, statement},
};
use crate::domain::{audit::AuditEntry, call_id::CallId, time::Timestamp};

pub async fn append(
    connection: &mut PooledConnection<'_>,
    entries: &[AuditEntry],
) -> Result<(), Fault> {
    statement::<()>(
        "INSERT INTO audit (
            at, id, session_id, sessions, left_out, peer, action, caller, tenant, subject, kid,
            reason, note, x_request_id, client_id, created_before, authenticated_before
        )
        SELECT
            at, id, session_id, sessions, left_out, peer::inet, action, caller, tenant, subject,
            kid, reason, note, x_request_id, client_id, created_before, authenticated_before
        FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (
            at, id, session_id, sessions, left_out, peer, action, caller, tenant, subject, kid,
            reason, note, x_request_id, client_id, created_before, authenticated_before
        )
        ON CONFLICT (at, id) DO NOTHING",
    )
    .bind::<Array<Timestamptz>, _>(column(entries, |entry| instant(entry.record.at)))
    .bind::<Array<SqlUuid>, _>(column(entries, |entry| uuid(entry.id.bytes())))
    .bind::<Array<Nullable<SqlUuid>>, _>(column(entries, |entry| {
        entry.record.session_id.map(|id| uuid(id.bytes()))
    }))
    .bind::<Array<Nullable<BigInt>>, _>(column(entries, |entry| entry.record.sessions))
    .bind::<Array<BigInt>, _>(column(entries, |entry| entry.left_out))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| {
        entry.record.peer.map(|peer| peer.to_string())
    }))
    .bind::<Array<Text>, _>(column(entries, |entry| entry.record.action.as_str()))
    .bind::<Array<Text>, _>(column(entries, |entry| entry.record.caller.as_str()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.tenant.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.subject.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.kid.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| {
        entry.record.reason.map(|reason| reason.as_str())
    }))
    .bind::<Array<Text>, _>(column(entries, |entry| &*entry.record.note))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| {
        entry.record.call.as_ref().map(CallId::as_str)
    }))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.client_id.as_deref()))
    .bind::<Array<Nullable<Timestamptz>>, _>(column(entries, |entry| {
        entry.record.created_before.map(instant)
    }))
    .bind::<Array<Nullable<Timestamptz>>, _>(column(entries, |entry| {
        entry.record.authenticated_before.map(instant)
    }))
    .execute(&mut **connection)
    .await?;
    Ok(())
}

/// Expands to a statement that deletes the oldest rows of a table, up to a limit, if they are older
/// than an instant.
macro_rules! delete_from {
    ($table:literal) => {
        concat!(
            "WITH old AS MATERIALIZED (SELECT at, id FROM ",
            $table,
            " WHERE at < ? ORDER BY at, id LIMIT ?) DELETE FROM ",
            $table,
            " AS a USING old WHERE a.at = old.at AND a.id = old.id"
        )
    };
}

/// Drops the partitions of old days. Old records that are in no daily partition are deleted row by
/// row. Returns the number of records that were removed.
pub async fn delete_old(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
    limit: i64,
) -> Result<usize, Fault> {
    let maintained = match partitions::maintain(connection, until).await {
        Ok(maintained) => maintained,
        Err(error) if Class::of(&error) == Class::Lost => return Err(error.into()),
        Err(error) => {
            warn_once(error.to_string());
            connection.run("ROLLBACK").await?;
            None
        }
    };
    let Some(Maintained { dropped, has_audit_before }) = maintained else {
        return delete(connection, delete_from!("audit"), until, limit).await;
    };
    let mut deleted = 0;
    if has_audit_before {
        deleted += delete(connection, delete_from!("audit_before"), until, limit).await?;
    }
    let limit = limit.saturating_sub(i64::try_from(deleted).unwrap_or(limit));
    deleted += delete(connection, delete_from!("audit_default"), until, limit).await?;
    Ok(dropped.saturating_add(deleted))
}

/// Logs why the partitions are left as they are, unless the reason is the same as the last time.
fn warn_once(problem: String) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if *last != problem {
        tracing::warn!(
            problem,
            "the partitions of the audit are left as they are, and old records deleted one by one"
        );
        *last = problem;
    }
}

async fn delete(
    connection: &mut PooledConnection<'_>,
    sql: &'static str,
    until: Timestamp,
    limit: i64,
) -> Result<usize, Fault> {
    let deleted = statement::<()>(sql)
        .bind::<Timestamptz, _>(instant(until))
        .bind::<BigInt, _>(limit)
        .execute(&mut **connection)
        .await?;
    Ok(deleted)
}
