//! Reads the size of the database and of its tables.

use diesel::{
    ExpressionMethods, QueryDsl, RunQueryDsl, SqliteConnection, dsl::sql, sql_types::BigInt,
};

use super::schema::{audit, blacklist, sessions};
use crate::{
    domain::time::Timestamp,
    store::{
        StoreError,
        sizes::{MOST_EXPIRED, Sizes, TableSize},
    },
};

/// Reads the sizes. Counting the rows reads an index of each table.
pub fn read(connection: &mut SqliteConnection, now: Timestamp) -> Result<Sizes, StoreError> {
    let bytes =
        sql::<BigInt>("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            .get_result(connection)?;
    let rows: [(&str, i64); 3] = [
        ("sessions", sessions::table.count().get_result(connection)?),
        ("blacklist", blacklist::table.count().get_result(connection)?),
        ("audit", audit::table.count().get_result(connection)?),
    ];
    let expired: Vec<i64> = blacklist::table
        .filter(blacklist::expires_at.lt(now.micros()))
        .order(blacklist::expires_at)
        .limit(MOST_EXPIRED)
        .select(blacklist::expires_at)
        .load(connection)?;
    let table =
        |(table, rows): (&str, i64)| TableSize { table: table.to_owned(), rows, bytes: None };
    Ok(Sizes {
        bytes,
        tables: rows.into_iter().map(table).collect(),
        expired_rows: i64::try_from(expired.len()).unwrap_or(i64::MAX),
        oldest_expiry: expired.first().copied().map(Timestamp::from_micros),
    })
}
