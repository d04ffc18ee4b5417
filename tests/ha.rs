//! Runs replicas of the real binary on three PostgreSQL servers under Patroni, while the primary is
//! replaced. Every call is recorded, and the checker of the torture tests then decides whether
//! everything that was acknowledged held.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http_client;
#[path = "support/ledger.rs"]
#[allow(dead_code)]
mod ledger;
#[path = "support/patroni.rs"]
mod patroni;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres_server;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;

#[path = "torture/asking.rs"]
mod asking;
#[path = "torture/callers.rs"]
mod callers;
#[path = "torture/checker.rs"]
mod checker;
#[path = "torture/finishing.rs"]
mod finishing;
#[path = "torture/history.rs"]
#[allow(dead_code)]
mod history;
#[path = "torture/recorder.rs"]
#[allow(dead_code)]
mod recorder;

#[path = "ha/fleet.rs"]
mod fleet;
#[path = "ha/replacing.rs"]
mod replacing;
