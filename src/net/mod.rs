//! Connections are accepted within limits, encrypted if so configured, and handed to the server of
//! the protocol.

pub mod accept;
pub mod connection;
pub mod descriptors;
pub mod read_budget;
mod refused_certificates;
pub mod tls;
