#![doc = include_str!("../README.md")]
//!
//! # The way through the code
//! ```text
//! grpc / cli / tasks  ->  authority (one use case a file)  ->  store (database)
//!    proto <-> domain        decides, with `now` given     ->  keys, token (pure cryptography)
//!                                                          ->  revocation (in-memory index and its feed)
//!                 everything may use  ->  domain (pure types and rules)
//! ```
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)
)]

pub mod authority;
pub mod clock;
pub mod domain;
pub mod keys;
pub mod revocation;
pub mod rng;
pub mod store;
pub mod token;
