//! The size of a database at one moment, for metrics.

use crate::domain::time::Timestamp;

/// The tables whose sizes are reported.
pub const TABLES: [&str; 3] = ["sessions", "blacklist", "audit"];

/// The largest number of expired rows that are counted.
pub const MOST_EXPIRED: i64 = 100_000;

/// The size of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The bytes of the whole database.
    pub bytes: i64,
    /// The tables, as far as the engine knows them.
    pub tables: Vec<TableSize>,
    /// The number of blacklist rows that have expired and are not deleted yet, but at most
    /// [`MOST_EXPIRED`].
    pub expired_rows: i64,
    /// The expiry of the oldest of these rows.
    pub oldest_expiry: Option<Timestamp>,
}

/// The size of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// The name of the table.
    pub table: String,
    /// The number of rows, which PostgreSQL estimates.
    pub rows: i64,
    /// The bytes of the table with its indexes, if the engine knows them.
    pub bytes: Option<i64>,
}
