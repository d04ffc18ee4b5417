//! Opening the file: one process at a time, an intact database, the newest schema.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    dsl::sql,
    migration::MigrationSource,
    sql_query,
    sql_types::{BigInt, Integer, Text},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{space::KEEP_TRACK, stamp};
use crate::{
    domain::{
        disk::{self, io_hint},
        file_access::{Access, Exposed, Identity, Role, Rule},
    },
    store::StoreError,
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// The file cannot be opened as a database of this service.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "database {0} is in use by another process: stop that one, or give this one a data \
         directory of its own"
    )]
    InUse(PathBuf),
    /// The file system refused.
    #[error("database {path}: {source}{hint}", hint = io_hint(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The name leads nowhere. SQLite would make a new database there.
    #[error(
        "database {path} is a symbolic link to {target}, where there is no file: correct the \
         link, or remove it to have a new database made"
    )]
    LeadsNowhere {
        /// The link.
        path: PathBuf,
        /// The name to which it leads.
        target: PathBuf,
    },
    /// Neither a file nor a link to one.
    #[error("database {0} is not a regular file: name a file in database_url")]
    NotAFile(PathBuf),
    /// Others have rights on it.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// Nothing can be written into it.
    #[error(
        "database {path} cannot be written ({problem}): give this user the right to write it and \
         its folder, for instance by `chmod u+w {path}`, and mount their file system for writing"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The message of the database.
        problem: String,
    },
    /// It is not a database, or a damaged one.
    #[error("database {path} is damaged ({problem}): restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The finding of the check.
        problem: String,
    },
    /// It belongs to another program.
    #[error("{0} is an SQLite database of another program: name another file in database_url")]
    Foreign(PathBuf),
    /// A newer version of the service has changed it.
    #[error(
        "database {path} has the schema of a newer countersign (migration {migration}): run that \
         version or a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The first migration that this version does not know.
        migration: String,
    },
    /// A write-ahead log lies there, and no database.
    #[error(
        "database {0} does not exist, but its log {0}-wal does, which holds changes of it: put \
         the database back beside it, run `countersign restore` with a backup, or move the log \
         away to have a new database made"
    )]
    LogAlone(PathBuf),
    /// The write-ahead log is that of another file.
    #[error(
        "database {0} was exchanged while the log {0}-wal of the one before stayed, which would \
         undo the exchange: run `countersign restore` with the backup, which keeps the data \
         before, or move {0}-wal and {0}-shm away to go on with the file as it is"
    )]
    ForeignLog(PathBuf),
    /// A restore was interrupted while files were being exchanged.
    #[error(
        "database {path}: a restore was interrupted ({ready} is still there): run the same \
         `countersign restore` again"
    )]
    RestoreUnfinished {
        /// The database.
        path: PathBuf,
        /// The file that was to become the database.
        ready: PathBuf,
    },
    /// The schema is of an older version, and is not to be changed by this process.
    #[error(
        "database {path} has the schema of an older countersign (migration {migration} is \
         missing): run `countersign migrate`, or start without --no-migrate"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The first migration that is missing.
        migration: String,
    },
    /// Anything else that the database said.
    #[error("database {path} cannot be opened: {problem}", problem = disk::explain(problem))]
    Other {
        /// The file.
        path: PathBuf,
        /// The message of the database.
        problem: String,
    },
}

/// Finds the file that a name stands for, through a symbolic link if it is one, and refuses a
/// folder in which others could exchange it. From here on the file is used by the name that is
/// returned.
pub fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => match path.canonicalize() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match end_of_links(path) {
                // A restore was interrupted, and will put the file there again.
                Some(file) if stamp::is_restore_unfinished(&file) => file,
                _ => {
                    let target = fs::read_link(path).unwrap_or_default();
                    return Err(OpenError::LeadsNowhere { path: path.to_owned(), target });
                }
            },
            Err(error) => return Err(io_error(error)),
        },
        Ok(_) => path.to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(io_error(error)),
    };
    if fs::metadata(&file).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(OpenError::NotAFile(file));
    }
    judge(folder_of(&file), Role::Folder, Rule::OthersOnlyRead)?;
    Ok(file)
}

/// Follows symbolic links to the file that they lead to, whether there is one or not.
fn end_of_links(path: &Path) -> Option<PathBuf> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => return Some(folder_of(&path).canonicalize().ok()?.join(path.file_name()?)),
        }
    }
    None
}

/// Returns whether a restore into the database of this name was interrupted.
pub fn is_restore_unfinished(path: &Path) -> bool {
    end_of_links(path).is_some_and(|file| stamp::is_restore_unfinished(&file))
}

/// Judges who has rights on a file or folder. Nothing is wrong with one that does not exist.
pub fn judge(path: &Path, role: Role, rule: Rule) -> Result<(), OpenError> {
    // Links to the database are resolved by now, and SQLite makes none beside it.
    let metadata =
        if role == Role::Folder { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    if role == Role::Database && !metadata.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    let access = Access::from(&metadata);
    let folder = match role {
        Role::Folder => access,
        Role::Database | Role::Backup | Role::MasterKey => {
            let folder = fs::metadata(folder_of(path));
            Access::from(&folder.map_err(|source| OpenError::Io { path: path.to_owned(), source })?)
        }
    };
    let judged = rule.judge(access, folder, &Identity::of_this_process());
    Ok(judged.map_err(|exposure| Exposed { role, path: path.to_owned(), exposure })?)
}

/// The files that SQLite keeps beside a database; they belong to it.
pub const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The file beside a database whose lock keeps other processes away.
pub const LOCK_FILE: &str = ".lock";

/// The file beside a database whose name is that of the database with this end.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The folder that contains a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The database, its lock, and the files that SQLite keeps beside it, which get its mode when they
/// are made.
fn files(path: &Path) -> impl Iterator<Item = PathBuf> {
    ["", LOCK_FILE].into_iter().chain(SIDE_FILES).map(|end| beside(path, end))
}

/// Takes the right to read away from others, which backups and copies often grant.
fn make_private(path: &Path) -> Result<(), OpenError> {
    for file in files(path) {
        let Err(error) = judge(&file, Role::Database, Rule::Private) else { continue };
        let OpenError::Exposed(Exposed { exposure, .. }) = &error else { return Err(error) };
        let Some(mode) = exposure.mode() else { return Err(error) };
        // A user who does not own it cannot change its mode.
        fs::set_permissions(&file, Permissions::from_mode(mode & 0o700)).map_err(|_| error)?;
        tracing::warn!(
            file = %file.display(),
            mode = format!("{mode:04o}"),
            "others could read a file of the database; that right has been taken away from them"
        );
    }
    Ok(())
}

/// Takes the lock that keeps other processes away from the database. It ends with the file's being
/// closed.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    // By its true name, so that two names of one database have one lock.
    let true_path = match path.canonicalize() {
        Ok(true_path) => true_path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let lock_path = beside(&true_path, LOCK_FILE);
    let io_error = |source| OpenError::Io { path: lock_path.clone(), source };
    let mut options = OpenOptions::new();
    // A link in its place could make a file elsewhere.
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&lock_path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// Lets a statement wait for a lock that another connection holds.
const BUSY_TIMEOUT: &str = "PRAGMA busy_timeout = 5000";
/// The message of SQLite once it has waited long enough. Diesel hands on its message alone, without
/// its code.
const LOCKED: &str = "database is locked";
/// Its messages if it cannot make the files beside the file.
const NOT_WRITABLE: [&str; 2] =
    ["unable to open database file", "attempt to write a readonly database"];

/// The care with which a file is searched for damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The header, the length of the file and the schema.
    Header,
    /// Each page by itself.
    Quick,
    /// Also each index against its table, which takes several times as long.
    Full,
}

/// Opens a file with these options of SQLite (<https://www.sqlite.org/uri.html>).
pub fn open_with(path: &Path, options: &str) -> Result<SqliteConnection, OpenError> {
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    let name = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let mut connection = SqliteConnection::establish(&format!("file:{name}?{options}"))
        .map_err(|error| other(error.to_string()))?;
    // A store of this process that was just dropped may still be writing back its log: that is no
    // damage.
    connection.batch_execute(BUSY_TIMEOUT).map_err(|error| other(error.to_string()))?;
    Ok(connection)
}

/// Opens the file alone for reading, as if there were no log beside it.
pub fn open_ignoring_log(path: &Path) -> Result<SqliteConnection, OpenError> {
    open_with(path, "mode=ro&immutable=1")
}

/// The mark in the header of our files (`PRAGMA application_id`): "CSgn" in ASCII.
const APPLICATION_ID: i32 = 0x4353_676e;

#[derive(QueryableByName)]
struct Header {
    #[diesel(sql_type = Integer)]
    application_id: i32,
    #[diesel(sql_type = BigInt)]
    tables: i64,
}

/// Checks the file and brings its schema up to date, if it may. A file that is refused is left as
/// it was. Returns the migrations that were made.
pub fn prepare(path: &Path, may_migrate: bool) -> Result<Vec<String>, OpenError> {
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    for file in files(path) {
        judge(&file, Role::Database, Rule::OthersOnlyRead)?;
        require_writable(&file)?;
    }
    stamp::refuse_unfinished_restore(path)?;
    // A look at all pages takes seconds for each gigabyte.
    let depth = if stamp::check(path)? { Depth::Header } else { Depth::Quick };
    let is_there = path.metadata().is_ok_and(|metadata| metadata.len() > 0);
    let applied = if is_there { check(path, depth)? } else { vec![] };
    let is_ours = !applied.is_empty();
    if let Some(migration) = known(path)?.into_iter().find(|version| !applied.contains(version)) {
        if !may_migrate {
            return Err(OpenError::Older { path: path.to_owned(), migration });
        }
        stamp::forget(path)?;
    }
    if !is_there {
        // Made here, because SQLite would make it readable by all.
        let mut options = OpenOptions::new();
        let made = options.write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    }
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())
        .map_err(|error| other(error.to_string()))?;
    // A database that has tables is not changed by the second of these.
    let kept_track =
        connection.batch_execute(BUSY_TIMEOUT).and_then(|()| connection.batch_execute(KEEP_TRACK));
    kept_track.and_then(|()| configure_writer(&mut connection)).map_err(|error| {
        match error.to_string() {
            problem if NOT_WRITABLE.contains(&problem.as_str()) => {
                OpenError::ReadOnly { path: path.to_owned(), problem }
            }
            problem => other(problem),
        }
    })?;
    make_private(path)?;
    if !is_ours {
        let mark = format!("PRAGMA application_id = {APPLICATION_ID}");
        connection.batch_execute(&mark).map_err(|error| other(error.to_string()))?;
    }
    let made =
        connection.run_pending_migrations(MIGRATIONS).map_err(|error| other(error.to_string()))?;
    Ok(made.iter().map(ToString::to_string).collect())
}

/// Refuses a file that cannot be written. SQLite would open it for reading without a word, and fail
/// each write of a service that says that it serves. It is not opened for that: to close it would
/// end the locks that connections of this process hold on it (fcntl(2)).
fn require_writable(path: &Path) -> Result<(), OpenError> {
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::ReadOnly { path: path.to_owned(), problem: error.to_string() })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The versions of all migrations, in order.
fn known(path: &Path) -> Result<Vec<String>, OpenError> {
    let known = MigrationSource::<diesel::sqlite::Sqlite>::migrations(&MIGRATIONS)
        .map_err(|error| OpenError::Other { path: path.to_owned(), problem: error.to_string() })?;
    Ok(known.iter().map(|migration| migration.name().version().to_string()).collect())
}

#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Refuses a file that is damaged, foreign or too new. Read-only: whoever closes a connection that
/// could write, and be it a refused one, writes the log of an earlier crash back into the file.
/// Otherwise it returns the versions of the migrations that the file has; without a table it has
/// none.
pub fn check(path: &Path, depth: Depth) -> Result<Vec<String>, OpenError> {
    let damaged = |problem: String| OpenError::Damaged { path: path.to_owned(), problem };
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    // Without a log to be read along, the file is all there is, and looking at it needs none of the
    // files beside it.
    let mut connection = match beside(path, "-wal").exists() {
        true => open_with(path, "mode=ro")?,
        false => open_ignoring_log(path)?,
    };
    let refused = |error: diesel::result::Error| {
        let problem = error.to_string();
        // A full disk is no damage: a backup must not take the place of the file for that.
        if problem == LOCKED || disk::remedy(&problem).is_some() {
            other(problem)
        } else {
            damaged(problem)
        }
    };
    let findings: Vec<String> = match depth {
        Depth::Header => vec![],
        Depth::Quick => {
            sql::<Text>("PRAGMA quick_check(1)").load(&mut connection).map_err(refused)?
        }
        Depth::Full => {
            sql::<Text>("PRAGMA integrity_check(1)").load(&mut connection).map_err(refused)?
        }
    };
    // A page that cannot be read may be in order.
    if let Some(problem) = findings.iter().find_map(|finding| disk::io_error_in(finding)) {
        return Err(other(problem));
    }
    if let Some(finding) = findings.iter().find(|finding| *finding != "ok") {
        // The finding goes over several lines, an error has one.
        return Err(damaged(finding.replace('\n', " ")));
    }
    let header: Header = sql_query(
        "SELECT application_id, (SELECT count(*) FROM sqlite_master) AS tables FROM \
                   pragma_application_id",
    )
    .get_result(&mut connection)
    .map_err(refused)?;
    if header.tables == 0 {
        return Ok(vec![]);
    }
    if header.application_id != APPLICATION_ID {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let applied: Vec<Applied> =
        sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version")
            .load(&mut connection)
            .map_err(refused)?;
    let known = known(path)?;
    let applied: Vec<String> = applied.into_iter().map(|applied| applied.version).collect();
    match applied.iter().find(|version| !known.contains(version)) {
        Some(newer) => Err(OpenError::Newer { path: path.to_owned(), migration: newer.clone() }),
        None => Ok(applied),
    }
}

/// Looks through all of a database for damage, also while a service uses it.
pub fn check_whole(path: &Path) -> Result<(), OpenError> {
    let path = resolve(path)?;
    stamp::refuse_unfinished_restore(&path)?;
    check(&path, Depth::Full).map(drop)
}

/// Opens the connection that writes. What it has committed survives a power cut
/// (`synchronous=FULL`).
pub fn writer(path: &Path) -> Result<SqliteConnection, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(disk::explain(&error.to_string()).into_owned())
    };
    // Without this, SQLite would make a new, empty database in the place of one that was moved
    // away.
    if !path.exists() {
        return Err(StoreError::Unavailable(format!("{} is gone", path.display())));
    }
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())
        .map_err(|error| unavailable(&error))?;
    configure_writer(&mut connection).map_err(|error| unavailable(&error))?;
    Ok(connection)
}

fn configure_writer(connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
    connection.batch_execute(
        "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA journal_size_limit = 67108864;",
    )
}

/// The settings of a connection that only reads.
pub const READER_SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA query_only = ON;";
