//! Decides whether an access token of Countersign is active: parses it, checks its signature, looks
//! it up among the revocations, and checks the lease under which this process may rely on what it
//! knows of them.
//!
//! The server and the clients that verify tokens themselves use this crate, so that they cannot
//! differ. It has no runtime, no network and no database, and reads no configuration. Whoever uses
//! it feeds the [`index`](index::Index) and the [`lease`](lease::Lease), and calls
//! [`Verifier::answer`](validate::Verifier::answer).
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

pub mod access;
pub mod bearer;
pub mod claims;
pub mod clock;
pub mod counters;
pub mod credential;
pub mod cut_off;
mod cut_offs;
mod factor_times;
pub mod factors;
pub mod ids;
pub mod inactive;
pub mod index;
pub mod json_object;
pub mod keys;
pub mod lease;
pub mod reach;
pub mod revocation;
pub mod text;
pub mod time;
pub mod validate;
pub mod verified_cache;
