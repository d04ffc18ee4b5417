//! A PostgreSQL database for one test, reached behind the service's back.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path};

use countersign::{keys::master_key, rng::SystemRng};
use tokio_postgres::{Client, NoTls};

use crate::{
    postgres_server::{execute, new_database, number},
    server::eventually,
};

/// Where the database is.
#[derive(Clone)]
pub struct Database {
    url: String,
}

/// The database as it was at some instant, in a schema of its own.
pub struct Backup;

/// The server asks for no password, and so does not mind one.
const PASSWORD: &str = "password-of-the-database";

/// What the settings hold that nobody may read, by name.
pub const SECRETS: [(&str, &str); 1] = [("password of the database", PASSWORD)];

/// The identifier of a record of the audit in small hexadecimal digits.
#[allow(dead_code)] // Not every binary of tests looks at the audit.
pub const AUDIT_ID: &str = "replace(id::text, '-', '')";

impl Database {
    /// For a service with this data directory. The service does not make the master key, so it is
    /// there before.
    pub async fn new(data_dir: &Path) -> Self {
        fs::DirBuilder::new().mode(0o700).create(data_dir).unwrap();
        master_key::create(&data_dir.join("master.key"), &SystemRng::default()).unwrap();
        Self::at(&new_database().await)
    }

    /// One that is there.
    pub fn at(url: &str) -> Self {
        Self { url: url.replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1) }
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        number(&self.url, &format!("SELECT count(*) FROM {table}")).await
    }

    /// Runs statements.
    pub async fn execute(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    /// Keeps everybody else from writing for as long as what is returned lives.
    pub async fn hold(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN; LOCK TABLE sessions, blacklist IN SHARE MODE").await.unwrap();
        client
    }

    /// Waits until a service that has stopped has let go of it. Background tasks do when they are
    /// next polled.
    pub async fn released(&self) {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        eventually("every connection is closed", async || {
            (number(&self.url, others).await == 0).then_some(())
        })
        .await;
    }

    /// What an operator does while the service runs, though with a tool of their own.
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

    /// Sets the database back, once no service runs.
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
