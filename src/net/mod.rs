//! Accepts connections within limits, encrypts them if so configured, and passes them to the server
//! of the protocol.

pub mod accept;
pub mod connection;
pub mod descriptors;
pub mod read_budget;
mod refused_certificates;
pub mod tls;
