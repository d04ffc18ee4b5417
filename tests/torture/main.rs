//! Runs replicas of the real binary on a real PostgreSQL server, while processes, links and the
//! server fail at random. Watchers, which verify tokens themselves, run beside the replicas and fail
//! too. Every call is recorded, and a checker then decides whether every acknowledged revocation
//! held on every replica and every watcher.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod altered;
mod checker_tests;
mod database;
mod faults;
mod fleet;
mod long;
mod mutants;
mod profiles;
mod run;
mod runs;
mod rust_watcher;
mod watch_process;
mod watch_routes;
mod watchers;
