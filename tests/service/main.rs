//! The rules of the service, checked from outside: configuration, store, server and tasks run as in production, and a
//! client asks over a socket. Only the clock is a settable one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/double.rs"]
mod double;
#[path = "../support/forge.rs"]
mod forge;
#[path = "../support/refusal.rs"]
mod refusal;
#[path = "../support/server.rs"]
mod server;

mod batch;
mod clock;
mod create;
mod faults;
mod fields;
mod health;
mod inactive;
mod lifecycle;
mod limits;
mod listing;
mod refresh;
mod refusals;
mod revoke;
mod secrecy;
mod setback;
