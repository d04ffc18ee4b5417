//! Ends and deletes many rows, in batches of limited size.

use diesel::{
    data_types::PgTimestamp,
    sql_types::{BigInt, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{instant, timestamp, uuid},
    sql::{first_uncovered, statement},
};
use crate::{
    domain::{ids::SessionId, session::Ended, time::Timestamp},
    store::{EndedBatch, SweptRevocations},
};

/// Returns the first identifier after this one, or none if this is the last possible one.
pub fn id_after(id: Option<SessionId>) -> Option<[u8; 16]> {
    match id {
        None => Some([0; 16]),
        Some(id) => u128::from_be_bytes(*id.bytes()).checked_add(1).map(u128::to_be_bytes),
    }
}

/// Expands to the assignments that end a row of `sessions AS s` with the values of `given`.
macro_rules! end_as_given {
    () => {
        "ended_at = given.at,
        sweep_on = given.at,
        is_over = true,
        end_reason = given.reason,
        end_note = given.note,
        revision = least(s.revision + 1, 4294967295)"
    };
}
pub(super) use end_as_given;

pub async fn end_all_sessions(
    connection: &mut PooledConnection<'_>,
    ended: &Ended,
    until: Timestamp,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<EndedBatch>, Fault> {
    let Some(first) = id_after(after) else { return Ok(None) };
    let last = SessionId::last_of_millisecond(until);
    let looked_at: Vec<(Uuid, i64)> = statement::<(SqlUuid, BigInt)>(concat!(
        "WITH looked_at AS MATERIALIZED (
             SELECT id FROM sessions WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?
         ), ended AS (
             UPDATE sessions AS s
             SET ",
        end_as_given!(),
        "    FROM looked_at, (
                SELECT ?::timestamptz AS at, ?::text AS reason, ?::text AS note
             ) AS given
             WHERE s.id = looked_at.id AND s.ended_at IS NULL AND s.idle_expires_at > given.at
             RETURNING s.id
         )
         SELECT id, (SELECT count(*) FROM ended) FROM looked_at ORDER BY id DESC LIMIT 1"
    ))
    .bind::<SqlUuid, _>(uuid(&first))
    .bind::<SqlUuid, _>(uuid(last.bytes()))
    .bind::<BigInt, _>(limit)
    .bind::<Timestamptz, _>(instant(ended.at))
    .bind::<Text, _>(ended.reason.as_str())
    .bind::<Text, _>(&*ended.note)
    .load(&mut **connection)
    .await?;
    Ok(looked_at.into_iter().next().map(ended_batch))
}

pub fn ended_batch((last, sessions): (Uuid, i64)) -> EndedBatch {
    EndedBatch {
        last: SessionId::from_bytes(last.into_bytes()),
        sessions: usize::try_from(sessions).unwrap_or_default(),
    }
}

/// Marks expired entries of cut-offs as unfinished if sessions that they cover may still have to be
/// marked as ended.
async fn mark_unfinished(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
) -> Result<(), Fault> {
    // A session may have been created while the entry that covers it was being written. The entry
    // is then kept until that session has ended. For wide entries, no index finds such a session.
    // So they are kept until the job has walked through all sessions once more.
    statement::<()>(concat!(
        "UPDATE blacklist AS b
        SET unfinished = true
        WHERE b.expires_at < ? AND b.kind IN ('tenant', 'subject') AND NOT b.unfinished
            AND (
                b.kind = 'tenant' AND EXISTS (
                    SELECT FROM sessions AS s
                    WHERE s.tenant = b.tenant AND NOT s.is_over AND s.id < ",
        first_uncovered!("b"),
        "               AND s.ended_at IS NULL AND s.idle_expires_at > b.revoked_at
                )
                OR b.kind = 'subject' AND EXISTS (
                    SELECT FROM sessions AS s
                    WHERE s.tenant = b.tenant AND s.subject = b.subject AND NOT s.is_over
                        AND s.id < ",
        first_uncovered!("b"),
        "               AND s.id IS DISTINCT FROM b.session_id
                        AND s.ended_at IS NULL AND s.idle_expires_at > b.revoked_at
                )
            )"
    ))
    .bind::<Timestamptz, _>(instant(until))
    .execute(&mut **connection)
    .await?;
    statement::<()>(
        "UPDATE blacklist AS b
        SET unfinished = true
        WHERE b.kind < 'b' AND b.expires_at < ? AND NOT b.unfinished
            AND (b.walked_at IS NULL OR b.walked_at < b.expires_at)",
    )
    .bind::<Timestamptz, _>(instant(until))
    .execute(&mut **connection)
    .await?;
    Ok(())
}

pub async fn delete_expired_revocations(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
    limit: i64,
) -> Result<SweptRevocations, Fault> {
    connection.begin().await?;
    mark_unfinished(connection, until).await?;
    let (deleted, purge_watermark): (i64, PgTimestamp) = statement::<(BigInt, Timestamptz)>(
        "WITH expired AS MATERIALIZED (
            SELECT b.seq
            FROM blacklist AS b
            WHERE b.expires_at < ? AND NOT b.unfinished
            ORDER BY b.expires_at
            LIMIT ?
            FOR UPDATE OF b SKIP LOCKED
        ),
        deleted AS (
            DELETE FROM blacklist AS b
            USING expired
            WHERE b.seq = expired.seq
            RETURNING b.expires_at
        ),
        record AS (
            UPDATE sweeper
            SET forgotten_until = greatest(forgotten_until, (SELECT max(expires_at) FROM deleted))
            RETURNING forgotten_until
        )
        SELECT (SELECT count(*) FROM deleted), forgotten_until FROM record",
    )
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .get_result(&mut **connection)
    .await?;
    connection.commit().await?;
    let deleted = usize::try_from(deleted).unwrap_or_default();
    Ok(SweptRevocations { deleted, purge_watermark: timestamp(purge_watermark) })
}

/// Deletes sessions that were over before `until`, and rows of `large_subjects` that were counted
/// before then. A session that another transaction is writing to is left to the next sweep.
pub async fn delete_old_sessions(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
    limit: i64,
) -> Result<usize, Fault> {
    let deleted = statement::<()>(
        "WITH old AS MATERIALIZED (
            SELECT id
            FROM sessions
            WHERE is_over AND sweep_on < ?
            ORDER BY sweep_on
            LIMIT ?
            FOR UPDATE SKIP LOCKED
        ),
        unused AS (
            DELETE FROM large_subjects WHERE counted_at < ?
        )
        DELETE FROM sessions AS s USING old WHERE s.id = old.id",
    )
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .bind::<Timestamptz, _>(instant(until))
    .execute(&mut **connection)
    .await?;
    Ok(deleted)
}
