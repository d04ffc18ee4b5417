//! The sealed keys of a file.

use diesel::{
    ExpressionMethods, QueryDsl, QueryableByName, RunQueryDsl, SelectableHelper, SqliteConnection, delete,
    replace_into, sql_query,
    sql_types::{BigInt, Binary, Bool},
    update,
};

use super::{
    rows::{KeyRow, keys},
    schema::{key_ring, signing_keys},
    writes::newest_place,
};
use crate::{
    domain::{
        ids::SessionId,
        key::{RefreshKeyId, RingVersion},
        revocation::Place,
        time::Timestamp,
    },
    store::{
        StoreError,
        ring::{RingChange, SealedRing},
    },
};

pub fn ring(connection: &mut SqliteConnection) -> Result<SealedRing, StoreError> {
    let version = key_ring::table.select(key_ring::version).first(connection)?;
    let (keys, damaged) = keys(signing_keys::table.select(KeyRow::as_select()).load(connection)?);
    Ok(SealedRing { version: RingVersion(version), keys, damaged, place: newest_place(connection)? })
}

/// Nobody else is to be told, so it takes no place of its own.
pub fn change_ring(connection: &mut SqliteConnection, change: RingChange) -> Result<Option<Place>, StoreError> {
    let counted = update(key_ring::table.filter(key_ring::version.eq(change.version.0)))
        .set(key_ring::version.eq(key_ring::version + 1))
        .execute(connection)?;
    if counted == 0 {
        return Ok(None);
    }
    delete(signing_keys::table.filter(signing_keys::kid.eq_any(change.drop))).execute(connection)?;
    for key in change.put {
        replace_into(signing_keys::table).values(KeyRow::from(key)).execute(connection)?;
    }
    newest_place(connection).map(Some)
}

pub fn is_refresh_key_held(
    connection: &mut SqliteConnection,
    key: RefreshKeyId,
    created_until: Timestamp,
    now: Timestamp,
) -> Result<bool, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        is_held: bool,
    }
    // One that has been refreshed a moment ago may have moved to another key, and its client may ask once more with the token
    // before that.
    let row: Row = sql_query(
        "SELECT EXISTS (SELECT 1 FROM sessions WHERE id <= ? AND ended_at IS NULL AND idle_expires_at > ? \
         AND (refresh_key = ? OR refreshed_at + refresh_grace >= ?)) AS is_held",
    )
    .bind::<Binary, _>(SessionId::last_of_millisecond(created_until).bytes().as_slice())
    .bind::<BigInt, _>(now.micros())
    .bind::<Binary, _>(key.0.as_slice())
    .bind::<BigInt, _>(now.micros())
    .get_result(connection)?;
    Ok(row.is_held)
}
