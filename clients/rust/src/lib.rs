#![doc = include_str!("../README.md")]
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

mod answer;
mod builder;
mod client;
mod demands;
mod endpoints;
mod error;
pub mod json;
pub mod layer;
pub mod proto;
mod session;
#[cfg(feature = "opentelemetry")]
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verifier;

pub use answer::{Answer, Unknown};
pub use builder::{BuildError, ClientBuilder};
pub use client::Client;
pub use countersign_verification::{ids::SessionId, inactive::InactiveReason};
pub use demands::Demands;
pub use error::{Error, FieldViolation, Reason};
pub use session::Session;
pub use verifier::Verifier;
