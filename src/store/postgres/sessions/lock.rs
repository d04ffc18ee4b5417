//! Locks sessions, and writes the changes that were made to them.
//!
//! All transactions take their locks in the same order, so that there is no deadlock: first the
//! locks of subjects, then those of request ids, then sessions in the order of their identifiers,
//! and last the head of the feed.

use std::collections::HashMap;

use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    sql_types::{Array, BigInt, Binary, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{SessionRow, instant, interval, uuid},
    schema::sessions,
    sql::{Statement, column, statement},
};
use crate::domain::{ids::SessionId, session::Session};

type OptionalText = Nullable<Text>;
type OptionalInstant = Nullable<Timestamptz>;

/// Reads sessions, and locks them until the transaction ends.
pub async fn lock_sessions(
    connection: &mut PooledConnection<'_>,
    ids: &[SessionId],
) -> Result<HashMap<SessionId, Session>, Fault> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .order(sessions::id.asc())
        .for_update()
        .select(SessionRow::as_select())
        .load(&mut **connection)
        .await?;
    rows.into_iter().map(|row| Ok((row.id(), Session::try_from(row)?))).collect()
}

const SAVE_SESSIONS: &str = "UPDATE sessions AS s
    SET refreshed_at = given.refreshed_at,
        idle_expires_at = given.idle_expires_at,
        sweep_on = coalesce(given.ended_at, least(s.sweep_on, given.idle_expires_at)),
        is_over = s.is_over OR given.ended_at IS NOT NULL,
        generation = given.generation,
        refresh_key = given.refresh_key,
        access_token_id = given.access_token_id,
        user_agent = given.user_agent,
        ip_address = given.ip_address,
        device_label = given.device_label,
        device_id = given.device_id,
        ended_at = given.ended_at,
        end_reason = given.end_reason,
        end_note = given.end_note,
        revision = given.revision,
        access_token_ttl = given.access_token_ttl,
        idle_timeout = given.idle_timeout,
        refresh_mode = given.refresh_mode,
        refresh_grace = given.refresh_grace,
        replay = given.replay,
        replay_limit = given.replay_limit,
        on_refresh = given.on_refresh,
        reauthentication_lifetime = given.reauthentication_lifetime,
        expires_at = given.expires_at,
        earlier_tokens_expire_at = given.earlier_tokens_expire_at
    FROM unnest(
        ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
    ) AS given (
        id, refreshed_at, idle_expires_at, generation, refresh_key, access_token_id, user_agent,
        ip_address, device_label, device_id, ended_at, end_reason, end_note, revision,
        access_token_ttl, idle_timeout, refresh_mode, refresh_grace, replay, replay_limit, on_refresh,
        reauthentication_lifetime, expires_at, earlier_tokens_expire_at
    )
    WHERE s.id = given.id";

/// Writes those columns of locked sessions that a refresh or a revocation alters, including the
/// limits, which may have become stricter.
pub async fn save_sessions(
    connection: &mut PooledConnection<'_>,
    changed: &[Session],
) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    let ended = |session: &Session| session.ended.clone();
    let update = statement::<()>(SAVE_SESSIONS)
        .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.id.bytes())))
        .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.refreshed_at)))
        .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.idle_expires_at)))
        .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.lineage.generation)))
        .bind::<Array<Binary>, _>(column(changed, |session| session.lineage.key.0.to_vec()))
        .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.access_token_id.bytes())))
        .bind::<Array<Text>, _>(column(changed, |session| &*session.device.user_agent))
        .bind::<Array<Text>, _>(column(changed, |session| &*session.device.ip_address))
        .bind::<Array<Text>, _>(column(changed, |session| &*session.device.label))
        .bind::<Array<Text>, _>(column(changed, |session| &*session.device.id))
        .bind::<Array<OptionalInstant>, _>(column(changed, |session| {
            ended(session).map(|ended| instant(ended.at))
        }))
        .bind::<Array<OptionalText>, _>(column(changed, |session| {
            ended(session).map(|ended| ended.reason.as_str())
        }))
        .bind::<Array<OptionalText>, _>(column(changed, |session| {
            ended(session).map(|ended| ended.note.into_string())
        }))
        .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.revision)));
    bind_limits(update, changed).execute(&mut **connection).await?;
    Ok(())
}

/// Binds the limits of sessions.
fn bind_limits<'a>(update: Statement<'a, ()>, changed: &'a [Session]) -> Statement<'a, ()> {
    update
        .bind::<Array<Interval>, _>(column(changed, |session| {
            interval(session.policy.access_token_ttl)
        }))
        .bind::<Array<Interval>, _>(column(changed, |session| {
            interval(session.policy.idle_timeout)
        }))
        .bind::<Array<Text>, _>(column(changed, |session| session.policy.refresh.as_str()))
        .bind::<Array<Interval>, _>(column(changed, |session| {
            interval(session.policy.refresh_grace)
        }))
        .bind::<Array<Text>, _>(column(changed, |session| session.policy.replay.as_str()))
        .bind::<Array<Interval>, _>(column(changed, |session| {
            interval(session.policy.replay_limit)
        }))
        .bind::<Array<Text>, _>(column(changed, |session| session.policy.on_refresh.as_str()))
        .bind::<Array<Nullable<Interval>>, _>(column(changed, |session| {
            session.policy.reauthentication_lifetime.map(interval)
        }))
        .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.expires_at)))
        .bind::<Array<OptionalInstant>, _>(column(changed, |session| {
            session.earlier_tokens_expire_at.map(instant)
        }))
}
