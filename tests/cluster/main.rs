//! Runs replicas of the real binary on one PostgreSQL database, and checks the guarantees while
//! processes, connections and servers fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod altered;
mod cancelled;
mod clients;
mod failing;
mod failover;
mod flood;
mod keys;
mod killed;
mod lapsed;
mod listing;
mod load;
mod metrics;
mod reauthenticating;
mod refreshing;
mod replicas;
mod restore;
mod revoking;
mod set_back;
mod slow;
mod starting;
mod statements;
mod stuck;
mod witness;
