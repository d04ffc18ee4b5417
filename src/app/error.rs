//! The errors that keep the service from starting or make it stop, and the errors of commands.

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
    telemetry::collector::CollectorError,
};

/// The service could not start or had to stop, or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be created or written.
    #[error(
        "data directory {path}: {source}: name another one in data_dir, or give this user the \
         right to write there{hint}",
        hint = io_hint(source)
    )]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Other users have rights on a file or a folder of the service.
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
    /// The command needs a database that exists.
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
    /// The PostgreSQL database could not be reached within `database.startup_timeout`.
    #[error("{error}: gave up after {} (setting database.startup_timeout)", brief(*.waited))]
    NotReached {
        /// The time that passed until the service gave up.
        waited: Duration,
        /// The error of the last attempt.
        error: postgres::open_error::OpenError,
    },
    /// The database returned an error.
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
        /// The reason.
        error: MasterKeyError,
    },
    /// The setting names a file that does not exist. The file is not created, because the path may
    /// be a mistake.
    #[error(
        "setting keys.master_key_file: {0} does not exist, and is not made: correct the path, or \
         restore the file from a backup, or for a new database run `openssl rand -base64 32 > \
         {path} && chmod 600 {path}`",
        path = .0.display()
    )]
    NoMasterKeyFile(PathBuf),
    /// The setting of the additional master key names a file that does not exist.
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
    /// The master key of a shared database is missing. No new key is created, because the other
    /// replicas would not have it.
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
    /// A private key cannot be imported.
    #[error("private key {path}: {problem}")]
    NotImported {
        /// The file of the key.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// The first keys could not be generated.
    #[error(transparent)]
    NotGenerated(#[from] NotGenerated),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The collector of traces and metrics cannot be used.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// The random generator failed.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// A backup or a restore was refused, or failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A sweep would use a clock that may be wrong.
    #[error(
        "it is {now} by the clock of this machine, and the newest row of the database is of \
         {newest}: if the clock is wrong, a sweep deletes what is still needed. Set the clock, or \
         say --clock-is-right",
        now = format_rfc3339(*now),
        newest = format_rfc3339(*newest)
    )]
    DoubtfulClock {
        /// The time by this machine's clock.
        now: Timestamp,
        /// The time of the newest row.
        newest: Timestamp,
    },
    /// A sweep stopped early.
    #[error("the sweep stopped early, and the next one has to do the rest: {0}")]
    Sweep(String),
    /// A task that must run as long as the service does has stopped.
    #[error("{0} has stopped unexpectedly")]
    TaskStopped(String),
}

impl AppError {
    /// Returns whether the error keeps a service or a command from starting.
    pub fn is_at_start(&self) -> bool {
        !matches!(self, Self::Sweep(_) | Self::DoubtfulClock { .. } | Self::TaskStopped(_))
    }
}
