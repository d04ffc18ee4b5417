//! A primary with a standby: how commits wait for it, how it falls behind, and how it takes over.

use tokio::task::{block_in_place, spawn_blocking};

use crate::{
    cluster::becomes,
    postgres_server::{Server, execute, number},
};

/// Two servers, of which the second follows the first until it takes over.
pub struct Pair {
    pub primary: Server,
    pub standby: Server,
}

/// Changes a setting of a running server.
async fn set(server: &Server, setting: &str, value: &str) {
    let admin = server.url("postgres");
    // Apart: a setting of the system is changed outside of transactions.
    execute(&admin, &format!("ALTER SYSTEM SET {setting} = '{value}'")).await;
    execute(&admin, "SELECT pg_reload_conf()").await;
}

impl Pair {
    /// No commit waits for the standby.
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

    /// Every commit waits for the standby.
    pub async fn synchronous() -> Self {
        let pair = Self::asynchronous().await;
        set(&pair.primary, "synchronous_standby_names", "*").await;
        let waited_for = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        becomes(&pair.primary.url("postgres"), waited_for, 1).await;
        pair
    }

    /// A database by the names of both servers, whichever of them is in charge.
    pub fn url(&self, database: &str) -> String {
        Server::url_of(&[&self.primary, &self.standby], database)
    }

    /// Lets the standby have all that has been committed, and nothing of what will be.
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

    /// Lets the standby take over.
    pub fn promote(&self) {
        block_in_place(|| self.standby.promote());
    }
}
