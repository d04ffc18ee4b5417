//! Opens the database that the configuration names, and checks the folders that it needs.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;

use super::AppError;
use crate::{
    config::{
        Config,
        database::{DatabaseUrl, PostgresUrl},
        keys::MasterKeySource,
    },
    domain::{
        file_access::{Access, Exposed, Identity, Role, Rule},
        time::brief,
    },
    keys::private_file,
    store::{
        Store,
        postgres::{self, PostgresStore},
        sqlite::{SqliteStore, files::is_restore_unfinished},
    },
};

/// Opens the database that the configuration names.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, AppError> {
    warn_of_password_file(config);
    connect(config).await
}

async fn connect(config: &Config) -> Result<Arc<dyn Store>, AppError> {
    make_folders(config)?;
    match &config.database {
        DatabaseUrl::Sqlite(path) if config.database_options.migrate => {
            Ok(Arc::new(SqliteStore::open(path).await?))
        }
        DatabaseUrl::Sqlite(path) => Ok(Arc::new(SqliteStore::open_migrated(path).await?)),
        DatabaseUrl::Postgres(url) => {
            Ok(Arc::new(PostgresStore::open(&postgres_options(config, url)).await?))
        }
    }
}

fn warn_of_password_file(config: &Config) {
    if let Some(warning) = password_file_warning(config) {
        tracing::warn!("{warning}");
    }
}

/// Returns a warning if other users have rights on the password file.
pub fn password_file_warning(config: &Config) -> Option<String> {
    let path =
        config.database_options.password_file.as_ref().filter(|_| config.database.is_shared())?;
    let exposure = private_file::exposure(path)?;
    let (path, command) = (path.display(), exposure.command());
    Some(format!("setting database.password_file: {path} {exposure}: run `{command} {path}`"))
}

/// The first and the longest pause between two attempts to reach a database.
const RETRY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Opens the database that the configuration names. Retries for `database.startup_timeout` if it
/// cannot be reached yet, because machines and containers start in any order.
pub async fn await_store(config: &Config) -> Result<Arc<dyn Store>, AppError> {
    warn_of_password_file(config);
    let limit = config.database_options.startup_timeout;
    let began = Instant::now();
    let [first, longest] = RETRY;
    let backoff =
        ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_jitter();
    let mut logged = String::new();
    let opened = (|| connect(config))
        .retry(backoff.without_max_times())
        .when(|error| is_temporary(error) && began.elapsed() < limit)
        .notify(|error, _| {
            let problem = error.to_string();
            if problem != logged {
                tracing::warn!(
                    "{problem}: trying again for {} (database.startup_timeout)",
                    brief(limit)
                );
                logged = problem;
            }
        })
        .await;
    match opened {
        Ok(store) => {
            if !logged.is_empty() {
                tracing::info!(database = %config.database, "the database can be reached");
            }
            Ok(store)
        }
        Err(AppError::Postgres(error)) if error.is_temporary() && !limit.is_zero() => {
            Err(AppError::NotReached { waited: began.elapsed(), error })
        }
        Err(error) => Err(error),
    }
}

fn is_temporary(error: &AppError) -> bool {
    matches!(error, AppError::Postgres(error) if error.is_temporary())
}

/// Returns the options with which the PostgreSQL engine is opened.
pub fn postgres_options(config: &Config, url: &PostgresUrl) -> postgres::connect::Options {
    use postgres::connect::{Options, Password};

    let asked = &config.database_options;
    let password = match (&asked.password_file, &config.database_password) {
        (Some(path), _) => Password::File(path.clone()),
        (None, Some(password)) if !url.has_password() => {
            Password::Text(password.reveal().to_owned())
        }
        (None, _) => Password::InUrl,
    };
    Options {
        url: url.with_password().to_owned(),
        name: config.database.to_string(),
        password,
        migrate: asked.migrate,
        max_connections: asked.max_connections,
        connect_timeout: asked.connect_timeout,
        acquire_timeout: asked.acquire_timeout,
        statement_timeout: asked.statement_timeout,
        max_clock_skew: config.lease.max_clock_skew,
    }
}

/// Creates the data directory, and refuses one in which other users can replace files. If the
/// database is in another folder, that folder must exist: if it is missing, the path is probably
/// mistyped.
pub fn make_folders(config: &Config) -> Result<(), AppError> {
    require_folder(config)?;
    let path = config.data_dir.clone();
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|source| AppError::DataDir { path, source })?;
    if is_data_dir_used(config) {
        check_folder(&config.data_dir)?;
    }
    Ok(())
}

/// Returns whether the data directory contains something that must be protected. If the database is
/// PostgreSQL and the master key is elsewhere, it does not.
pub fn is_data_dir_used(config: &Config) -> bool {
    let has_master_key = match &config.keys.master {
        MasterKeySource::File(path) | MasterKeySource::DefaultFile(path) => {
            path.parent() == Some(config.data_dir.as_path())
        }
        _ => false,
    };
    has_master_key || matches!(config.database, DatabaseUrl::Sqlite(_))
}

/// Fails if an SQLite database would be in a folder that does not exist and is not created.
pub fn require_folder(config: &Config) -> Result<(), AppError> {
    let DatabaseUrl::Sqlite(database) = &config.database else { return Ok(()) };
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.exists() && *folder != config.data_dir) {
        Some(folder) => {
            Err(AppError::NoSuchFolder { path: database.clone(), folder: folder.to_owned() })
        }
        None => Ok(()),
    }
}

/// Refuses a folder in which other users can create and remove files.
pub fn check_folder(path: &Path) -> Result<(), AppError> {
    let io_error = |source| AppError::DataDir { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io_error)?;
    let access = Access::from(&metadata);
    let judged = Rule::OthersOnlyRead.judge(access, access, &Identity::of_this_process());
    judged
        .map_err(|exposure| Exposed { role: Role::Folder, path: path.to_owned(), exposure }.into())
}

/// Fails if there is no database, for commands that must not create one.
pub fn require_database(config: &Config) -> Result<(), AppError> {
    match &config.database {
        // The file may be missing because a restore was interrupted. The error is reported when the
        // database is opened.
        DatabaseUrl::Sqlite(path) if !path.exists() && !is_restore_unfinished(path) => {
            Err(AppError::NoDatabase(path.clone()))
        }
        DatabaseUrl::Sqlite(_) | DatabaseUrl::Postgres(_) => Ok(()),
    }
}
