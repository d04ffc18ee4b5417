//! Tests of the rules of the service on PostgreSQL, including those that hold on PostgreSQL alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/double.rs"]
mod double;
#[path = "support/on_postgres.rs"]
mod engine;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http_client;
#[path = "support/log.rs"]
#[allow(dead_code)]
mod log;
#[path = "support/postgres.rs"]
mod postgres_server;
#[path = "support/refusal.rs"]
mod refusal;
#[path = "support/server.rs"]
mod server;

#[path = "service/postgres_only.rs"]
mod postgres_only;
#[path = "service/mod.rs"]
mod service;
