//! Middleware: [`http::Protect`] for axum and other HTTP services, and [`grpc::Protect`] for
//! servers of tonic. Both put the [`Session`](crate::Session) into the extensions of the request.
//!
//! A request must have exactly one token. If it has two different ones, the application might use
//! another one than was checked, so it is denied.

#[cfg(feature = "axum")]
mod axum;
mod challenge;
pub mod grpc;
pub mod http;

use std::pin::Pin;

#[cfg(feature = "axum")]
pub use self::axum::NoSession;

/// The future of a protected service.
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
