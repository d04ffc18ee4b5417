//! The gRPC side: messages to domain types and back, errors to statuses, and the server.

mod answers;
mod claims;
mod common;
mod connection;
mod deadline;
mod key_service;
mod requests;
pub mod server;
mod session_service;
mod status;
