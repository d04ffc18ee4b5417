//! Backs up a database while it is in use, and restores a database from a backup.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use backon::{BlockingRetryable, ConstantBuilder};
use diesel::{RunQueryDsl, dsl::sql, sql_query, sql_types::Text};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    connection::open_with,
    error::OpenError,
    files::{self, LOCK_FILE, READY, SIDE_FILES, beside, folder_of},
    open::{self, Depth},
    space::keep_track_in_copies,
    stamp,
};
use crate::domain::{
    disk::{self, io_hint},
    file_access::{Role, Rule},
};

/// The suffix of a backup that is being written.
const PARTIAL: &str = ".partial";
/// The suffix of a backup that is being prepared to become the database.
const COPY: &str = ".restoring";

/// The pause between two checks whether all connections to a copy are closed, and the largest
/// number of these checks.
const CLOSING_PAUSE: Duration = Duration::from_millis(20);
const CLOSING_ATTEMPTS: usize = 500;

/// The reason why a database cannot be backed up or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database or the backup cannot be opened, or is damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file system reported an error.
    #[error("{path}: {source}{hint}", hint = io_hint(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file to be created exists already.
    #[error("{0} exists: a backup overwrites nothing, so name a file that does not exist")]
    Exists(PathBuf),
    /// The temporary file to which the backup is written first exists already.
    #[error(
        "{0} exists: another backup is being written to it, or was interrupted: if none is \
         running, remove it and run the same command again"
    )]
    PartialExists(PathBuf),
    /// The database could not be copied.
    #[error(
        "database {path} could not be copied to {backup}: {problem}",
        problem = disk::explain(problem)
    )]
    NotCopied {
        /// The database.
        path: PathBuf,
        /// The copy.
        backup: PathBuf,
        /// The message of SQLite.
        problem: String,
    },
    /// The backup and the database are the same file.
    #[error("backup {0} is the database itself: name the file that `countersign backup` made")]
    Same(PathBuf),
    /// The backup is a folder or a device.
    #[error("backup {0} is not a regular file: name the file that `countersign backup` made")]
    NotAFile(PathBuf),
    /// The backup has a log beside it, so the file alone may not be a whole database.
    #[error(
        "backup {0} has a log beside it, {0}-wal, and may be incomplete without that log: make a \
         complete copy by `countersign backup --database-url sqlite://{0} FILE` and restore that \
         copy, or, if the backup is complete, move the log away"
    )]
    HasLog(PathBuf),
    /// The backup is an empty database.
    #[error("backup {0} is an empty database: name the file that `countersign backup` made")]
    Empty(PathBuf),
    /// The prepared copy cannot be closed, and so cannot become the database.
    #[error(
        "the restored database {path} cannot be closed: {problem}: run the same command again",
        problem = disk::explain(problem)
    )]
    NotSettled {
        /// The copy.
        path: PathBuf,
        /// The message of SQLite.
        problem: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

/// Makes the creation, renaming and removal of files in a folder durable.
fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))
}

fn remove_if_there(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a database, and then the files that SQLite keeps beside it.
fn remove_all(path: &Path) -> Result<(), BackupError> {
    [""].into_iter().chain(SIDE_FILES).try_for_each(|end| remove_if_there(&beside(path, end)))
}

/// A backup that is being written to a file with a temporary name, which is removed at the end.
struct Partial {
    path: PathBuf,
    file: File,
    is_there: bool,
}

impl Partial {
    fn create(backup: &Path) -> Result<Self, BackupError> {
        let path = beside(backup, PARTIAL);
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok(Self { path, file, is_there: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::PartialExists(path))
            }
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Gives the file the name of the backup, unless another file has got that name in the
    /// meantime.
    fn publish(mut self, backup: &Path) -> Result<(), BackupError> {
        let published = match fs::hard_link(&self.path, backup) {
            // Some file systems do not have hard links.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                ) =>
            {
                let renamed = renameat_with(CWD, &self.path, CWD, backup, RenameFlags::NOREPLACE);
                self.is_there = renamed.is_err();
                renamed.map_err(io::Error::from)
            }
            linked => linked,
        };
        published.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(backup.to_owned()),
            _ => io_error(backup)(error),
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_there {
            let _ = remove_all(&self.path);
        }
    }
}

/// Copies a database, as it is at one instant, to a new file, while other processes read and write
/// it. The file gets its name only once it is complete, checked, durable and marked as a copy.
pub fn back_up(database: &Path, backup: &Path) -> Result<(), BackupError> {
    let path = files::resolve(database)?;
    if backup.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(backup.to_owned()));
    }
    files::refuse_unfinished_restore(&path)?;
    stamp::check(&path)?;
    let copy = Partial::create(backup)?;
    let problem = |problem: String| BackupError::NotCopied {
        path: path.clone(),
        backup: backup.to_owned(),
        problem,
    };
    // If there is no log, no process has the database open. Then SQLite has to create a log, which
    // needs the right to write.
    let options = if beside(&path, "-wal").exists() { "mode=ro" } else { "mode=rw" };
    let mut connection = open_with(&path, options)?;
    // With this setting, the copy keeps track of its pages even if the database, made by an older
    // version, does not.
    keep_track_in_copies(&mut connection).map_err(|error| problem(error.to_string()))?;
    sql_query("VACUUM INTO ?")
        .bind::<Text, _>(copy.path.to_string_lossy())
        .execute(&mut connection)
        .map_err(|error| problem(error.to_string()))?;
    drop(connection);
    stamp::mark_as_copy(&copy.path).map_err(problem)?;
    open::check(&copy.path, Depth::Full)?;
    // SQLite does not sync the copy itself.
    copy.file.sync_all().map_err(io_error(backup))?;
    copy.publish(backup)?;
    sync_folder(backup)
}

/// Checks which users can change a backup, by the same rule as for the database, because the backup
/// is to become the database. If other users can read it, this logs a warning, because it contains
/// what the database contains.
fn judge_backup(backup: &Path) -> Result<(), BackupError> {
    let metadata = fs::metadata(backup).map_err(io_error(backup))?;
    if !metadata.is_file() {
        return Err(BackupError::NotAFile(backup.to_owned()));
    }
    files::check_access(backup, Role::Backup, Rule::OthersOnlyRead)?;
    match files::check_access(backup, Role::Backup, Rule::Private) {
        Err(OpenError::Exposed(exposed)) => tracing::warn!("{exposed}"),
        checked => checked?,
    }
    Ok(())
}

/// Returns whether two paths refer to the same file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// The second names (hard links) that were made for the files of a database that is to be moved
/// aside.
#[derive(Default)]
struct Links(Vec<PathBuf>);

impl Links {
    /// Gives each existing file of a database a second name. All second names must be free.
    fn make(&mut self, path: &Path, aside: &Path) -> Result<(), BackupError> {
        let ends = || [""].into_iter().chain(SIDE_FILES);
        if let Some(taken) =
            ends().map(|end| beside(aside, end)).find(|name| name.symlink_metadata().is_ok())
        {
            return Err(BackupError::Exists(taken));
        }
        for end in ends() {
            let (from, to) = (beside(path, end), beside(aside, end));
            match fs::hard_link(&from, &to) {
                Ok(()) => self.0.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(BackupError::Exists(to));
                }
                Err(error) => return Err(io_error(&to)(error)),
            }
        }
        Ok(())
    }

    /// Removes the names that were made, and no other file.
    fn remove(self) {
        for name in self.0 {
            let _ = fs::remove_file(name);
        }
    }
}

/// A restore in progress. It holds the lock of the database, so no other process can open the
/// database in the meantime. The database is unchanged until [`Self::finish`] is called.
#[derive(Debug)]
pub struct Restoration {
    path: PathBuf,
    copy: PathBuf,
    _lock: File,
}

impl Restoration {
    /// Checks a backup, and copies it to a file beside the database.
    pub fn begin(database: &Path, backup: &Path) -> Result<Self, BackupError> {
        let path = files::resolve(database)?;
        let _lock = files::lock(&path)?;
        // The path is resolved, because a log lies beside the file itself, and not beside a
        // symbolic link to it.
        let backup = backup.canonicalize().map_err(io_error(backup))?;
        if is_same_file(&path, &backup) {
            return Err(BackupError::Same(backup));
        }
        judge_backup(&backup)?;
        if beside(&backup, "-wal").metadata().is_ok_and(|log| log.len() > 0) {
            return Err(BackupError::HasLog(backup));
        }
        if open::check(&backup, Depth::Full)?.is_empty() {
            return Err(BackupError::Empty(backup));
        }
        let copy = beside(&path, COPY);
        let restoration = Self { path, copy, _lock };
        // Removes the copy that an interrupted restore left. The other file of that restore (with
        // the suffix `READY`) is kept until this restore is complete, because the database may be
        // gone already.
        restoration.remove_copy()?;
        restoration.copy_from(&backup)?;
        stamp::clear_mark(&restoration.copy).map_err(|problem| BackupError::NotCopied {
            path: backup,
            backup: restoration.copy.clone(),
            problem,
        })?;
        Ok(restoration)
    }

    fn copy_from(&self, backup: &Path) -> Result<(), BackupError> {
        let mut from = File::open(backup).map_err(io_error(backup))?;
        let mut options = OpenOptions::new();
        let to = options.write(true).create_new(true).mode(0o600).open(&self.copy);
        let copied = to.and_then(|mut to| io::copy(&mut from, &mut to));
        copied.map(drop).map_err(io_error(&self.copy))
    }

    /// Returns the path of the copy. The caller opens the copy and changes it as needed before it
    /// becomes the database.
    pub fn copy(&self) -> &Path {
        &self.copy
    }

    /// Replaces the database with the copy. The files of the old database are moved aside, to free
    /// names that begin with the name of the database and `aside_end`. Returns the new name of the
    /// old database, if there was one. The caller must have closed the copy.
    ///
    /// The process may be killed at any instant. The old files are then complete, either under
    /// their old names or under the new ones, and a later start never takes only some of them for
    /// the whole database.
    pub fn finish(self, aside_end: &str) -> Result<Option<PathBuf>, BackupError> {
        self.settle()?;
        let ready = beside(&self.path, READY);
        let aside = self.link_aside(aside_end, &ready)?;
        // From here until the last renaming, every start rejects the database.
        fs::rename(&self.copy, &ready).map_err(io_error(&ready))?;
        sync_folder(&self.path)?;
        // The database file is removed first, because a start rejects a log without a database.
        remove_all(&self.path)?;
        sync_folder(&self.path)?;
        stamp::forget(&self.path)?;
        fs::rename(&ready, &self.path).map_err(io_error(&self.path))?;
        sync_folder(&self.path)?;
        Ok(aside)
    }

    /// Gives the files of the database a second name each.
    fn link_aside(&self, end: &str, ready: &Path) -> Result<Option<PathBuf>, BackupError> {
        let was_there = self.path.exists();
        if !was_there && ready.exists() {
            // An earlier restore was interrupted after it had given all files second names.
            return Ok(None);
        }
        let mut names = (1_u32..).map(|count| match count {
            1 => beside(&self.path, end),
            _ => beside(&self.path, &format!("{end}-{count}")),
        });
        let aside = loop {
            let Some(aside) = names.next() else { return Ok(None) };
            let mut links = Links::default();
            match links.make(&self.path, &aside) {
                Ok(()) => break aside,
                Err(BackupError::Exists(_)) => links.remove(),
                Err(error) => {
                    links.remove();
                    return Err(error);
                }
            }
        };
        sync_folder(&self.path)?;
        Ok(was_there.then_some(aside))
    }

    /// Writes the log of the copy back into the copy, so that it is one file. This waits until no
    /// connection has the copy open any more, because a pool closes its connections on threads of
    /// its own.
    fn settle(&self) -> Result<(), BackupError> {
        let pauses =
            ConstantBuilder::new().with_delay(CLOSING_PAUSE).with_max_times(CLOSING_ATTEMPTS);
        (|| self.write_back_log())
            .retry(pauses)
            .call()
            .map_err(|problem| BackupError::NotSettled { path: self.copy.clone(), problem })?;
        let synced = File::open(&self.copy).and_then(|copy| copy.sync_all());
        synced.map_err(io_error(&self.copy))?;
        remove_if_there(&beside(&self.copy, LOCK_FILE))
    }

    fn write_back_log(&self) -> Result<(), String> {
        let mut connection = open_with(&self.copy, "mode=rw").map_err(|error| error.to_string())?;
        let mode: String = sql::<Text>("PRAGMA journal_mode = DELETE")
            .get_result(&mut connection)
            .map_err(|error| error.to_string())?;
        if mode == "delete" { Ok(()) } else { Err("it is in use".to_owned()) }
    }

    fn remove_copy(&self) -> Result<(), BackupError> {
        remove_all(&self.copy)?;
        remove_if_there(&beside(&self.copy, LOCK_FILE))
    }
}

impl Drop for Restoration {
    fn drop(&mut self) {
        // Files that cannot be removed here are removed by the next restore.
        let _ = self.remove_copy();
    }
}
