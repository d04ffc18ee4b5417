//! Gives the pages that deleted rows have left back to the file system.

use diesel::{
    QueryResult, RunQueryDsl, SqliteConnection, connection::SimpleConnection, dsl::sql,
    sql_types::BigInt,
};

use crate::store::StoreError;

/// Makes a new database keep track of what each page belongs to, so that pages can be moved to
/// where others became free (<https://www.sqlite.org/pragma.html#pragma_auto_vacuum>). It does not
/// change a database that has tables.
pub const KEEP_TRACK: &str = "PRAGMA auto_vacuum = INCREMENTAL";

/// The value of that setting which stands for `INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Makes the copies that `VACUUM INTO` makes through this connection keep track, too, if the
/// database does not. One that does is left alone, because this setting would be written to it.
pub fn keep_track_in_copies(connection: &mut SqliteConnection) -> QueryResult<()> {
    match sql::<BigInt>("PRAGMA auto_vacuum").get_result::<i64>(connection)? {
        INCREMENTAL => Ok(()),
        _ => connection.batch_execute(KEEP_TRACK),
    }
}

/// Pages that one transaction gives back at most: 1 MiB at the usual size of 4 KiB.
pub const RELEASED_AT_ONCE: i64 = 256;

/// One in so many pages in use stays free for the rows to come: as many are usually made as
/// deleted, and a file that shrinks and grows again is written twice.
const KEPT_SHARE: i64 = 8;

/// The number of pages that are free and need not be. Zero in a database of an older version,
/// which has not kept track of its pages.
pub fn surplus(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let mut value = |pragma: &str| sql::<BigInt>(pragma).get_result::<i64>(connection);
    if value("PRAGMA auto_vacuum")? != INCREMENTAL {
        return Ok(0);
    }
    let (pages, free) = (value("PRAGMA page_count")?, value("PRAGMA freelist_count")?);
    let kept = (pages - free) / KEPT_SHARE;
    Ok((free - kept).max(0))
}

/// Gives this many pages back, but no more than [`RELEASED_AT_ONCE`]. The file is shorter once
/// SQLite has written its log back into it.
pub fn release(connection: &mut SqliteConnection, surplus: i64) -> Result<(), StoreError> {
    let pages = surplus.min(RELEASED_AT_ONCE);
    // It takes a step a page, which only this function takes to the end.
    Ok(connection.batch_execute(&format!("PRAGMA incremental_vacuum({pages})"))?)
}
