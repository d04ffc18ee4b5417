//! Accepts connections within limits, encrypts them if TLS is configured, and passes them to the
//! gRPC or the HTTP server.

pub mod accept;
pub mod connection;
pub mod descriptors;
pub mod read_budget;
mod refused_certificates;
pub mod tls;
