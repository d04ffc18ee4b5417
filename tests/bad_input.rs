//! Checks how bad input is answered on SQLite. Messages, frames and connections that are broken
//! below the level of a call are tested here only, because no engine is involved in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/double.rs"]
#[allow(dead_code)]
mod double;
#[path = "support/on_sqlite.rs"]
#[allow(dead_code)]
mod engine;
#[path = "support/forge.rs"]
#[allow(dead_code)]
mod forge;
#[path = "support/http2.rs"]
#[allow(dead_code)]
mod http2;
#[path = "support/log.rs"]
#[allow(dead_code)]
mod log;
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
#[path = "bad_input/grpc.rs"]
mod grpc;
#[path = "bad_input/http.rs"]
mod http_port;
#[path = "bad_input/memory.rs"]
mod memory;
#[path = "bad_input/operation.rs"]
mod operation;
