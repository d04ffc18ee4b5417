//! The gRPC server, which converts messages to domain types and back, and errors to statuses.

mod access;
mod activity;
mod admission;
mod answers;
mod claims;
mod common;
mod connection_driver;
mod deadline;
mod ext_authz;
mod frame_budget;
pub mod health;
mod key_service;
mod refused;
mod request_body;
mod requests;
pub mod server;
pub mod services;
mod session_service;
mod spawner;
mod status;
mod unsent;

/// Exported for the fuzz targets: these conversions are functions, not implementations of traits.
#[cfg(fuzzing)]
pub use self::requests::{question, requested_session};
