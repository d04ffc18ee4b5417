//! The gRPC side: messages to domain types and back, errors to statuses, and the server.

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

/// The conversions that are no traits of public types.
#[cfg(fuzzing)]
pub use self::requests::{question, requested_session};
