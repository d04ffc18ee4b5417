//! Records that sessions have expired, once for each session.

use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection, sql_query,
    sql_types::{BigInt, Binary, Text},
};

use super::audit;
use crate::{
    domain::{
        audit::{AuditEntry, ExpiredSession},
        ids::SessionId,
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::{RecordedExpiries, StoreError},
};

#[derive(QueryableByName)]
struct ExpiredRow {
    #[diesel(sql_type = Binary)]
    id: Vec<u8>,
    #[diesel(sql_type = Text)]
    tenant: String,
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = BigInt)]
    idle_expires_at: i64,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
}

pub fn record(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
    keep: bool,
) -> Result<RecordedExpiries, StoreError> {
    let mut rows: Vec<ExpiredRow> = sql_query(
        "UPDATE sessions
        SET is_over = TRUE
        WHERE id IN (
            SELECT id FROM sessions
            WHERE NOT is_over AND idle_expires_at < ?
            ORDER BY idle_expires_at
            LIMIT ?
        )
        RETURNING id, tenant, subject, idle_expires_at, expires_at",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .load(connection)?;
    let is_last = i64::try_from(rows.len()).unwrap_or(i64::MAX) < limit;
    rows.sort_by_key(|row| row.idle_expires_at);
    let entries: Vec<_> = rows.into_iter().filter_map(entry).collect();
    if keep {
        audit::append(connection, &entries)?;
    }
    Ok(RecordedExpiries { entries, is_last })
}

/// Creates the audit record of an expired session. If the tenant or the subject in the row is
/// damaged, the record leaves it out. A row with a damaged identifier is skipped. So the other
/// sessions are recorded nevertheless.
fn entry(row: ExpiredRow) -> Option<AuditEntry> {
    Some(AuditEntry::from(ExpiredSession {
        id: SessionId::from_bytes(row.id.as_slice().try_into().ok()?),
        tenant: Tenant::try_from(row.tenant).ok(),
        subject: Subject::try_from(row.subject).ok(),
        idle_expires_at: Timestamp::from_micros(row.idle_expires_at),
        expires_at: Timestamp::from_micros(row.expires_at),
    }))
}
