//! Gives back to the file system the pages that deleted rows have left.

use diesel::{
    QueryResult, RunQueryDsl, SqliteConnection, connection::SimpleConnection, dsl::sql,
    sql_types::BigInt,
};

use crate::store::StoreError;

/// Makes a new database keep track of what each page belongs to, so that pages can be moved into
/// free ones (<https://www.sqlite.org/pragma.html#pragma_auto_vacuum>). This does not change a
/// database that has tables.
pub const KEEP_TRACK: &str = "PRAGMA auto_vacuum = INCREMENTAL";

/// The value of that setting for `INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Makes the copies that `VACUUM INTO` creates over this connection keep track of their pages, if
/// the database does not. A database that does is left alone, because the setting would be written
/// to it.
pub fn keep_track_in_copies(connection: &mut SqliteConnection) -> QueryResult<()> {
    match sql::<BigInt>("PRAGMA auto_vacuum").get_result::<i64>(connection)? {
        INCREMENTAL => Ok(()),
        _ => connection.batch_execute(KEEP_TRACK),
    }
}

/// The largest number of pages that one transaction gives back: 1 MiB at the usual page size of 4
/// KiB.
pub const RELEASED_AT_ONCE: i64 = 256;

/// The number of pages in use for which one free page is kept for new rows. Usually as many rows
/// are added as deleted, and a file that shrinks and grows again is written twice.
const KEPT_SHARE: i64 = 8;

/// Returns the number of free pages that need not be kept. It is zero in a database of an older
/// version, which has not kept track of its pages.
pub fn surplus(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let mut value = |pragma: &str| sql::<BigInt>(pragma).get_result::<i64>(connection);
    if value("PRAGMA auto_vacuum")? != INCREMENTAL {
        return Ok(0);
    }
    let (pages, free) = (value("PRAGMA page_count")?, value("PRAGMA freelist_count")?);
    let kept = (pages - free) / KEPT_SHARE;
    Ok((free - kept).max(0))
}

/// Gives up to this many pages back, and no more than [`RELEASED_AT_ONCE`]. The file is shorter
/// once SQLite has written its log back into it.
pub fn release(connection: &mut SqliteConnection, surplus: i64) -> Result<(), StoreError> {
    let pages = surplus.min(RELEASED_AT_ONCE);
    // The pragma takes one step a page, and only `batch_execute` runs it to the end.
    Ok(connection.batch_execute(&format!("PRAGMA incremental_vacuum({pages})"))?)
}
