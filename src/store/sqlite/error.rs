//! The reasons for which a file is not opened.

use std::{io, path::PathBuf};

use crate::domain::{
    disk::{self, io_hint},
    file_access::Exposed,
};

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
