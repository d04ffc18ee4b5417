//! Tests of the rules of the service on SQLite, including those that hold on SQLite alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/double.rs"]
mod double;
#[path = "support/on_sqlite.rs"]
mod engine;
#[path = "support/forge.rs"]
mod forge;
#[path = "support/http.rs"]
mod http_client;
#[path = "support/log.rs"]
#[allow(dead_code)]
mod log;
#[path = "support/refusal.rs"]
mod refusal;
#[path = "support/server.rs"]
mod server;

#[path = "service/mod.rs"]
mod service;
#[path = "service/sqlite_only.rs"]
mod sqlite_only;
