//! A PostgreSQL database for one test, which the test also accesses directly.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path};

use countersign::{keys::master_key, rng::SystemRng};
use tokio_postgres::{Client, NoTls};

use crate::{
    postgres_server::{execute, new_database, number},
    server::eventually,
};

/// A database and its URL.
#[derive(Clone)]
pub struct PostgresDatabase {
    url: String,
}

/// A copy of the database at some instant, in a schema of its own.
pub struct Backup;

/// A password for the URL. The server requires none, and accepts any.
const PASSWORD: &str = "password-of-the-database";

/// The secrets in the settings, each with its name.
pub const SECRETS: [(&str, &str); 1] = [("password of the database", PASSWORD)];

impl PostgresDatabase {
    /// Creates a database for a service with this data directory. Also creates the master key,
    /// because on PostgreSQL the service does not create one.
    pub async fn new(data_dir: &Path) -> Self {
        fs::DirBuilder::new().mode(0o700).create(data_dir).unwrap();
        master_key::create(&data_dir.join("master.key"), &SystemRng::default()).unwrap();
        Self::at(&new_database().await)
    }

    /// Uses an existing database.
    pub fn at(url: &str) -> Self {
        Self { url: url.replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1) }
    }

    /// Returns the URL for the settings.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Returns the number of rows of a table.
    pub async fn count(&self, table: &str) -> i64 {
        number(&self.url, &format!("SELECT count(*) FROM {table}")).await
    }

    /// Executes statements.
    pub async fn execute(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    /// Keeps all other connections from writing until the returned connection is dropped.
    pub async fn hold(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN; LOCK TABLE sessions, blacklist IN SHARE MODE").await.unwrap();
        client
    }

    /// Waits until a stopped service has closed its connections. Background tasks do so when they
    /// are polled next.
    pub async fn released(&self) {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        eventually("every connection is closed", async || {
            (number(&self.url, others).await == 0).then_some(())
        })
        .await;
    }

    /// Makes a copy while the service runs. An operator would use another tool.
    pub async fn back_up(&self) -> Backup {
        self.execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE SCHEMA backup; DO $$ DECLARE name \
             text; BEGIN FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' \
             LOOP EXECUTE format('CREATE TABLE backup.%I AS TABLE public.%I', name, name); END \
             LOOP; END $$; COMMIT",
        )
        .await;
        Backup
    }

    /// Restores the copy. No service may be running.
    pub async fn restore(&self, _: Backup) {
        self.execute(
            "DO $$ DECLARE name text; BEGIN FOR name IN SELECT tablename FROM pg_tables WHERE \
             schemaname = 'public' LOOP EXECUTE format('TRUNCATE public.%I; INSERT INTO public.%I \
             TABLE backup.%I', name, name, name); END LOOP; END $$; DROP SCHEMA backup CASCADE; \
             /* It lists the service of that time. A new one would wait for it, and the clock of \
             the test stands still. */ TRUNCATE replicas",
        )
        .await;
    }
}
