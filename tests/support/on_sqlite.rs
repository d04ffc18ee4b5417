//! A SQLite file for one test, reached behind the service's back.

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

/// Where the database is.
pub struct Database {
    pub file: PathBuf,
}

/// The database as it was at some instant.
pub struct Backup(TempDir);

/// What the settings hold that nobody may read, by name.
pub const SECRETS: [(&str, &str); 0] = [];

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// The identifier of a record of the audit in small hexadecimal digits.
#[allow(dead_code)] // Not every binary of tests looks at the audit.
pub const AUDIT_ID: &str = "lower(hex(id))";

impl Database {
    /// For a service with this data directory. The service makes it at its first start, and the
    /// master key with it.
    pub async fn new(data_dir: &Path) -> Self {
        Self { file: data_dir.join("countersign.db") }
    }

    pub fn url(&self) -> String {
        format!("sqlite://{}", self.file.display())
    }

    /// How many rows a table has, asked through a connection that cannot write.
    pub async fn count(&self, table: &str) -> i64 {
        let mut connection = connect(&format!("file:{}?mode=ro", self.file.display()));
        let count = sql_query(format!("SELECT count(*) AS count FROM {table}"));
        count.get_result::<Count>(&mut connection).unwrap().count
    }

    /// Runs statements.
    pub async fn execute(&self, sql: &str) {
        connect(&self.file.display().to_string()).batch_execute(sql).unwrap();
    }

    /// Keeps everybody else from writing for as long as what is returned lives.
    pub async fn hold(&self) -> SqliteConnection {
        let mut connection = connect(&self.file.display().to_string());
        connection.batch_execute("BEGIN IMMEDIATE").unwrap();
        connection
    }

    /// Waits until a service that has stopped has let go of it. Background tasks do when they are
    /// next polled.
    pub async fn released(&self) {
        eventually("the lock is free", async || files::lock(&self.file).ok().map(drop)).await;
    }

    /// What an operator does while the service runs.
    pub async fn back_up(&self) -> Backup {
        let backup = Backup(tempfile::tempdir().unwrap());
        self.execute(&format!("VACUUM INTO '{}'", backup.file().display())).await;
        backup
    }

    /// Sets the database back, once no service runs.
    pub async fn restore(&self, backup: Backup) {
        let log = format!("{}-wal", self.file.display());
        // The last connection takes it along when it is closed, which is a moment after the service
        // has stopped.
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

pub fn connect(url: &str) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(url).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection
}
