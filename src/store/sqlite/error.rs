//! The reasons why a file cannot be opened.

use std::{io, path::PathBuf};

use crate::domain::{
    disk::{self, io_hint},
    file_access::Exposed,
};

/// The reason why a file cannot be opened as a database of this service.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the file open.
    #[error(
        "database {0} is in use by another process: stop that one, or give this one a data \
         directory of its own"
    )]
    InUse(PathBuf),
    /// The file system reported an error.
    #[error("database {path}: {source}{hint}", hint = io_hint(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The name is a symbolic link that leads to no file. SQLite would create a new database there.
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
    /// The name is that of neither a regular file nor a link to one.
    #[error("database {0} is not a regular file: name a file in database_url")]
    NotAFile(PathBuf),
    /// Other users have rights on the file.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The file cannot be written.
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
    /// The file is not a database, or it is damaged.
    #[error("database {path} is damaged ({problem}): restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The finding of the check.
        problem: String,
    },
    /// The file belongs to another program.
    #[error("{0} is an SQLite database of another program: name another file in database_url")]
    Foreign(PathBuf),
    /// A newer version of the service has migrated the file.
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
    /// There is a write-ahead log, but no database.
    #[error(
        "database {0} does not exist, but its log {0}-wal does, and the log contains changes to \
         that database: put the database back beside the log, run `countersign restore` with a \
         backup, or move the log away to have a new database made"
    )]
    LogAlone(PathBuf),
    /// The write-ahead log belongs to another file.
    #[error(
        "database {0} was replaced by another file while the log {0}-wal of the one before stayed, \
         and that log would undo the replacement: run `countersign restore` with the backup, \
         which keeps the present files under other names, or move {0}-wal and {0}-shm away to go \
         on with the file as it is"
    )]
    ForeignLog(PathBuf),
    /// A restore was interrupted while it replaced files.
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
    /// The schema is of an older version, and this process may not migrate it.
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
    /// The database reported another error.
    #[error("database {path} cannot be opened: {problem}", problem = disk::explain(problem))]
    Other {
        /// The file.
        path: PathBuf,
        /// The message of the database.
        problem: String,
    },
}
