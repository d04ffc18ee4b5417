//! The record that watchers may hold leases.

use std::time::Duration;

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl, SqliteConnection, delete,
    insert_into,
};

use super::schema::watchers;
use crate::{domain::time::micros, store::StoreError};

pub fn begin(connection: &mut SqliteConnection, validity: Duration) -> Result<(), StoreError> {
    // The leases of an earlier process may last longer.
    let longest = read(connection)?.unwrap_or_default().max(validity);
    end(connection)?;
    insert_into(watchers::table)
        .values(watchers::validity.eq(micros(longest)))
        .execute(connection)?;
    Ok(())
}

pub fn read(connection: &mut SqliteConnection) -> Result<Option<Duration>, StoreError> {
    let validity: Option<i64> =
        watchers::table.select(watchers::validity).get_result(connection).optional()?;
    Ok(validity.map(|validity| Duration::from_micros(validity.unsigned_abs())))
}

pub fn end(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    delete(watchers::table).execute(connection)?;
    Ok(())
}
