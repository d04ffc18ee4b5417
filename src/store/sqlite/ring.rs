//! Reads and changes the sealed keys.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, QueryDsl, RunQueryDsl, SelectableHelper,
    SqliteConnection, delete, dsl::exists, replace_into, select, update,
};

use super::{
    rows::KeyRow,
    schema::{key_ring, sessions, signing_keys},
    writes::{newest_position, take_position},
};
use crate::{
    domain::{
        key::{RefreshKeyId, RingVersion},
        revocation::FeedPosition,
        time::Timestamp,
    },
    store::{
        StoreError,
        ring::{RingChange, SealedRing},
    },
};

pub fn ring(connection: &mut SqliteConnection) -> Result<SealedRing, StoreError> {
    let version = key_ring::table.select(key_ring::version).get_result(connection)?;
    let rows: Vec<KeyRow> = signing_keys::table.select(KeyRow::as_select()).load(connection)?;
    let position = newest_position(connection)?;
    Ok(SealedRing::of_rows(RingVersion(version), position, rows.into_iter().map(KeyRow::named)))
}

/// Changes the keys. The change gets a position in the feed, because watchers have to learn of it.
pub fn change_ring(
    connection: &mut SqliteConnection,
    change: RingChange,
) -> Result<Option<FeedPosition>, StoreError> {
    let counted = update(key_ring::table.filter(key_ring::version.eq(change.version.0)))
        .set(key_ring::version.eq(key_ring::version + 1))
        .execute(connection)?;
    if counted == 0 {
        return Ok(None);
    }
    delete(signing_keys::table.filter(signing_keys::kid.eq_any(change.drop)))
        .execute(connection)?;
    for key in change.put {
        replace_into(signing_keys::table).values(KeyRow::from(key)).execute(connection)?;
    }
    take_position(connection).map(Some)
}

pub fn is_refresh_key_in_use(
    connection: &mut SqliteConnection,
    key: RefreshKeyId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let holders = sessions::table
        .filter(sessions::refresh_key.eq(key.0.as_slice()))
        .filter(sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(now.micros())));
    Ok(select(exists(holders)).get_result(connection)?)
}
