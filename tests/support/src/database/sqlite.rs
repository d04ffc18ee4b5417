//! A SQLite file for one test, which the test also accesses directly.

use std::{
    fs,
    path::{Path, PathBuf},
};

use countersign::store::sqlite::files;
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::BigInt,
};
use tempfile::TempDir;

use crate::server::eventually;

/// A database and its file.
#[derive(Clone)]
pub struct SqliteDatabase {
    /// The path of the file.
    pub file: PathBuf,
}

/// A copy of the database at some instant.
pub struct Backup(TempDir);

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

impl SqliteDatabase {
    /// Names the database of a service with this data directory. The service creates the database
    /// and the master key at its first start.
    pub fn new(data_dir: &Path) -> Self {
        Self { file: data_dir.join("countersign.db") }
    }

    /// Returns the URL for the settings.
    pub fn url(&self) -> String {
        format!("sqlite://{}", self.file.display())
    }

    /// Returns the number of rows of a table, by a connection that cannot write.
    pub fn count(&self, table: &str) -> i64 {
        let mut connection = connect(&format!("file:{}?mode=ro", self.file.display()));
        let count = sql_query(format!("SELECT count(*) AS count FROM {table}"));
        count.get_result::<Count>(&mut connection).unwrap().count
    }

    /// Executes statements.
    pub fn execute(&self, sql: &str) {
        connect(&self.file.display().to_string()).batch_execute(sql).unwrap();
    }

    /// Keeps all other connections from writing until the returned connection is dropped.
    pub fn hold(&self) -> SqliteConnection {
        let mut connection = connect(&self.file.display().to_string());
        connection.batch_execute("BEGIN IMMEDIATE").unwrap();
        connection
    }

    /// Waits until a stopped service has released its lock. Background tasks do so when they are
    /// polled next.
    pub async fn released(&self) {
        eventually("the lock is free", async || files::lock(&self.file).ok().map(drop)).await;
    }

    /// Makes a copy while the service runs, as an operator does.
    pub fn back_up(&self) -> Backup {
        let backup = Backup(tempfile::tempdir().unwrap());
        self.execute(&format!("VACUUM INTO '{}'", backup.file().display()));
        backup
    }

    /// Restores the copy. No service may be running.
    pub async fn restore(&self, backup: Backup) {
        let log = format!("{}-wal", self.file.display());
        // The write-ahead log is deleted when the last connection is closed, a moment after the
        // service has stopped.
        eventually("the database is closed", async || (!fs::exists(&log).unwrap()).then_some(()))
            .await;
        fs::copy(backup.file(), &self.file).unwrap();
    }
}

impl Backup {
    fn file(&self) -> PathBuf {
        self.0.path().join("backup.db")
    }
}

/// Opens a connection to a file or a URL of SQLite.
pub fn connect(url: &str) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(url).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection
}
