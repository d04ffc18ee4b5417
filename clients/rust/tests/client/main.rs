//! Tests of the library against the real service, which runs as a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod calls;
mod grpc_layer;
mod http_layer;
mod link;
mod secrecy;
mod site;
mod unwatched;
mod watching;
