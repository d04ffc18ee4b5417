//! The sealed keys, and how they are changed by one process at a time.

use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    sql_types::{BigInt, Binary, Bool, Timestamptz, Uuid},
    upsert::excluded,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{
    pool::{Fault, Lease},
    rows::{KeyRow, instant, keys, uuid},
    schema::signing_keys,
    sql::statement,
};
use crate::{
    domain::{
        ids::SessionId,
        key::{RefreshKeyId, RingVersion},
        revocation::{Place, Seq, Timeline},
        time::Timestamp,
    },
    store::ring::{RingChange, SealedRing},
};

/// The head is read before the keys: they may be newer than it says, and never older.
pub async fn ring(connection: &mut AsyncPgConnection) -> Result<SealedRing, Fault> {
    let (version, timeline, seq) =
        statement::<(BigInt, BigInt, BigInt)>("SELECT ring, feed_timeline(), seq FROM feed_head")
            .get_result(connection)
            .await?;
    let (keys, damaged) = keys(signing_keys::table.select(KeyRow::as_select()).load(connection).await?);
    let place = Place { timeline: Timeline(timeline), seq: Seq(seq) };
    Ok(SealedRing { version: RingVersion(version), keys, damaged, place })
}

pub async fn change_ring(lease: &mut Lease<'_>, change: RingChange) -> Result<Option<Place>, Fault> {
    lease.begin().await?;
    // The row is locked until the commit, so whoever else changes the keys finds that they have been changed.
    let counted: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(
        "UPDATE feed_head SET ring = ring + 1, seq = seq + 1 WHERE ring = ? RETURNING feed_timeline(), seq",
    )
    .bind::<BigInt, _>(change.version.0)
    .load(&mut **lease)
    .await?;
    let [(timeline, seq)] = *counted.as_slice() else {
        lease.run("ROLLBACK").await?;
        return Ok(None);
    };
    diesel::delete(signing_keys::table.filter(signing_keys::kid.eq_any(change.drop))).execute(&mut **lease).await?;
    for key in change.put {
        diesel::insert_into(signing_keys::table)
            .values(KeyRow::from(key))
            .on_conflict(signing_keys::kid)
            .do_update()
            .set((
                signing_keys::sealed.eq(excluded(signing_keys::sealed)),
                signing_keys::activated_at.eq(excluded(signing_keys::activated_at)),
                signing_keys::retired_at.eq(excluded(signing_keys::retired_at)),
                signing_keys::revoked_at.eq(excluded(signing_keys::revoked_at)),
            ))
            .execute(&mut **lease)
            .await?;
    }
    lease.commit().await?;
    Ok(Some(Place { timeline: Timeline(timeline), seq: Seq(seq) }))
}

pub async fn is_refresh_key_held(
    lease: &mut Lease<'_>,
    key: RefreshKeyId,
    created_until: Timestamp,
    now: Timestamp,
) -> Result<bool, Fault> {
    // One that has been refreshed a moment ago may have moved to another key, and its client may ask once more with the token
    // before that.
    let is_held = statement::<Bool>(
        "SELECT EXISTS (SELECT FROM sessions WHERE id <= ? AND ended_at IS NULL AND idle_expires_at > ? \
         AND (refresh_key = ? OR refreshed_at + refresh_grace >= ?))",
    )
    .bind::<Uuid, _>(uuid(SessionId::last_of_millisecond(created_until).bytes()))
    .bind::<Timestamptz, _>(instant(now))
    .bind::<Binary, _>(key.0.to_vec())
    .bind::<Timestamptz, _>(instant(now))
    .get_result(&mut **lease)
    .await?;
    Ok(is_held)
}
