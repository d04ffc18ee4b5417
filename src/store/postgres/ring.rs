//! The sealed keys. One statement reads all of them, and only one process at a time changes them.

use diesel::{
    ExpressionMethods, QueryDsl,
    sql_types::{BigInt, Binary, Bool, Nullable, Timestamptz},
    upsert::excluded,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{KeyRow, KeyTuple, SqlKey, instant},
    schema::signing_keys,
    sql::statement,
};
use crate::{
    domain::{
        key::{RefreshKeyId, RingVersion},
        revocation::{FeedPosition, Seq, Timeline},
        time::Timestamp,
    },
    store::{
        StoreError,
        ring::{RingChange, SealedRing},
    },
};

/// Reads all keys and the head of the feed in one statement, and so from one snapshot: a replica
/// that has applied the feed up to that position knows these keys.
pub async fn ring(connection: &mut AsyncPgConnection) -> Result<SealedRing, Fault> {
    let rows: Vec<(i64, i64, i64, Option<KeyTuple>)> =
        statement::<(BigInt, BigInt, BigInt, Nullable<SqlKey>)>(
            "SELECT
                h.ring, feed_timeline(), h.seq, k.created_at, k.kid, k.purpose, k.algorithm,
                k.sealed, k.activated_at, k.retired_at, k.revoked_at
            FROM feed_head AS h
            LEFT JOIN signing_keys AS k ON true",
        )
        .load(connection)
        .await?;
    let [(version, timeline, seq, _), ..] = rows.as_slice() else {
        return Err(StoreError::Damaged("feed_head has no row".to_owned()).into());
    };
    let (version, position) =
        (RingVersion(*version), FeedPosition { timeline: Timeline(*timeline), seq: Seq(*seq) });
    let rows =
        rows.into_iter().filter_map(|(_, _, _, row)| row).map(|row| KeyRow::from(row).named());
    Ok(SealedRing::of_rows(version, position, rows))
}

pub async fn change_ring(
    connection: &mut PooledConnection<'_>,
    change: RingChange,
) -> Result<Option<FeedPosition>, Fault> {
    connection.begin().await?;
    // The row stays locked until the commit. So another process that wants to change the keys
    // waits, and then finds a newer version of the key ring than it expects.
    let counted: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(
        "UPDATE feed_head
        SET ring = ring + 1, seq = seq + 1
        WHERE ring = ?
        RETURNING feed_timeline(), seq",
    )
    .bind::<BigInt, _>(change.version.0)
    .load(&mut **connection)
    .await?;
    let [(timeline, seq)] = *counted.as_slice() else {
        connection.run("ROLLBACK").await?;
        return Ok(None);
    };
    diesel::delete(signing_keys::table.filter(signing_keys::kid.eq_any(change.drop)))
        .execute(&mut **connection)
        .await?;
    for key in change.put {
        diesel::insert_into(signing_keys::table)
            .values(KeyRow::from(key))
            .on_conflict(signing_keys::kid)
            .do_update()
            .set((
                signing_keys::purpose.eq(excluded(signing_keys::purpose)),
                signing_keys::algorithm.eq(excluded(signing_keys::algorithm)),
                signing_keys::sealed.eq(excluded(signing_keys::sealed)),
                signing_keys::activated_at.eq(excluded(signing_keys::activated_at)),
                signing_keys::retired_at.eq(excluded(signing_keys::retired_at)),
                signing_keys::revoked_at.eq(excluded(signing_keys::revoked_at)),
            ))
            .execute(&mut **connection)
            .await?;
    }
    connection.commit().await?;
    Ok(Some(FeedPosition { timeline: Timeline(timeline), seq: Seq(seq) }))
}

pub async fn is_refresh_key_in_use(
    connection: &mut PooledConnection<'_>,
    key: RefreshKeyId,
    now: Timestamp,
) -> Result<bool, Fault> {
    let is_in_use = statement::<Bool>(
        "SELECT EXISTS (
            SELECT FROM sessions WHERE refresh_key = ? AND ended_at IS NULL AND idle_expires_at > ?
        )",
    )
    .bind::<Binary, _>(key.0.to_vec())
    .bind::<Timestamptz, _>(instant(now))
    .get_result(&mut **connection)
    .await?;
    Ok(is_in_use)
}
