//! The database of a run. It is either on a server that all runs share, or on a server of its own
//! with a standby that can take over.

use std::{path::Path, process::Command, sync::Arc};

use countersign::store::postgres;
use countersign_test_support::{
    postgres_server::{Server, execute, options, program, try_execute},
    replication::Pair,
};
use tokio::{sync::Mutex, task::block_in_place};

/// A database, and the servers that hold it.
pub struct Database {
    name: String,
    primary: Arc<Server>,
    /// The standby, until it is promoted.
    standby: Mutex<Option<Server>>,
    /// The former standby, once it is promoted.
    successor: Mutex<Option<Server>>,
}

impl Database {
    /// Creates an empty database on this server. Drops an existing database of this name.
    pub async fn fresh(server: &Arc<Server>, name: &str) -> Self {
        let admin = server.url("postgres");
        execute(&admin, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        execute(&admin, &format!("CREATE DATABASE {name}")).await;
        Self::on(server.clone(), name, None)
    }

    /// Creates an empty database on a server of its own, every commit of which waits for a standby.
    pub async fn replicated() -> Self {
        let Pair { primary, standby } = Pair::synchronous().await;
        Self::on(Arc::new(primary), "postgres", Some(standby))
    }

    fn on(primary: Arc<Server>, name: &str, standby: Option<Server>) -> Self {
        Self {
            name: name.to_owned(),
            primary,
            standby: Mutex::new(standby),
            successor: Mutex::default(),
        }
    }

    /// Creates the tables, and then executes statements that alter them, if there are any.
    pub async fn alter(&self, sql: &str) {
        if !sql.is_empty() {
            postgres::migrate(&options(&self.url())).await.unwrap();
            execute(&self.url(), sql).await;
        }
    }

    /// Returns the URL of the database at the first primary.
    pub fn url(&self) -> String {
        self.primary.url(&self.name)
    }

    /// Runs statements on the first primary and, if the standby was promoted, also on the new
    /// primary. Ignores errors, because each server may be down.
    pub async fn try_execute(&self, sql: &str) {
        let _ = try_execute(&self.url(), sql).await;
        if let Some(successor) = &*self.successor.lock().await {
            let _ = try_execute(&successor.url(&self.name), sql).await;
        }
    }

    /// Stops the first primary as a crash would.
    pub fn crash(&self) {
        block_in_place(|| self.primary.crash());
    }

    /// Starts the first primary again.
    pub fn restart(&self) {
        block_in_place(|| self.primary.restart());
    }

    /// Dumps the database into a file.
    pub fn dump(&self, file: &Path) {
        let mut dump = Command::new(program("pg_dump"));
        dump.args(["--format=custom", "--file"]).arg(file).arg(self.url());
        assert!(block_in_place(|| dump.status()).unwrap().success());
    }

    /// Restores a dump in one transaction.
    pub fn restore(&self, file: &Path) {
        let mut restore = Command::new(program("pg_restore"));
        restore
            .args(["--clean", "--if-exists", "--single-transaction", "--dbname"])
            .arg(self.url())
            .arg(file);
        // Replicas write at the same time, so PostgreSQL may choose the restore as the victim of a
        // deadlock.
        const ATTEMPTS: usize = 50;
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            let output = block_in_place(|| restore.output()).unwrap();
            if output.status.success() {
                return;
            }
            problem = String::from_utf8_lossy(&output.stderr).into_owned();
        }
        panic!("pg_restore failed {ATTEMPTS} times: {problem}");
    }

    /// Copies the server's files while it runs.
    pub fn copy(&self) {
        block_in_place(|| self.primary.copy());
    }

    /// Stops the server as a crash would, and starts it with the files that `copy` has kept.
    pub fn put_copy_back(&self) {
        block_in_place(|| self.primary.put_copy_back());
    }

    /// Promotes the standby while the old primary keeps running. Returns the URL of the new
    /// primary, or `None` if the standby was promoted before.
    pub async fn promote(&self) -> Option<String> {
        let standby = self.standby.lock().await.take()?;
        let url = standby.url(&self.name);
        block_in_place(|| standby.promote());
        *self.successor.lock().await = Some(standby);
        Some(url)
    }
}
