//! Records that sessions have expired, once for each session.
//!
//! The expiry of a session is in no index, because every refresh would have to update that index.
//! The column `sweep_on`, which has an index, is never later than the expiry. So a sweep reads the
//! sessions whose `sweep_on` has passed. Where such a session is still live, the sweep sets its
//! `sweep_on` to its expiry.

use diesel::{
    data_types::PgTimestamp,
    sql_types::{BigInt, Bool, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    audit,
    connection::{fault::Fault, pool::PooledConnection},
    rows::{instant, timestamp},
    sql::statement,
};
use crate::{
    domain::{
        audit::{AuditEntry, ExpiredSession},
        ids::SessionId,
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::RecordedExpiries,
};

type DueRow = (Uuid, String, String, PgTimestamp, PgTimestamp, bool);
type SqlDue = (SqlUuid, Text, Text, Timestamptz, Timestamptz, Bool);

/// Records expired sessions in one transaction. A session that another transaction is writing to is
/// left to a later sweep, of this replica or of another one. So no session is recorded twice, and
/// no sweep waits.
pub async fn record(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
    limit: i64,
    keep: bool,
) -> Result<RecordedExpiries, Fault> {
    connection.begin().await?;
    // A replica of an older version does not set `is_over` when it ends a session. So this
    // statement sets it for sessions that have ended, too.
    let due: Vec<DueRow> = statement::<SqlDue>(
        "WITH due AS MATERIALIZED (
            SELECT id
            FROM sessions
            WHERE NOT is_over AND sweep_on < ?
            ORDER BY sweep_on
            LIMIT ?
            FOR UPDATE SKIP LOCKED
        )
        UPDATE sessions AS s
        SET is_over = s.ended_at IS NOT NULL OR s.idle_expires_at < ?,
            sweep_on = coalesce(s.ended_at, s.idle_expires_at)
        FROM due
        WHERE s.id = due.id
        RETURNING
            s.id, s.tenant, s.subject, s.idle_expires_at, s.expires_at,
            s.is_over AND s.ended_at IS NULL",
    )
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .bind::<Timestamptz, _>(instant(until))
    .load(&mut **connection)
    .await?;
    let is_last = i64::try_from(due.len()).unwrap_or(i64::MAX) < limit;
    let mut expired: Vec<_> = due.iter().filter(|row| row.5).collect();
    expired.sort_by_key(|row| timestamp(row.3));
    let entries: Vec<_> = expired.into_iter().map(entry).collect();
    if keep && !entries.is_empty() {
        audit::append(connection, &entries).await?;
    }
    connection.commit().await?;
    Ok(RecordedExpiries { entries, is_last })
}

/// Creates the audit record of an expired session. If the tenant or the subject in the row is
/// damaged, the record leaves it out, so that the other sessions are recorded nevertheless.
fn entry((id, tenant, subject, idle_expires_at, expires_at, _): &DueRow) -> AuditEntry {
    AuditEntry::from(ExpiredSession {
        id: SessionId::from_bytes(*id.as_bytes()),
        tenant: Tenant::try_from(tenant.clone()).ok(),
        subject: Subject::try_from(subject.clone()).ok(),
        idle_expires_at: timestamp(*idle_expires_at),
        expires_at: timestamp(*expires_at),
    })
}
