//! Copies the database while it is used, and puts a copy in the place of the database.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use backon::{BlockingRetryable, ConstantBuilder};
use diesel::{RunQueryDsl, dsl::sql, sql_query, sql_types::Text};
use tempfile::NamedTempFile;

use super::{
    open::{self, Depth, LOCK_FILE, OpenError, SIDE_FILES, beside, folder_of},
    stamp,
};

/// The end of the name of a backup that is being prepared to become the database.
const COPY: &str = ".restoring";
/// The end of its name once it is prepared and files are being exchanged.
pub const READY: &str = ".restored";

/// How long to wait for connections to a copy to be closed, and how often.
const CLOSING_PAUSE: Duration = Duration::from_millis(20);
const CLOSING_ATTEMPTS: usize = 500;

/// A database cannot be copied, or not be replaced by a copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A database cannot be opened, or is not good.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is a file of that name.
    #[error("{0} exists: a backup overwrites nothing, so name a file that does not exist")]
    Exists(PathBuf),
    /// The database could not be copied.
    #[error("database {path} could not be copied to {backup}: {problem}")]
    NotCopied {
        /// The database.
        path: PathBuf,
        /// The copy.
        backup: PathBuf,
        /// What SQLite said.
        problem: String,
    },
    /// The backup is the database.
    #[error("backup {0} is the database itself: name the file that `countersign backup` made")]
    Same(PathBuf),
    /// The backup is not a whole database.
    #[error(
        "backup {0} has a log beside it, {0}-wal, without which it is not whole: make the backup by `countersign backup` \
         or, if it is whole, move the log away"
    )]
    HasLog(PathBuf),
    /// The backup holds nothing.
    #[error("backup {0} is an empty database: name the file that `countersign backup` made")]
    Empty(PathBuf),
    /// The prepared copy cannot become the database.
    #[error("the restored database {path} cannot be closed: {problem}: run the same command again")]
    NotSettled {
        /// The copy.
        path: PathBuf,
        /// What SQLite said.
        problem: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

/// Makes what was done to the names in a folder durable.
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

/// Removes a database and the files that SQLite keeps beside it, the database first.
fn remove_all(path: &Path) -> Result<(), BackupError> {
    [""].into_iter().chain(SIDE_FILES).try_for_each(|end| remove_if_there(&beside(path, end)))
}

/// Copies a database to a new file, as it stands at one instant, while others read and write it.
/// The file appears under its name once it is whole, checked and durable.
pub fn back_up(database: &Path, backup: &Path) -> Result<(), BackupError> {
    let path = open::resolve(database)?;
    if backup.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(backup.to_owned()));
    }
    stamp::refuse_unfinished_restore(&path)?;
    stamp::check(&path)?;
    let folder = folder_of(backup);
    let copy = NamedTempFile::with_prefix_in(".countersign-backup-", folder).map_err(io_error(folder))?;
    let problem = |problem: String| BackupError::NotCopied {
        path: path.clone(),
        backup: backup.to_owned(),
        problem: format!("{problem}: is there enough space?"),
    };
    // Nobody has the database open if there is no log. To make one takes the right to write.
    let options = if beside(&path, "-wal").exists() { "mode=ro" } else { "mode=rw" };
    let mut connection = open::open_with(&path, options)?;
    sql_query("VACUUM INTO ?")
        .bind::<Text, _>(copy.path().to_string_lossy())
        .execute(&mut connection)
        .map_err(|error| problem(error.to_string()))?;
    drop(connection);
    open::check(copy.path(), Depth::Full)?;
    // SQLite leaves that to whoever asked for the copy.
    copy.as_file().sync_all().map_err(io_error(backup))?;
    copy.persist_noclobber(backup).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(backup.to_owned()),
        _ => io_error(backup)(error.error),
    })?;
    sync_folder(backup)
}

/// A backup on its way to the place of the database, which nobody else can open meanwhile. Until
/// [`Self::finish`] the database is as it was.
#[derive(Debug)]
pub struct Restoration {
    path: PathBuf,
    copy: PathBuf,
    _lock: File,
}

impl Restoration {
    /// Checks a backup and copies it next to the database.
    pub fn begin(database: &Path, backup: &Path) -> Result<Self, BackupError> {
        let path = open::resolve(database)?;
        let _lock = open::lock(&path)?;
        let true_name = backup.canonicalize().map_err(io_error(backup))?;
        if path.canonicalize().is_ok_and(|path| path == true_name) {
            return Err(BackupError::Same(backup.to_owned()));
        }
        if beside(backup, "-wal").metadata().is_ok_and(|log| log.len() > 0) {
            return Err(BackupError::HasLog(backup.to_owned()));
        }
        if open::check(backup, Depth::Full)?.is_empty() {
            return Err(BackupError::Empty(backup.to_owned()));
        }
        let copy = beside(&path, COPY);
        let restoration = Self { path, copy, _lock };
        // Those of a restore that was interrupted.
        remove_if_there(&beside(&restoration.path, READY))?;
        restoration.remove_copy()?;
        restoration.copy_from(backup)?;
        Ok(restoration)
    }

    fn copy_from(&self, backup: &Path) -> Result<(), BackupError> {
        let mut from = File::open(backup).map_err(io_error(backup))?;
        let mut options = OpenOptions::new();
        let to = options.write(true).create_new(true).mode(0o600).open(&self.copy);
        let copied = to.and_then(|mut to| io::copy(&mut from, &mut to));
        copied.map(drop).map_err(io_error(&self.copy))
    }

    /// The copy, which is to be opened and changed as needed before it becomes the database.
    pub fn copy(&self) -> &Path {
        &self.copy
    }

    /// Puts the copy in the place of the database, and moves the files of the database aside under
    /// names with this end. Returns the name of the old database, if there was one. The copy must
    /// have been closed.
    ///
    /// The process may be killed at any instant: the old files are complete under their old names or
    /// under the new ones, and no start takes a part of them for the whole.
    pub fn finish(self, aside_end: &str) -> Result<Option<PathBuf>, BackupError> {
        self.settle()?;
        let aside = beside(&self.path, aside_end);
        self.link_aside(&aside).inspect_err(|_| {
            let _ = remove_all(&aside);
        })?;
        // From here until the end, no start takes what it finds for a database.
        let ready = beside(&self.path, READY);
        fs::rename(&self.copy, &ready).map_err(io_error(&ready))?;
        sync_folder(&self.path)?;
        // The database goes first: a start refuses a log without a database.
        remove_all(&self.path)?;
        sync_folder(&self.path)?;
        stamp::forget(&self.path)?;
        fs::rename(&ready, &self.path).map_err(io_error(&self.path))?;
        sync_folder(&self.path)?;
        Ok(aside.exists().then_some(aside))
    }

    /// Gives the files of the database a second name each.
    fn link_aside(&self, aside: &Path) -> Result<(), BackupError> {
        for end in [""].into_iter().chain(SIDE_FILES) {
            let (from, to) = (beside(&self.path, end), beside(aside, end));
            match fs::hard_link(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&to)(error)),
                Ok(()) | Err(_) => {}
            }
        }
        sync_folder(&self.path)
    }

    /// Makes the copy one file. This waits until nobody has it open any more: a pool closes its
    /// connections on threads of its own.
    fn settle(&self) -> Result<(), BackupError> {
        let pauses = ConstantBuilder::new().with_delay(CLOSING_PAUSE).with_max_times(CLOSING_ATTEMPTS);
        (|| self.leave_log_behind())
            .retry(pauses)
            .call()
            .map_err(|problem| BackupError::NotSettled { path: self.copy.clone(), problem })?;
        let synced = File::open(&self.copy).and_then(|copy| copy.sync_all());
        synced.map_err(io_error(&self.copy))?;
        remove_if_there(&beside(&self.copy, LOCK_FILE))
    }

    fn leave_log_behind(&self) -> Result<(), String> {
        let mut connection = open::open_with(&self.copy, "mode=rw").map_err(|error| error.to_string())?;
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
        // What stays is removed by the next restore.
        let _ = self.remove_copy();
    }
}
