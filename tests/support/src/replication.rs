//! A primary and a standby. Commits may wait for the standby, and the standby can fall behind and
//! take over.

use tokio::task::{block_in_place, spawn_blocking};

use crate::{
    cluster::becomes,
    postgres_server::{Server, execute, number},
};

/// Two servers. The second follows the first until it takes over.
pub struct Pair {
    /// The server that writes.
    pub primary: Server,
    /// The server that follows.
    pub standby: Server,
}

/// Changes a setting of a running server.
async fn set(server: &Server, setting: &str, value: &str) {
    let admin = server.url("postgres");
    // The two statements are sent separately, because ALTER SYSTEM cannot run in a transaction.
    execute(&admin, &format!("ALTER SYSTEM SET {setting} = '{value}'")).await;
    execute(&admin, "SELECT pg_reload_conf()").await;
}

impl Pair {
    /// Starts a pair in which no commit waits for the standby.
    pub async fn asynchronous() -> Self {
        let start = || {
            let primary = Server::start();
            let standby = primary.start_standby();
            Self { primary, standby }
        };
        let pair = spawn_blocking(start).await.unwrap();
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        becomes(&pair.primary.url("postgres"), streaming, 1).await;
        pair
    }

    /// Starts a pair in which every commit waits for the standby.
    pub async fn synchronous() -> Self {
        let pair = Self::asynchronous().await;
        set(&pair.primary, "synchronous_standby_names", "*").await;
        let waited_for = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        becomes(&pair.primary.url("postgres"), waited_for, 1).await;
        pair
    }

    /// Returns the URL of a database that names both servers.
    pub fn url(&self, database: &str) -> String {
        Server::url_of(&[&self.primary, &self.standby], database)
    }

    /// Waits until the standby has everything that has been committed, and then cuts the standby
    /// off from later commits.
    pub async fn part(&self) {
        let (primary, standby) = (self.primary.url("postgres"), self.standby.url("postgres"));
        let written = number(&primary, "SELECT (pg_current_wal_lsn() - '0/0')::bigint").await;
        let replayed =
            format!("SELECT (pg_last_wal_replay_lsn() - '0/0' >= {written})::int::bigint");
        becomes(&standby, &replayed, 1).await;
        set(&self.standby, "primary_conninfo", "").await;
        becomes(&standby, "SELECT count(*) FROM pg_stat_wal_receiver", 0).await;
    }

    /// Stops the primary as a crash would.
    pub fn crash(&self) {
        block_in_place(|| self.primary.crash());
    }

    /// Promotes the standby.
    pub fn promote(&self) {
        block_in_place(|| self.standby.promote());
    }
}
