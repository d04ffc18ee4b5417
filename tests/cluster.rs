//! Runs replicas of the real binary on one PostgreSQL database, and checks the guarantees while
//! processes, connections and servers fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/altered.rs"]
mod altered;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/double.rs"]
#[allow(dead_code)]
mod double;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http_client;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/postgres.rs"]
mod postgres_server;
#[path = "support/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "support/replication.rs"]
mod replication;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;

/// The module that `double.rs` uses.
mod server {
    pub use crate::cluster::in_time;
}

#[path = "cluster/cancelled.rs"]
mod cancelled;
#[path = "cluster/failing.rs"]
mod failing;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/flood.rs"]
mod flood;
#[path = "cluster/keys.rs"]
mod keys;
#[path = "cluster/killed.rs"]
mod killed;
#[path = "cluster/lapsed.rs"]
mod lapsed;
#[path = "cluster/listing.rs"]
mod listing;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/metrics.rs"]
mod metrics;
#[path = "cluster/refreshing.rs"]
mod refreshing;
#[path = "cluster/replicas.rs"]
mod replicas;
#[path = "cluster/restore.rs"]
mod restore;
#[path = "cluster/revoking.rs"]
mod revoking;
#[path = "cluster/set_back.rs"]
mod set_back;
#[path = "cluster/slow.rs"]
mod slow;
#[path = "cluster/starting.rs"]
mod starting;
#[path = "cluster/statements.rs"]
mod statements;
#[path = "cluster/stuck.rs"]
mod stuck;
#[path = "cluster/witness.rs"]
mod witness;
