//! Reads the size of the database.

use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection, sql_query,
    sql_types::{BigInt, Nullable},
};

use crate::{
    domain::time::Timestamp,
    store::{
        StoreError,
        sizes::{MOST_EXPIRED, Sizes},
    },
};

/// The bytes of the file, and the expired rows of the blacklist. SQLite keeps no numbers of rows,
/// and counting those of large tables would read all of their pages.
const SIZES: &str = "
    SELECT
        page_count * page_size AS bytes,
        (
            SELECT count(*)
            FROM (
                SELECT 1
                FROM blacklist
                WHERE expires_at < ?
                LIMIT ?
            )
        ) AS expired_rows,
        (
            SELECT min(expires_at)
            FROM blacklist
            WHERE expires_at < ?
        ) AS oldest_expiry
    FROM pragma_page_count, pragma_page_size
";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = BigInt)]
    expired_rows: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    oldest_expiry: Option<i64>,
}

/// Reads the sizes.
pub fn read(connection: &mut SqliteConnection, now: Timestamp) -> Result<Sizes, StoreError> {
    let row: Row = sql_query(SIZES)
        .bind::<BigInt, _>(now.micros())
        .bind::<BigInt, _>(MOST_EXPIRED)
        .bind::<BigInt, _>(now.micros())
        .get_result(connection)?;
    Ok(Sizes {
        bytes: row.bytes,
        tables: vec![],
        expired_rows: row.expired_rows,
        oldest_expiry: row.oldest_expiry.map(Timestamp::from_micros),
    })
}
