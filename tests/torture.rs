//! Runs replicas of the real binary on a real PostgreSQL server, while processes, links and the
//! server fail at random. Every call is recorded, and a checker then decides whether every
//! acknowledged revocation held on every replica.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/altered.rs"]
mod altered;
#[path = "support/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "support/double.rs"]
#[allow(dead_code)]
mod double;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http_client;
#[path = "support/ledger.rs"]
#[allow(dead_code)]
mod ledger;
#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres_server;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/replication.rs"]
#[allow(dead_code)]
mod replication;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;

/// The module that `double.rs` uses.
mod server {
    pub use crate::cluster::in_time;
}

#[path = "torture/asking.rs"]
mod asking;
#[path = "torture/callers.rs"]
mod callers;
#[path = "torture/checker.rs"]
mod checker;
#[path = "torture/checker_tests.rs"]
mod checker_tests;
#[path = "torture/database.rs"]
mod database;
#[path = "torture/faults.rs"]
mod faults;
#[path = "torture/finishing.rs"]
mod finishing;
#[path = "torture/fleet.rs"]
mod fleet;
#[path = "torture/history.rs"]
mod history;
#[path = "torture/long.rs"]
mod long;
#[path = "torture/mutants.rs"]
mod mutants;
#[path = "torture/profiles.rs"]
mod profiles;
#[path = "torture/recorder.rs"]
mod recorder;
#[path = "torture/run.rs"]
mod run;
#[path = "torture/runs.rs"]
mod runs;
