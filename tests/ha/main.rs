//! Runs replicas of the real binary on three PostgreSQL servers under Patroni, while the primary is
//! replaced. Every call is recorded, and the checker of the torture tests then decides whether
//! everything that was acknowledged held.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod fleet;
mod replacing;
