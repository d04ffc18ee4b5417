//! Recording the sessions that have expired, once for each.
//!
//! No index tells when sessions expire, because refreshes would have to write it. `sweep_on` is never
//! later than that, so the sessions that come due there are looked at: those that still live are moved
//! to the instant of their expiry.

use std::time::Duration;

use diesel::{
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    audit,
    pool::{Fault, Lease},
    rows::{instant, timestamp},
    sql::statement,
};
use crate::{
    domain::{
        audit::{AuditEntry, ExpiredSession},
        ids::SessionId,
        revocation::RETENTION_MARGIN,
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::RecordedExpiries,
};

/// The smallest step of time.
const TICK: Duration = Duration::from_micros(1);

type DueRow = (Uuid, String, String, PgTimestamp, PgTimestamp, PgTimestamp);
type SqlDue = (SqlUuid, Text, Text, Timestamptz, Timestamptz, Timestamptz);

/// One transaction, in which the row that says how far this has come stays locked. So of several
/// replicas that sweep at once, one after the other does a batch, and none does it twice.
pub async fn record(
    lease: &mut Lease<'_>,
    until: Timestamp,
    limit: i64,
    keep: bool,
) -> Result<RecordedExpiries, Fault> {
    lease.begin().await?;
    let since: PgTimestamp = statement::<Timestamptz>("SELECT expiries_recorded_until FROM sweeper FOR UPDATE")
        .get_result(&mut **lease)
        .await?;
    if timestamp(since) > until.plus(RETENTION_MARGIN) {
        // By a clock that has been set back since. What expires meanwhile is to be recorded too.
        return finish(lease, vec![], until, true, false).await;
    }
    if timestamp(since) >= until {
        lease.run("ROLLBACK").await?;
        return Ok(RecordedExpiries { entries: vec![], until: timestamp(since), is_last: true });
    }
    let (mut end, mut is_last) = match first_of_next_batch(lease, since, until, limit).await? {
        // All sessions of one instant are of one batch, however many there are.
        Some(next) => (timestamp(next).max(timestamp(since).plus(TICK)), false),
        None => (until, true),
    };
    let due: Vec<DueRow> = statement::<SqlDue>(
        "SELECT id, tenant, subject, sweep_on, idle_expires_at, expires_at
        FROM sessions
        WHERE sweep_on >= ? AND sweep_on < ? AND ended_at IS NULL
        ORDER BY sweep_on",
    )
    .bind::<Timestamptz, _>(since)
    .bind::<Timestamptz, _>(instant(end))
    .load(&mut **lease)
    .await?;
    let is_live = |row: &&DueRow| timestamp(row.4) >= until;
    let live: Vec<Uuid> = due.iter().filter(is_live).map(|row| row.0).collect();
    let postponed = postpone(lease, &live).await?;
    // A session that somebody else is writing to stays due, and so does whatever comes after it.
    if let Some(busy) = due.iter().filter(is_live).find(|row| !postponed.contains(&row.0)) {
        (end, is_last) = (timestamp(busy.3), true);
    }
    let is_recorded = |row: &&DueRow| !is_live(row) && timestamp(row.3) < end;
    let entries: Vec<_> = due.iter().filter(is_recorded).map(entry).collect();
    finish(lease, entries, end, is_last, keep).await
}

/// Writes the records, and how far this has come.
async fn finish(
    lease: &mut Lease<'_>,
    entries: Vec<AuditEntry>,
    until: Timestamp,
    is_last: bool,
    keep: bool,
) -> Result<RecordedExpiries, Fault> {
    if keep && !entries.is_empty() {
        audit::append(lease, &entries).await?;
    }
    statement::<()>("UPDATE sweeper SET expiries_recorded_until = ?")
        .bind::<Timestamptz, _>(instant(until))
        .execute(&mut **lease)
        .await?;
    lease.commit().await?;
    Ok(RecordedExpiries { entries, until, is_last })
}

/// When the first session comes due that is too many for this batch.
async fn first_of_next_batch(
    lease: &mut Lease<'_>,
    since: PgTimestamp,
    until: Timestamp,
    limit: i64,
) -> Result<Option<PgTimestamp>, Fault> {
    let next: Vec<PgTimestamp> = statement::<Timestamptz>(
        "SELECT sweep_on FROM sessions WHERE sweep_on >= ? AND sweep_on < ? ORDER BY sweep_on LIMIT 1 OFFSET ?",
    )
    .bind::<Timestamptz, _>(since)
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .load(&mut **lease)
    .await?;
    Ok(next.into_iter().next())
}

/// Has the sweeper look at these sessions again when they will have expired, but for those that
/// somebody else is writing to. Returns which they are.
async fn postpone(lease: &mut Lease<'_>, live: &[Uuid]) -> Result<Vec<Uuid>, Fault> {
    if live.is_empty() {
        return Ok(vec![]);
    }
    let postponed = statement::<SqlUuid>(
        "WITH free AS MATERIALIZED (
            SELECT id FROM sessions WHERE id = ANY (?) ORDER BY id FOR UPDATE SKIP LOCKED
        )
        UPDATE sessions AS s
        SET sweep_on = coalesce(s.ended_at, s.idle_expires_at)
        FROM free
        WHERE s.id = free.id
        RETURNING s.id",
    )
    .bind::<Array<SqlUuid>, _>(live.to_vec())
    .load(&mut **lease)
    .await?;
    Ok(postponed)
}

/// A damaged text must not keep the other sessions from being recorded.
fn entry((id, tenant, subject, _, idle_expires_at, expires_at): &DueRow) -> AuditEntry {
    AuditEntry::from(ExpiredSession {
        id: SessionId::from_bytes(*id.as_bytes()),
        tenant: Tenant::try_from(tenant.clone()).ok(),
        subject: Subject::try_from(subject.clone()).ok(),
        idle_expires_at: timestamp(*idle_expires_at),
        expires_at: timestamp(*expires_at),
    })
}
