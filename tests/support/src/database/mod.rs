//! The database of one test, on the engine that the test is run for. The service under test uses
//! it, and the test also accesses it directly.

pub mod postgres;
pub mod sqlite;

use std::{any::Any, path::Path};

use self::{postgres::PostgresDatabase, sqlite::SqliteDatabase};

/// An engine of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

tokio::task_local! {
    /// The engine that the running test is for.
    static ENGINE: Engine;
}

impl Engine {
    /// Runs a test on this engine. Every [`Database::new`] in the test's own task uses it.
    pub async fn run<T>(self, test: impl Future<Output = T>) -> T {
        ENGINE.scope(self, test).await
    }
}

/// A database of either engine.
#[derive(Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite(SqliteDatabase),
    /// A database on a PostgreSQL server.
    Postgres(PostgresDatabase),
}

/// A copy of a database at some instant.
pub enum Backup {
    /// A copy of the file.
    Sqlite(sqlite::Backup),
    /// A copy within the database.
    Postgres(postgres::Backup),
}

impl Database {
    /// Prepares a database for a service with this data directory, on the engine that the test is
    /// run for.
    pub async fn new(data_dir: &Path) -> Self {
        let engine = ENGINE.try_with(|engine| *engine);
        match engine.expect("Database::new is called within Engine::run, and not in a spawned task")
        {
            Engine::Sqlite => Self::Sqlite(SqliteDatabase::new(data_dir)),
            Engine::Postgres => Self::Postgres(PostgresDatabase::new(data_dir).await),
        }
    }

    /// Returns its engine.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
        }
    }

    /// Returns the URL for the settings.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(database) => database.url(),
            Self::Postgres(database) => database.url(),
        }
    }

    /// Returns the secrets in the settings, each with its name.
    pub fn secrets(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Sqlite(_) => &[],
            Self::Postgres(_) => &postgres::SECRETS,
        }
    }

    /// Returns the SQL expression for the identifier of an audit record, in lower-case hexadecimal
    /// digits.
    pub fn audit_id(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "lower(hex(id))",
            Self::Postgres(_) => "replace(id::text, '-', '')",
        }
    }

    /// Returns the number of rows of a table.
    pub async fn count(&self, table: &str) -> i64 {
        match self {
            Self::Sqlite(database) => database.count(table),
            Self::Postgres(database) => database.count(table).await,
        }
    }

    /// Executes statements.
    pub async fn execute(&self, sql: &str) {
        match self {
            Self::Sqlite(database) => database.execute(sql),
            Self::Postgres(database) => database.execute(sql).await,
        }
    }

    /// Keeps all other connections from writing until the returned connection is dropped.
    pub async fn hold(&self) -> Box<dyn Any + Send> {
        match self {
            Self::Sqlite(database) => Box::new(database.hold()),
            Self::Postgres(database) => Box::new(database.hold().await),
        }
    }

    /// Waits until a stopped service has released the database. Its background tasks release the
    /// database only when they are polled next.
    pub async fn released(&self) {
        match self {
            Self::Sqlite(database) => database.released().await,
            Self::Postgres(database) => database.released().await,
        }
    }

    /// Makes a copy while the service runs.
    pub async fn back_up(&self) -> Backup {
        match self {
            Self::Sqlite(database) => Backup::Sqlite(database.back_up()),
            Self::Postgres(database) => Backup::Postgres(database.back_up().await),
        }
    }

    /// Restores the copy. No service may be running.
    pub async fn restore(&self, backup: Backup) {
        match (self, backup) {
            (Self::Sqlite(database), Backup::Sqlite(backup)) => database.restore(backup).await,
            (Self::Postgres(database), Backup::Postgres(backup)) => database.restore(backup).await,
            _ => panic!("the backup is of another engine"),
        }
    }
}
