//! Countersign, a session authority: creates, refreshes, validates and revokes JWT sessions over
//! gRPC. The README describes how to use it, `docs/architecture.md` how it is built.
//!
//! # Direction of calls
//! ```text
//! grpc / cli / tasks  ->  authority (one use case a file)  ->  store (database)
//!    proto <-> domain        decides, with `now` given     ->  keys, token (pure cryptography)
//!     callers (who may)  ->                                ->  revocation (index and its lease)
//!    http (and grpc)     ->  gateway (may it pass, and who is it)
//!                http    ->  authority, metrics
//!                 everything may use  ->  domain (pure types and rules)
//!   domain, token, keys, revocation   ->  verification (is this token active?)
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable,
        clippy::print_stdout
    ),
    warn(clippy::too_many_lines)
)]

pub mod app;
pub mod authority;
pub mod callers;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod gateway;
pub mod grpc;
pub mod http;
pub mod instruments;
pub mod keys;
pub mod metrics;
pub mod net;
pub mod proto;
pub mod revocation;
pub mod rng;
pub mod shutdown;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod token;
