//! The database of a run: on a server that is shared by runs, or on one of its own with a standby
//! that takes over.

use std::{path::Path, process::Command, sync::Arc};

use tokio::{sync::Mutex, task::block_in_place};

use crate::{
    postgres_server::{Server, execute, program, try_execute},
    replication::Pair,
};

/// What the servers are, and which of them is in charge.
pub struct Database {
    name: String,
    primary: Arc<Server>,
    /// Until it takes over.
    standby: Mutex<Option<Server>>,
    /// Since then.
    successor: Mutex<Option<Server>>,
}

impl Database {
    /// An empty one on this server; what there was of this name is dropped.
    pub async fn fresh(server: &Arc<Server>, name: &str) -> Self {
        let admin = server.url("postgres");
        execute(&admin, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        execute(&admin, &format!("CREATE DATABASE {name}")).await;
        Self::on(server.clone(), name, None)
    }

    /// An empty one on a server of its own, every commit of which waits for a standby.
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

    /// Where it is at the beginning.
    pub fn url(&self) -> String {
        self.primary.url(&self.name)
    }

    /// Runs statements on all servers that there are.
    pub async fn try_execute(&self, sql: &str) {
        // Each of them may be away.
        let _ = try_execute(&self.url(), sql).await;
        if let Some(successor) = &*self.successor.lock().await {
            let _ = try_execute(&successor.url(&self.name), sql).await;
        }
    }

    /// Stops it as a crash would.
    pub fn crash(&self) {
        block_in_place(|| self.primary.crash());
    }

    /// Starts it again.
    pub fn restart(&self) {
        block_in_place(|| self.primary.restart());
    }

    /// Dumps it into a file.
    pub fn dump(&self, file: &Path) {
        let mut dump = Command::new(program("pg_dump"));
        dump.args(["--format=custom", "--file"]).arg(file).arg(self.url());
        assert!(block_in_place(|| dump.status()).unwrap().success());
    }

    /// Puts a dump back, all at once.
    pub fn restore(&self, file: &Path) {
        let mut restore = Command::new(program("pg_restore"));
        restore
            .args(["--clean", "--if-exists", "--single-transaction", "--dbname"])
            .arg(self.url())
            .arg(file);
        // Those who write at the same time may make it the victim of a deadlock.
        while !block_in_place(|| restore.output()).unwrap().status.success() {}
    }

    /// Copies the server's files while it runs.
    pub fn copy(&self) {
        block_in_place(|| self.primary.copy());
    }

    /// Goes on with the files that were copied.
    pub fn put_copy_back(&self) {
        block_in_place(|| self.primary.put_copy_back());
    }

    /// Lets the standby take over, while the primary goes on alone; returns the URL of the one in
    /// charge. None if there is no standby any more.
    pub async fn promote(&self) -> Option<String> {
        let standby = self.standby.lock().await.take()?;
        let url = standby.url(&self.name);
        block_in_place(|| standby.promote());
        *self.successor.lock().await = Some(standby);
        Some(url)
    }
}
