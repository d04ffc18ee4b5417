//! Ending and deleting many rows in bounded steps, one statement each.

use diesel::{
    data_types::PgTimestamp,
    sql_types::{BigInt, Interval, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    pool::{Fault, Lease},
    rows::{instant, interval, timestamp, uuid},
    sql::{first_uncovered, statement},
};
use crate::{
    domain::{ids::SessionId, revocation::RETENTION_MARGIN, session::Ended, time::Timestamp},
    store::{EndedBatch, RevokedTenant, SweptRevocations},
};

/// The first identifier that comes after this one, if there can be one.
fn id_after(id: Option<SessionId>) -> Option<[u8; 16]> {
    match id {
        None => Some([0; 16]),
        Some(id) => u128::from_be_bytes(*id.bytes()).checked_add(1).map(u128::to_be_bytes),
    }
}

pub async fn end_all_sessions(
    lease: &mut Lease<'_>,
    ended: &Ended,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<EndedBatch>, Fault> {
    let Some(first) = id_after(after) else { return Ok(None) };
    let looked_at: Vec<(Uuid, i64)> = statement::<(SqlUuid, BigInt)>(
        "WITH looked_at AS MATERIALIZED (
             SELECT id FROM sessions WHERE id >= ? ORDER BY id LIMIT ?
         ), ended AS (
             UPDATE sessions AS s
             SET ended_at = given.at,
                 sweep_on = given.at,
                 end_reason = given.reason,
                 end_note = given.note,
                 revision = least(s.revision + 1, 4294967295)
             FROM looked_at, (SELECT ?::timestamptz AS at, ?::text AS reason, ?::text AS note) AS given
             WHERE s.id = looked_at.id AND s.ended_at IS NULL AND s.idle_expires_at > given.at
             RETURNING s.id
         )
         SELECT id, (SELECT count(*) FROM ended) FROM looked_at ORDER BY id DESC LIMIT 1",
    )
    .bind::<SqlUuid, _>(uuid(&first))
    .bind::<BigInt, _>(limit)
    .bind::<Timestamptz, _>(instant(ended.at))
    .bind::<Text, _>(ended.reason.as_str())
    .bind::<Text, _>(&*ended.note)
    .load(&mut **lease)
    .await?;
    Ok(looked_at.into_iter().next().map(ended_batch))
}

fn ended_batch((last, sessions): (Uuid, i64)) -> EndedBatch {
    EndedBatch {
        last: SessionId::from_bytes(last.into_bytes()),
        sessions: usize::try_from(sessions).unwrap_or_default(),
    }
}

pub async fn end_tenant_sessions(
    lease: &mut Lease<'_>,
    tenant: &RevokedTenant,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<EndedBatch>, Fault> {
    let Some(first) = id_after(after) else { return Ok(None) };
    let last = SessionId::last_of_millisecond(tenant.up_to);
    // The condition is asked again of a row that somebody else has just changed.
    let looked_at: Vec<(Uuid, i64)> = statement::<(SqlUuid, BigInt)>(
        "WITH looked_at AS MATERIALIZED (SELECT id FROM sessions WHERE tenant = ? AND id >= ? AND id <= ? \
         ORDER BY id LIMIT ?), \
         ended AS (UPDATE sessions AS s SET ended_at = given.at, sweep_on = given.at, end_reason = given.reason, \
         end_note = given.note, revision = least(s.revision + 1, 4294967295) \
         FROM looked_at, (SELECT ?::timestamptz AS at, ?::text AS reason, ?::text AS note) AS given \
         WHERE s.id = looked_at.id AND s.ended_at IS NULL AND s.idle_expires_at > given.at RETURNING s.id), \
         kept AS (UPDATE blacklist AS b SET expires_at = greatest(b.expires_at, (SELECT max( \
         greatest(given.at, s.refreshed_at + s.refresh_grace, \
         CASE s.replay WHEN 'until_used' THEN s.refreshed_at + s.replay_limit END) \
         + s.access_token_ttl) FROM sessions AS s \
         JOIN looked_at ON s.id = looked_at.id) + given.margin) \
         FROM (SELECT ?::bigint AS seq, ?::timestamptz AS at, ?::interval AS margin) AS given WHERE b.seq = given.seq) \
         SELECT id, (SELECT count(*) FROM ended) FROM looked_at ORDER BY id DESC LIMIT 1",
    )
    .bind::<Text, _>(&*tenant.tenant)
    .bind::<SqlUuid, _>(uuid(&first))
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<BigInt, _>(limit)
    .bind::<Timestamptz, _>(instant(tenant.ended.at))
    .bind::<Text, _>(tenant.ended.reason.as_str())
    .bind::<Text, _>(&*tenant.ended.note)
    .bind::<BigInt, _>(tenant.seq.0)
    .bind::<Timestamptz, _>(instant(tenant.ended.at))
    .bind::<Interval, _>(interval(RETENTION_MARGIN))
    .load(&mut **lease)
    .await?;
    Ok(looked_at.into_iter().next().map(ended_batch))
}

pub async fn delete_expired_revocations(
    lease: &mut Lease<'_>,
    until: Timestamp,
    limit: i64,
) -> Result<SweptRevocations, Fault> {
    let (deleted, forgotten_until): (i64, PgTimestamp) = statement::<(BigInt, Timestamptz)>(concat!(
        "WITH expired AS MATERIALIZED (SELECT b.seq FROM blacklist AS b WHERE b.expires_at < ? \
         AND NOT (b.kind = 'tenant' AND EXISTS (SELECT 1 FROM sessions AS s WHERE s.tenant = b.tenant AND s.id < ",
        first_uncovered!(),
        " AND s.ended_at IS NULL AND s.idle_expires_at > b.revoked_at)) \
         ORDER BY b.expires_at LIMIT ? FOR UPDATE OF b SKIP LOCKED), \
         deleted AS (DELETE FROM blacklist AS b USING expired WHERE b.seq = expired.seq RETURNING b.expires_at), \
         record AS (UPDATE sweeper SET forgotten_until = greatest(forgotten_until, (SELECT max(expires_at) FROM deleted)) \
         RETURNING forgotten_until) \
         SELECT (SELECT count(*) FROM deleted), forgotten_until FROM record"
    ))
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .get_result(&mut **lease)
    .await?;
    let deleted = usize::try_from(deleted).unwrap_or_default();
    Ok(SweptRevocations { deleted, forgotten_until: timestamp(forgotten_until) })
}

/// Deletes sessions that are over. One that was refreshed since the sweeper was told to look at it is looked at later.
/// What has expired is recorded if it came due before `recorded_until`.
pub async fn delete_old_sessions(
    lease: &mut Lease<'_>,
    until: Timestamp,
    recorded_until: Timestamp,
    limit: i64,
) -> Result<usize, Fault> {
    let mut all_deleted = 0;
    loop {
        let step = limit - all_deleted;
        let (due, deleted): (i64, i64) = statement::<(BigInt, BigInt)>(
            "WITH due AS MATERIALIZED (
                SELECT id FROM sessions
                WHERE sweep_on < ? AND (ended_at IS NOT NULL OR sweep_on < ?)
                ORDER BY sweep_on
                LIMIT ?
                FOR UPDATE SKIP LOCKED
            ),
            deleted AS (
                DELETE FROM sessions AS s USING due
                WHERE s.id = due.id AND coalesce(s.ended_at, s.idle_expires_at) < ?
                RETURNING 1
            ),
            later AS (
                UPDATE sessions AS s SET sweep_on = coalesce(s.ended_at, s.idle_expires_at) FROM due
                WHERE s.id = due.id AND coalesce(s.ended_at, s.idle_expires_at) >= ?
            )
            SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM deleted)",
        )
        .bind::<Timestamptz, _>(instant(until))
        .bind::<Timestamptz, _>(instant(recorded_until))
        .bind::<BigInt, _>(step)
        .bind::<Timestamptz, _>(instant(until))
        .bind::<Timestamptz, _>(instant(until))
        .get_result(&mut **lease)
        .await?;
        all_deleted += deleted;
        if due < step || all_deleted >= limit {
            return Ok(usize::try_from(all_deleted).unwrap_or_default());
        }
    }
}
