//! Recording the sessions that have expired, once for each.

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl, SqliteConnection, dsl, sql_query,
    sql_types::{BigInt, Binary, Text},
};

use super::{audit, schema::sweeper};
use crate::{
    domain::{
        audit::{AuditEntry, ExpiredSession},
        ids::SessionId,
        revocation::RETENTION_MARGIN,
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

#[derive(QueryableByName)]
struct Over {
    #[diesel(sql_type = BigInt)]
    at: i64,
}

pub fn record(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
    keep: bool,
) -> Result<RecordedExpiries, StoreError> {
    let since: i64 = sweeper::table.select(sweeper::expiries_recorded_until).get_result(connection)?;
    if since > until.plus(RETENTION_MARGIN).micros() {
        // By a clock that has been set back since. What expires meanwhile is to be recorded too.
        dsl::update(sweeper::table).set(sweeper::expiries_recorded_until.eq(until.micros())).execute(connection)?;
        return Ok(RecordedExpiries { entries: vec![], until, is_last: true });
    }
    if since >= until.micros() {
        return Ok(RecordedExpiries { entries: vec![], until: Timestamp::from_micros(since), is_last: true });
    }
    let next: Option<Over> = sql_query(
        "SELECT coalesce(ended_at, idle_expires_at) AS at
        FROM sessions
        WHERE coalesce(ended_at, idle_expires_at) >= ? AND coalesce(ended_at, idle_expires_at) < ?
        ORDER BY coalesce(ended_at, idle_expires_at)
        LIMIT 1 OFFSET ?",
    )
    .bind::<BigInt, _>(since)
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .get_result(connection)
    .optional()?;
    let is_last = next.is_none();
    // All sessions of one instant are of one batch, however many there are.
    let end = next.map_or(until.micros(), |next| next.at.max(since.saturating_add(1)));
    let rows: Vec<ExpiredRow> = sql_query(
        "SELECT id, tenant, subject, idle_expires_at, expires_at
        FROM sessions
        WHERE coalesce(ended_at, idle_expires_at) >= ? AND coalesce(ended_at, idle_expires_at) < ?
        AND ended_at IS NULL
        ORDER BY coalesce(ended_at, idle_expires_at)",
    )
    .bind::<BigInt, _>(since)
    .bind::<BigInt, _>(end)
    .load(connection)?;
    let entries: Vec<_> = rows.into_iter().filter_map(entry).collect();
    if keep {
        audit::append(connection, &entries)?;
    }
    dsl::update(sweeper::table).set(sweeper::expiries_recorded_until.eq(end)).execute(connection)?;
    Ok(RecordedExpiries { entries, until: Timestamp::from_micros(end), is_last })
}

/// What is damaged must not keep the other sessions from being recorded.
fn entry(row: ExpiredRow) -> Option<AuditEntry> {
    Some(AuditEntry::from(ExpiredSession {
        id: SessionId::from_bytes(row.id.as_slice().try_into().ok()?),
        tenant: Tenant::try_from(row.tenant).ok(),
        subject: Subject::try_from(row.subject).ok(),
        idle_expires_at: Timestamp::from_micros(row.idle_expires_at),
        expires_at: Timestamp::from_micros(row.expires_at),
    }))
}
