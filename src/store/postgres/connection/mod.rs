//! Connections to the primary server: finding it, talking to it, the pool, and the classes of its
//! errors.

mod coded_stream;
pub mod connect;
pub mod fault;
mod hosts;
pub mod open_error;
pub mod origin;
pub mod pool;
pub mod sqlstate;
mod tls;
