//! Checks how bad input is answered on PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/double.rs"]
#[allow(dead_code)]
mod double;
#[path = "support/on_postgres.rs"]
#[allow(dead_code)]
mod engine;
#[path = "support/forge.rs"]
#[allow(dead_code)]
mod forge;
#[path = "support/log.rs"]
#[allow(dead_code)]
mod log;
#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres_server;
#[path = "support/refusal.rs"]
#[allow(dead_code)]
mod refusal;
#[path = "support/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "support/site.rs"]
#[allow(dead_code)]
mod site;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;

#[path = "bad_input/mod.rs"]
mod bad_input;
#[path = "bad_input/operation_on_postgres.rs"]
mod operation_on_postgres;
