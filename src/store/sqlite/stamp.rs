//! Tells a write-ahead log (`-wal`) that belongs to another database file, so that it is not
//! applied to the wrong one.
//!
//! SQLite applies a log to whatever file lies beside it. After a crash, a backup that is copied over
//! the database would silently become the data before the copy again. So each process stamps the file
//! before it writes for the first time: it writes a random number into the header
//! (`PRAGMA user_version`), and records that number and the schema version in the lock file beside the
//! database. Neither changes until the next process writes.
//! A copy made earlier has an older number, and copies made by SQLite's backup or by VACUUM INTO
//! have another schema version.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    sql_query,
    sql_types::{BigInt, Integer},
};

use super::open::{LOCK_FILE, OpenError, beside, open_ignoring_log};

/// The part of a file's header by which it is told from its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
struct Stamp {
    /// Drawn at random by each start.
    #[diesel(sql_type = Integer)]
    user_version: i32,
    /// Counted up by each change of the schema, and by each tool that copies the file.
    #[diesel(sql_type = Integer)]
    schema_version: i32,
}

const WORD: &str = "stamp";

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD} {} {}", self.user_version, self.schema_version)
    }
}

impl FromStr for Stamp {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [WORD, user_version, schema_version] => Ok(Self {
                user_version: user_version.parse().map_err(|_| ())?,
                schema_version: schema_version.parse().map_err(|_| ())?,
            }),
            _ => Err(()),
        }
    }
}

const READ: &str = "SELECT user_version, schema_version FROM pragma_user_version, pragma_schema_version";

/// The length of a log's header. A log that is not longer holds no change.
const LOG_HEADER: u64 = 32;

/// Refuses a log that does not belong to the file. A file without a log that is not the one used
/// here last is a backup that was put back by hand, and is worth a warning.
pub fn check(path: &Path) -> Result<(), OpenError> {
    let has_log = beside(path, "-wal").metadata().is_ok_and(|log| log.len() > LOG_HEADER);
    let is_there = path.metadata().is_ok_and(|file| file.len() > 0);
    if has_log && !is_there {
        return Err(OpenError::LogAlone(path.to_owned()));
    }
    let (Some(recorded), true) = (recorded(path), is_there) else { return Ok(()) };
    // What cannot be read is found to be damaged by the check that comes next.
    let Some(found) = open_ignoring_log(path).ok().and_then(|mut file| sql_query(READ).get_result(&mut file).ok())
    else {
        return Ok(());
    };
    match recorded == found {
        true => Ok(()),
        false if has_log => Err(OpenError::ForeignLog(path.to_owned())),
        false => {
            tracing::warn!(
                database = %path.display(),
                "this is not the database file that was used here last: if it is a backup, stop the service and run \
                 `countersign restore` without a file, so that what was revoked since the backup stays revoked"
            );
            Ok(())
        }
    }
}

/// Forgets the recorded stamp, before anything is written that may change the stamp of the file.
pub fn forget(path: &Path) -> Result<(), OpenError> {
    let path = beside(path, LOCK_FILE);
    let forgotten = record_file(&path).and_then(|record| record.set_len(0).and_then(|()| record.sync_all()));
    forgotten.map_err(|source| OpenError::Io { path, source })
}

/// Stamps the file anew and records it. The service can do without: on a disk that is full it
/// still validates, so nothing fails because of this.
pub fn renew(path: &Path, connection: &mut SqliteConnection) {
    if let Err(problem) = forget(path).map_err(|error| error.to_string()).and_then(|()| try_renew(path, connection)) {
        tracing::warn!(
            database = %path.display(), problem,
            "the database file could not be stamped: a -wal file that belongs to another file would not be noticed"
        );
    }
}

#[derive(QueryableByName)]
struct Drawn {
    #[diesel(sql_type = Integer)]
    number: i32,
}

#[derive(QueryableByName)]
struct Checkpoint {
    #[diesel(sql_type = BigInt)]
    busy: i64,
}

fn try_renew(path: &Path, connection: &mut SqliteConnection) -> Result<(), String> {
    let database = |error: diesel::result::Error| error.to_string();
    let drawn: Drawn =
        sql_query("SELECT abs(random() % 2147483647) AS number").get_result(connection).map_err(database)?;
    connection.batch_execute(&format!("PRAGMA user_version = {}", drawn.number)).map_err(database)?;
    // From the log into the file, where the stamp is looked for.
    let checkpoint: Checkpoint =
        sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(connection).map_err(database)?;
    if checkpoint.busy != 0 {
        return Err("another connection reads it".to_owned());
    }
    let stamp: Stamp = sql_query(READ).get_result(connection).map_err(database)?;
    let text = format!("# Tells whether the -wal file belongs to the database file. Do not edit.\n{stamp}\n");
    let mut record = record_file(&beside(path, LOCK_FILE)).map_err(|error| error.to_string())?;
    let written = record.write_all(text.as_bytes()).and_then(|()| record.sync_all());
    written.map_err(|error| error.to_string())
}

fn record_file(path: &Path) -> io::Result<File> {
    // Nobody else writes it, because its lock is held.
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn recorded(path: &Path) -> Option<Stamp> {
    let text = fs::read_to_string(beside(path, LOCK_FILE)).ok()?;
    text.lines().find_map(|line| line.parse().ok())
}

/// Refuses a database into which a backup was being put when the process was killed.
pub fn refuse_unfinished_restore(path: &Path) -> Result<(), OpenError> {
    let ready: PathBuf = beside(path, super::backup::READY);
    match ready.exists() {
        true => Err(OpenError::RestoreUnfinished { path: path.to_owned(), ready }),
        false => Ok(()),
    }
}
