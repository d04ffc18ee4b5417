//! Every way in which the service cannot start, or has to stop.

use std::{io, path::PathBuf, time::Duration};

use super::restore::RestoreError;
use crate::{
    domain::{
        disk::io_hint,
        file_access::Exposed,
        time::{Timestamp, brief},
    },
    keys::{generate::NotGenerated, master_key::MasterKeyError, ring::RingError},
    net::tls::{TlsError, format_rfc3339},
    rng::RngFailed,
    store::{StoreError, postgres, sqlite},
};

/// The service cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be made or written.
    #[error(
        "data directory {path}: {source}: name another one in data_dir, or give this user the \
         right to write there{hint}",
        hint = io_hint(source)
    )]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can exchange what the service keeps.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The database would be in a folder that does not exist.
    #[error(
        "database {path}: the folder {folder} does not exist: make it, or name another file in \
         database_url"
    )]
    NoSuchFolder {
        /// The database.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// There is no database to work on.
    #[error(
        "database {0} does not exist: name the one that is meant by --data-dir or --database-url"
    )]
    NoDatabase(PathBuf),
    /// The SQLite file cannot be opened.
    #[error(transparent)]
    Sqlite(#[from] sqlite::error::OpenError),
    /// The PostgreSQL database cannot be used.
    #[error(transparent)]
    Postgres(#[from] postgres::open_error::OpenError),
    /// The PostgreSQL database could not be reached for as long as was to be waited.
    #[error("{error}: gave up after {} (setting database.startup_timeout)", brief(*.waited))]
    NotReached {
        /// The time that it was waited for.
        waited: Duration,
        /// The error of the last attempt.
        error: postgres::open_error::OpenError,
    },
    /// The database failed while starting.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master key cannot be used.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The master key in a file cannot be used.
    #[error("setting {setting}: {error}")]
    MasterKeyFile {
        /// The setting that names the file.
        setting: &'static str,
        /// Why.
        error: MasterKeyError,
    },
    /// A setting names a file that does not exist. None is made where it was named by mistake.
    #[error(
        "setting keys.master_key_file: {0} does not exist, and is not made: correct the path, or \
         restore the file from a backup, or for a new database run `openssl rand -base64 32 > \
         {path} && chmod 600 {path}`",
        path = .0.display()
    )]
    NoMasterKeyFile(PathBuf),
    /// The same of the second one.
    #[error(
        "setting keys.additional_master_key_file: {0} does not exist: correct the path, or leave \
         the setting out if `countersign key reseal` has sealed all keys under the other one"
    )]
    NoAdditionalMasterKeyFile(PathBuf),
    /// The database has keys, and the file with the master key is gone.
    #[error(
        "master key file {0} does not exist, but the database holds keys that only it opens: \
         restore it from a backup"
    )]
    MasterKeyGone(PathBuf),
    /// A database that others may use too gets no master key that only this machine has.
    #[error(
        "master key file {path} does not exist; everyone who serves from this database needs the \
         same one, so it is not made here: run `openssl rand -base64 32 > {path} && chmod 600 \
         {path}`, and give every replica a copy"
    )]
    MasterKeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A key of one's own cannot be used.
    #[error("private key {path}: {problem}")]
    NotImported {
        /// Its file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The first keys could not be made.
    #[error(transparent)]
    NotGenerated(#[from] NotGenerated),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no randomness.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// A backup or a restore was refused, or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A sweep would go by a clock that may be wrong.
    #[error(
        "it is {now} by the clock of this machine, and the newest row of the database is of \
         {newest}: if the clock is wrong, a sweep deletes what is still needed. Set the clock, or \
         say --clock-is-right",
        now = format_rfc3339(*now),
        newest = format_rfc3339(*newest)
    )]
    DoubtfulClock {
        /// The clock.
        now: Timestamp,
        /// The newest row.
        newest: Timestamp,
    },
    /// A sweep stopped early.
    #[error("the sweep stopped early, what is due stays due: {0}")]
    Sweep(String),
    /// A part that must run as long as the service does has stopped.
    #[error("{0} has stopped unexpectedly")]
    TaskStopped(String),
}

impl AppError {
    /// Returns whether it happened before the service was up.
    pub fn is_at_start(&self) -> bool {
        !matches!(self, Self::Sweep(_) | Self::DoubtfulClock { .. } | Self::TaskStopped(_))
    }
}
