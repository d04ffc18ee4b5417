//! Gives the pages that deleted rows have left back to the file system.

use diesel::{
    QueryResult, RunQueryDsl, SqliteConnection, connection::SimpleConnection, dsl::sql,
    sql_types::BigInt,
};

use crate::store::StoreError;

/// Makes a new database keep track of what each page belongs to, so that SQLite can move pages into
/// free ones (<https://www.sqlite.org/pragma.html#pragma_auto_vacuum>). The setting has no effect
/// on a database that already has tables.
pub const KEEP_TRACK: &str = "PRAGMA auto_vacuum = INCREMENTAL";

/// The value of the setting `auto_vacuum` for `INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Makes the copies that `VACUUM INTO` creates over this connection keep track of their pages, even
/// if the database does not. If the database does, nothing is set, because SQLite would write the
/// setting to the database.
pub fn keep_track_in_copies(connection: &mut SqliteConnection) -> QueryResult<()> {
    match sql::<BigInt>("PRAGMA auto_vacuum").get_result::<i64>(connection)? {
        INCREMENTAL => Ok(()),
        _ => connection.batch_execute(KEEP_TRACK),
    }
}

/// The largest number of pages that one transaction gives back: 1 MiB at the usual page size of 4
/// KiB.
pub const RELEASED_AT_ONCE: i64 = 256;

/// One free page is kept for this many pages in use, for new rows. Usually as many rows are added
/// as are deleted, and if the file shrank and grew again, its pages would be written twice.
const KEPT_SHARE: i64 = 8;

/// Returns the number of free pages that need not be kept. This is zero for a database that an
/// older version created, because such a database does not keep track of its pages.
pub fn surplus(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let mut value = |pragma: &str| sql::<BigInt>(pragma).get_result::<i64>(connection);
    if value("PRAGMA auto_vacuum")? != INCREMENTAL {
        return Ok(0);
    }
    let (pages, free) = (value("PRAGMA page_count")?, value("PRAGMA freelist_count")?);
    let kept = (pages - free) / KEPT_SHARE;
    Ok((free - kept).max(0))
}

/// Gives `surplus` pages back, but no more than [`RELEASED_AT_ONCE`]. The file becomes shorter once
/// SQLite has written its log back into it.
pub fn release(connection: &mut SqliteConnection, surplus: i64) -> Result<(), StoreError> {
    let pages = surplus.min(RELEASED_AT_ONCE);
    // The pragma needs one step for each page, and only `batch_execute` runs all steps.
    Ok(connection.batch_execute(&format!("PRAGMA incremental_vacuum({pages})"))?)
}
