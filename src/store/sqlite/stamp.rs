//! Detects a write-ahead log (`-wal`) that belongs to another database file, so that SQLite does
//! not apply the log to the wrong file.
//!
//! SQLite applies a log to whatever database file it finds beside the log. If an operator copies a
//! backup over the database after a crash, the log of the crashed process would silently turn the
//! backup into the data from before the copying. So each process stamps the file soon after its
//! first write: it writes a random number into the header (`PRAGMA user_version`), and records this
//! number and the schema version in the lock file beside the database. The number does not change
//! until the next process writes.
//!
//! A copy that was made during an earlier run of the service has an older number. A copy that was
//! made by `countersign backup` has a mark instead of a number. A copy that was made by SQLite's
//! own backup has a lower schema version. So the stamps of these copies differ from the recorded
//! one. A higher schema version alone is no reason to reject a file, because an operator may have
//! added an index. Then the number that is read through the log must be the same as in the file,
//! and the schema version must not be lower.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    str::FromStr,
    time::Duration,
};

use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    sql_query,
    sql_types::{BigInt, Integer},
};
use tokio::time::Instant;

use super::{
    connection::{open_ignoring_log, open_with},
    error::OpenError,
    files::{self, LOCK_FILE, beside},
};

/// The fields of a file's header that distinguish it from its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
struct Stamp {
    /// The random number, never negative, of the last process that wrote to the file; or [`COPY`].
    #[diesel(sql_type = Integer)]
    user_version: i32,
    /// The number of changes of the schema. In a copy by SQLite's own backup, it begins at 1 again.
    #[diesel(sql_type = Integer)]
    schema_version: i32,
}

/// The value of `user_version` in a copy that was made by `countersign backup`.
const COPY: i32 = -1;

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

const READ: &str =
    "SELECT user_version, schema_version FROM pragma_user_version, pragma_schema_version";

/// Rejects a log that does not belong to the file. If there is no log, but the file is a copy, or
/// another file than the one that was last used here, an operator has probably put a backup there
/// by hand. Then a warning is logged.
///
/// Returns whether the process that last used this file closed it cleanly.
pub fn check(path: &Path) -> Result<bool, OpenError> {
    files::refuse_log_alone(path)?;
    if files::is_empty(path) {
        return Ok(false);
    }
    let has_log = files::has_log(path);
    // A file that cannot be read is accepted here, because the next check reports the damage.
    let Some(found) = open_ignoring_log(path).ok().and_then(|mut file| read(&mut file)) else {
        return Ok(false);
    };
    let (is_known, is_the_same) = match recorded(path) {
        Some(recorded) => (true, recorded == found || continues(path, recorded, found, has_log)),
        None => (false, false),
    };
    match (is_known, has_log) {
        (true, _) if is_the_same => {}
        (true, true) => return Err(OpenError::ForeignLog(path.to_owned())),
        // If no stamp is recorded, as after an upgrade, any log is accepted.
        (false, true) => {}
        (_, false) if found.user_version == COPY => tracing::warn!(
            database = %path.display(),
            "this database file is a copy that was made by `countersign backup`: stop the service \
             and run `countersign restore` without a file, so that what was revoked since the \
             backup stays revoked"
        ),
        (true, false) => tracing::warn!(
            database = %path.display(),
            "this is not the database file that was used here last: if it is a backup, stop the \
             service and run `countersign restore` without a file, so that what was revoked since \
             the backup stays revoked"
        ),
        (false, false) => {}
    }
    Ok(is_the_same && !has_log)
}

/// Returns whether a file is the one of the recorded stamp, and an operator has changed its schema
/// since (for example by `CREATE INDEX`).
fn continues(path: &Path, recorded: Stamp, found: Stamp, has_log: bool) -> bool {
    let is_changed = found.user_version == recorded.user_version
        && found.schema_version > recorded.schema_version;
    is_changed && (!has_log || log_continues(path, found))
}

/// Returns whether the log beside a file belongs to it. Read through the log, the number must be
/// the same as in the file, and the schema version not lower. A log that cannot be read counts as
/// belonging to the file, because the next check reports the damage.
fn log_continues(path: &Path, found: Stamp) -> bool {
    let seen = open_with(path, "mode=ro").ok().and_then(|mut both| read(&mut both));
    seen.is_none_or(|seen| {
        seen.user_version == found.user_version && seen.schema_version >= found.schema_version
    })
}

fn read(connection: &mut SqliteConnection) -> Option<Stamp> {
    sql_query(READ).get_result(connection).ok()
}

fn set_number(path: &Path, number: i32) -> Result<(), String> {
    let mut connection = open_with(path, "mode=rw").map_err(|error| error.to_string())?;
    connection
        .batch_execute(&format!("PRAGMA user_version = {number}"))
        .map_err(|error| error.to_string())
}

/// Marks a file as a copy. No process may have the file open.
pub fn mark_as_copy(path: &Path) -> Result<(), String> {
    set_number(path, COPY)
}

/// Removes the mark of a copy from a file that is to become the database. No process may have the
/// file open.
pub fn clear_mark(path: &Path) -> Result<(), String> {
    set_number(path, 0)
}

/// Deletes the recorded stamp. This must precede any write that may change the stamp of the file.
pub fn forget(path: &Path) -> Result<(), OpenError> {
    let path = beside(path, LOCK_FILE);
    let forgotten =
        record_file(&path).and_then(|record| record.set_len(0).and_then(|()| record.sync_all()));
    forgotten.map_err(|source| OpenError::Io { path, source })
}

/// The pause after the file could not be stamped, for instance because a reader uses an old
/// snapshot.
const RETRY: Duration = Duration::from_secs(60);

/// The state of the stamp of a process that writes to a file.
#[derive(Debug)]
pub struct Stamping {
    /// The instant from which the file may be stamped; none if it has been stamped.
    due: Option<Instant>,
}

impl Stamping {
    /// Creates the state of a process that has not written yet.
    pub fn new() -> Self {
        Self { due: Some(Instant::now()) }
    }

    /// Returns whether the file is to be stamped now.
    pub fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// Stamps the file and records the stamp, without waiting for readers. If this fails, it is
    /// tried again later, and no other operation fails: the service works without a stamp, and
    /// still validates when its disk is full.
    pub fn renew(&mut self, path: &Path, connection: &mut SqliteConnection) {
        let renewed =
            forget(path).map_err(|error| error.to_string()).and_then(|()| renew(path, connection));
        self.due = renewed.err().map(|problem| {
            tracing::warn!(
                database = %path.display(), problem,
                "the database file could not be stamped: a -wal file that belongs to another file \
                 would not be noticed; it is tried again in a minute"
            );
            Instant::now() + RETRY
        });
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    number: i32,
}

/// The result of a checkpoint. It shows whether another connection prevented the checkpoint, how
/// many frames the log has, and how many of them have been copied to the file.
#[derive(QueryableByName)]
struct Checkpoint {
    #[diesel(sql_type = BigInt)]
    busy: i64,
    #[diesel(sql_type = BigInt)]
    log: i64,
    #[diesel(sql_type = BigInt)]
    checkpointed: i64,
}

fn renew(path: &Path, connection: &mut SqliteConnection) -> Result<(), String> {
    let database = |error: diesel::result::Error| error.to_string();
    let random: Number = sql_query("SELECT abs(random() % 2147483647) AS number")
        .get_result(connection)
        .map_err(database)?;
    connection
        .batch_execute(&format!("PRAGMA user_version = {}", random.number))
        .map_err(database)?;
    // The checkpoint copies the stamp from the log into the file, from where it is read later. A
    // passive checkpoint does not wait for other connections.
    let Checkpoint { busy, log, checkpointed } =
        sql_query("PRAGMA wal_checkpoint(PASSIVE)").get_result(connection).map_err(database)?;
    // If another connection prevents the checkpoint altogether, SQLite returns `busy`, and -1 for
    // both numbers.
    if busy != 0 || checkpointed < log {
        return Err("another connection reads it".to_owned());
    }
    let stamp = read(connection).ok_or("its header cannot be read")?;
    let text = format!(
        "# Tells whether the -wal file belongs to the database file. Do not edit.\n{stamp}\n"
    );
    let mut record = record_file(&beside(path, LOCK_FILE)).map_err(|error| error.to_string())?;
    let written = record.write_all(text.as_bytes()).and_then(|()| record.sync_all());
    written.map_err(|error| error.to_string())
}

fn record_file(path: &Path) -> io::Result<File> {
    // No other process writes to the lock file, because this process holds the lock.
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn recorded(path: &Path) -> Option<Stamp> {
    let text = fs::read_to_string(beside(path, LOCK_FILE)).ok()?;
    text.lines().find_map(|line| line.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// Creates a database with a recorded stamp. Returns it together with a connection that has
    /// written to it.
    fn stamped() -> (TempDir, PathBuf, SqliteConnection) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut connection = open_with(&path, "mode=rwc").unwrap();
        connection
            .batch_execute(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (a); CREATE TABLE u (a); INSERT INTO t \
                 VALUES (1)",
            )
            .unwrap();
        fs::write(beside(&path, LOCK_FILE), "").unwrap();
        let mut stamping = Stamping::new();
        assert!(stamping.is_due());
        stamping.renew(&path, &mut connection);
        assert!(!stamping.is_due() && recorded(&path).is_some());
        (folder, path, connection)
    }

    /// Copies the database in the state in which a crash at this instant would leave it.
    fn crashed(folder: &TempDir, path: &Path, name: &str) -> PathBuf {
        let copy = folder.path().join(name);
        for end in ["", "-wal", LOCK_FILE] {
            fs::copy(beside(path, end), beside(&copy, end)).unwrap();
        }
        copy
    }

    #[test]
    fn a_log_is_accepted_after_an_operator_has_changed_the_schema() {
        let (folder, path, mut service) = stamped();
        let mut operator = open_with(&path, "mode=rw").unwrap();
        operator
            .batch_execute("CREATE INDEX own ON t (a); PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        let stamp = recorded(&path).unwrap();
        assert_ne!(
            read(&mut open_ignoring_log(&path).unwrap()),
            Some(stamp),
            "the index is in the file"
        );
        service.batch_execute("INSERT INTO t VALUES (2)").unwrap();
        let crashed_path = crashed(&folder, &path, "with_index.db");
        check(&crashed_path).unwrap();
        let mut opened = open_with(&crashed_path, "mode=rw").unwrap();
        let rows: Number =
            sql_query("SELECT count(*) AS number FROM t").get_result(&mut opened).unwrap();
        assert_eq!(rows.number, 2);
    }

    #[test]
    fn a_log_is_rejected_beside_each_kind_of_copy() {
        let (folder, path, mut service) = stamped();
        let copy = folder.path().join("vacuumed.db");
        service.batch_execute(&format!("VACUUM INTO '{}'", copy.display())).unwrap();
        // The schema is changed too, so that the log contains the page with the schema version.
        service
            .batch_execute(
                "INSERT INTO t VALUES (2); CREATE TABLE v (a); DROP TABLE v; DROP TABLE u",
            )
            .unwrap();
        let marked = folder.path().join("marked.db");
        fs::copy(&copy, &marked).unwrap();
        mark_as_copy(&marked).unwrap();
        let crashed = crashed(&folder, &path, "crashed.db");
        check(&crashed).unwrap();
        let older = |number: i32, schema: i32| {
            let older = folder.path().join("older.db");
            fs::copy(&copy, &older).unwrap();
            let pragmas =
                format!("PRAGMA user_version = {number}; PRAGMA schema_version = {schema}");
            open_with(&older, "mode=rw").unwrap().batch_execute(&pragmas).unwrap();
            older
        };
        let stamp = recorded(&path).unwrap();
        let far = stamp.schema_version + 100;
        for (name, copy) in [
            ("marked", marked.clone()),
            ("of another run", older(stamp.user_version ^ 1, stamp.schema_version)),
        ] {
            fs::copy(copy, &crashed).unwrap();
            assert!(matches!(check(&crashed), Err(OpenError::ForeignLog(_))), "{name}");
        }
        // A copy by SQLite's own backup counts its schema versions from 1. In the second case, the
        // schema version in the log is lower than that of the file.
        for schema in [1, far] {
            fs::copy(older(stamp.user_version, schema), &crashed).unwrap();
            assert!(matches!(check(&crashed), Err(OpenError::ForeignLog(_))), "{schema}");
        }
    }

    #[test]
    fn a_stamp_that_failed_because_of_a_reader_is_tried_again_later() {
        let (_folder, path, mut service) = stamped();
        let mut reader = open_with(&path, "mode=ro").unwrap();
        reader.batch_execute("BEGIN; SELECT * FROM t").unwrap();
        let mut stamping = Stamping::new();
        stamping.renew(&path, &mut service);
        assert!(stamping.due.is_some_and(|due| due > Instant::now()), "but not at once");
        assert_eq!(recorded(&path), None, "a stamp that may not be in the file is not recorded");
        reader.batch_execute("COMMIT").unwrap();
        stamping.renew(&path, &mut service);
        assert!(stamping.due.is_none());
        assert_eq!(recorded(&path), read(&mut open_ignoring_log(&path).unwrap()));
    }
}
