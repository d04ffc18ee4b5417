//! Connections: accepted within limits, encrypted if so configured, and handed to whoever speaks
//! the protocol.

pub mod accept;
pub mod connection;
pub mod descriptors;
pub mod read_budget;
mod refused_certificates;
pub mod tls;
