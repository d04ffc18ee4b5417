//! The gRPC server. It converts messages to domain types and back, and errors to statuses.

mod answers;
mod audit_service;
pub mod call_kinds;
mod claims;
mod common;
mod deadline;
mod ext_authz;
pub mod health;
mod imports;
mod key_service;
mod methods;
mod overload;
mod page;
mod requests;
mod searches;
pub mod server;
pub mod services;
mod session_service;
mod status;
mod watch;

/// Exported for the fuzz targets. The other conversions of requests implement traits, and need no
/// export.
#[cfg(fuzzing)]
pub use self::requests::{question, requested_session};
