//! Connections to the file, and their settings.

use std::path::Path;

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use super::{
    error::OpenError,
    files::{self, beside},
};
use crate::{domain::disk, store::StoreError};

/// Makes a statement wait for a lock that another connection holds, for up to 5 seconds.
pub const BUSY_TIMEOUT: &str = "PRAGMA busy_timeout = 5000";

/// The settings of a connection that only reads.
pub const READER_SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA query_only = ON;";

/// Opens a file with options in the form of SQLite's URI parameters
/// (<https://www.sqlite.org/uri.html>).
pub fn open_with(path: &Path, options: &str) -> Result<SqliteConnection, OpenError> {
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    let name = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let mut connection = SqliteConnection::establish(&format!("file:{name}?{options}"))
        .map_err(|error| other(error.to_string()))?;
    // A store that this process has just dropped may still be writing its log back into the file.
    // With this setting, reads wait for that, and the file does not seem to be damaged.
    connection.batch_execute(BUSY_TIMEOUT).map_err(|error| other(error.to_string()))?;
    Ok(connection)
}

/// Opens the file read-only, as if there were no log beside it.
pub fn open_ignoring_log(path: &Path) -> Result<SqliteConnection, OpenError> {
    open_with(path, "mode=ro&immutable=1")
}

/// Opens the file read-only, with its log if there is one, and creates no file beside it.
///
/// SQLite reads a log by an index in the `-shm` file. `readonly_shm` keeps it from creating or
/// changing this file: if no process has the file open, SQLite builds the index in memory. While a
/// service writes, the index may have no read mark that fits, and this connection may not set one.
/// Then the file is opened as by any other reader, which sets a read mark. A log without a `-shm`
/// file cannot be read.
///
/// A log beside an empty file is ignored, because SQLite would delete it.
pub fn open_leaving_no_trace(path: &Path) -> Result<SqliteConnection, OpenError> {
    if files::is_empty(path) || !beside(path, "-wal").exists() {
        return open_ignoring_log(path);
    }
    let mut connection = open_with(path, "mode=ro&readonly_shm=1")?;
    match connection.batch_execute("SELECT 1 FROM sqlite_schema LIMIT 1") {
        Err(_) if beside(path, "-shm").exists() => open_with(path, "mode=ro"),
        _ => Ok(connection),
    }
}

/// Opens the connection that writes. Its commits survive a power failure (`synchronous=FULL`).
pub fn writer(path: &Path) -> Result<SqliteConnection, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(disk::explain(&error.to_string()).into_owned())
    };
    // If the database was moved away, SQLite would create a new, empty database in its place. This
    // check prevents that.
    if !path.exists() {
        return Err(StoreError::Unavailable(format!("{} is gone", path.display())));
    }
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())
        .map_err(|error| unavailable(&error))?;
    configure_writer(&mut connection).map_err(|error| unavailable(&error))?;
    Ok(connection)
}

pub fn configure_writer(connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
    connection.batch_execute(
        "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA journal_size_limit = 67108864;",
    )
}
