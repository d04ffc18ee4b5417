//! Ends or counts the sessions that a cut-off covers, in batches of limited size.
//!
//! A batch reads sessions in the order of their identifiers: those of one subject or tenant by the
//! index, and those of all tenants by the primary key. The client and the authentication are in no
//! index, so they are compared in the rows that the batch has read.

use diesel::{
    data_types::PgTimestamp,
    sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    super::{
        connection::{fault::Fault, pool::PooledConnection},
        feed::entries,
        rows::{instant, timestamp, uuid},
        sql::{Statement, statement},
    },
    sweep::{end_as_given, ended_batch, id_after},
};
use crate::{
    domain::{
        cut_off::{CutOff, CutOffKey, Scope},
        ids::SessionId,
        revocation::RETENTION_MARGIN,
        time::Timestamp,
    },
    store::{CountedBatch, CutOffEntry, EndedBatch, Walk},
};

/// Expands to a statement on the common table expressions `given`, which holds the cut-off, and
/// `looked_at`, which holds the sessions of the batch. `$in_scope` is empty for all tenants, and
/// otherwise a condition for one tenant or one subject.
macro_rules! of_batch {
    ($in_scope:literal, $($rest:expr),*) => {
        concat!(
            "WITH given AS (
                SELECT
                    ?::timestamptz AS at, ?::text AS reason, ?::text AS note, ?::uuid AS spared,
                    ?::text AS client_id, ?::timestamptz AS authenticated_up_to
            ),
            looked_at AS MATERIALIZED (
                SELECT
                    id,
                    NOT is_over
                        AND ((SELECT client_id FROM given) IS NULL
                            OR client_id = (SELECT client_id FROM given))
                        AND ((SELECT authenticated_up_to FROM given) IS NULL
                            OR authenticated_at <= (SELECT authenticated_up_to FROM given))
                    AS is_covered
                FROM sessions
                WHERE ",
            $in_scope,
            " id >= ? AND id <= ?
                ORDER BY id
                LIMIT ?
            )",
            $($rest),*
        )
    };
}

/// Expands to the statement that ends the covered sessions of a batch. If another transaction has
/// just changed a row, PostgreSQL evaluates the conditions of the UPDATE again on the new version
/// of the row.
macro_rules! end_covered {
    ($in_scope:literal) => {
        of_batch!(
            $in_scope,
            ", ended AS (
                UPDATE sessions AS s
                SET ",
            end_as_given!(),
            "   FROM looked_at, given
                WHERE s.id = looked_at.id AND looked_at.is_covered
                    AND s.id IS DISTINCT FROM given.spared
                    AND (given.authenticated_up_to IS NULL
                        OR s.authenticated_at <= given.authenticated_up_to)
                    AND s.ended_at IS NULL AND s.idle_expires_at > given.at
                RETURNING s.id
            )
            SELECT
                looked_at.id,
                (SELECT count(*) FROM ended),
                (
                    SELECT max(
                        greatest(
                            least(
                                greatest(
                                    given.at,
                                    s.refreshed_at + s.refresh_grace,
                                    CASE s.replay
                                        WHEN 'until_used' THEN s.refreshed_at + s.replay_limit
                                    END
                                ) + s.access_token_ttl,
                                s.idle_expires_at
                            ),
                            s.earlier_tokens_expire_at
                        )
                    )
                    FROM sessions AS s
                    JOIN looked_at ON s.id = looked_at.id AND looked_at.is_covered, given
                )
            FROM looked_at
            ORDER BY looked_at.id DESC
            LIMIT 1"
        )
    };
}

/// Expands to the statement that counts the covered live sessions of a batch.
macro_rules! count_covered {
    ($in_scope:literal) => {
        of_batch!(
            $in_scope,
            " SELECT
                looked_at.id,
                (SELECT count(*) FROM looked_at),
                (
                    SELECT count(*)
                    FROM sessions AS s
                    JOIN looked_at ON s.id = looked_at.id AND looked_at.is_covered, given
                    WHERE s.id IS DISTINCT FROM given.spared
                        AND s.ended_at IS NULL AND s.idle_expires_at > given.at
                )
            FROM looked_at
            ORDER BY looked_at.id DESC
            LIMIT 1"
        )
    };
}

/// The cut-off and the range of a batch.
struct Batch<'a> {
    key: &'a CutOffKey,
    cut_off: CutOff,
    at: Timestamp,
    reason: &'a str,
    note: &'a str,
    first: [u8; 16],
    limit: i64,
}

impl<'a> Batch<'a> {
    /// Binds the values of a statement on this batch.
    fn bind<Row>(&self, statement: Statement<'a, Row>) -> Statement<'a, Row>
    where
        Row: 'a,
    {
        let authenticated_up_to = self.key.last_authentication(self.cut_off);
        let mut statement = statement
            .bind::<Timestamptz, _>(instant(self.at))
            .bind::<Text, _>(self.reason)
            .bind::<Text, _>(self.note)
            .bind::<Nullable<SqlUuid>, _>(self.cut_off.spared.map(|id| uuid(id.bytes())))
            .bind::<Nullable<Text>, _>(self.key.scope().client_id().map(|client_id| &**client_id))
            .bind::<Nullable<Timestamptz>, _>(authenticated_up_to.map(instant));
        if let Some(tenant) = self.key.scope().tenant() {
            statement = statement.bind::<Text, _>(&**tenant);
        }
        if let Some(subject) = self.key.scope().subject() {
            statement = statement.bind::<Text, _>(&**subject);
        }
        statement
            .bind::<SqlUuid, _>(uuid(&self.first))
            .bind::<SqlUuid, _>(uuid(self.key.last_session(self.cut_off).bytes()))
            .bind::<BigInt, _>(self.limit)
    }
}

/// Ends covered sessions in one transaction. If one of their tokens can be valid for longer than
/// the entry of the cut-off is kept, the entry is written again with a later expiry, so that
/// replicas keep it for long enough.
pub async fn end(
    connection: &mut PooledConnection<'_>,
    entry: &CutOffEntry,
    walk: Walk,
    limit: i64,
) -> Result<Option<EndedBatch>, Fault> {
    connection.begin().await?;
    let Some(first) = id_after(walk.after) else { return finish(connection, entry, walk).await };
    let text = match entry.key.scope() {
        Scope::Everywhere | Scope::ClientEverywhere(_) => end_covered!(""),
        Scope::Tenant(_) | Scope::Client(..) => end_covered!("tenant = ? AND NOT is_over AND"),
        Scope::Subject(..) => end_covered!("tenant = ? AND subject = ? AND NOT is_over AND"),
    };
    let batch = Batch {
        key: &entry.key,
        cut_off: entry.cut_off,
        at: entry.ended.at,
        reason: entry.ended.reason.as_str(),
        note: &entry.ended.note,
        first,
        limit,
    };
    let looked_at: Vec<(Uuid, i64, Option<PgTimestamp>)> = batch
        .bind(statement::<(SqlUuid, BigInt, Nullable<Timestamptz>)>(text))
        .load(&mut **connection)
        .await?;
    let Some((last, sessions, needed_until)) = looked_at.into_iter().next() else {
        return finish(connection, entry, walk).await;
    };
    let needed_until =
        needed_until.map(|needed_until| timestamp(needed_until).plus(RETENTION_MARGIN));
    if let Some(needed_until) = needed_until.filter(|needed_until| *needed_until > entry.expires_at)
    {
        entries::insert_entries(connection, &[entry.until(needed_until)]).await?;
    }
    if sessions > 0 {
        // This comes after the head of the feed was locked, if it was, because others lock the head
        // before the entry.
        let key = entry.key.borrowed();
        statement::<()>(
            "UPDATE blacklist SET ended_sessions = ended_sessions + ? WHERE kind = ? AND key = ?",
        )
        .bind::<BigInt, _>(sessions)
        .bind::<Text, _>(key.kind.as_str())
        .bind::<Text, _>(key.text())
        .execute(&mut **connection)
        .await?;
    }
    connection.commit().await?;
    Ok(Some(ended_batch((last, sessions))))
}

/// Marks an entry as finished and commits. If the same sessions were revoked again, the entry has
/// another `seq` now, and so stays unfinished.
async fn finish(
    connection: &mut PooledConnection<'_>,
    entry: &CutOffEntry,
    walk: Walk,
) -> Result<Option<EndedBatch>, Fault> {
    statement::<()>("UPDATE blacklist SET unfinished = false, walked_at = ? WHERE seq = ?")
        .bind::<Timestamptz, _>(instant(walk.began_at))
        .bind::<BigInt, _>(entry.seq.0)
        .execute(&mut **connection)
        .await?;
    connection.commit().await?;
    Ok(None)
}

/// Counts covered sessions.
pub async fn count(
    connection: &mut PooledConnection<'_>,
    (key, cut_off): (&CutOffKey, CutOff),
    now: Timestamp,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<CountedBatch>, Fault> {
    let Some(first) = id_after(after) else { return Ok(None) };
    let text = match key.scope() {
        Scope::Everywhere | Scope::ClientEverywhere(_) => count_covered!(""),
        Scope::Tenant(_) | Scope::Client(..) => count_covered!("tenant = ? AND NOT is_over AND"),
        Scope::Subject(..) => count_covered!("tenant = ? AND subject = ? AND NOT is_over AND"),
    };
    let batch = Batch { key, cut_off, at: now, reason: "", note: "", first, limit };
    let looked_at: Vec<(Uuid, i64, i64)> =
        batch.bind(statement::<(SqlUuid, BigInt, BigInt)>(text)).load(&mut **connection).await?;
    Ok(looked_at.into_iter().next().map(|(last, looked_at, sessions)| CountedBatch {
        last: SessionId::from_bytes(last.into_bytes()),
        looked_at,
        sessions,
    }))
}
