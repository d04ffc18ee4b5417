//! Connections to the server in charge: finding it, talking to it, pooling, and what its errors
//! mean.

mod coded_stream;
pub mod connect;
pub mod fault;
mod hosts;
pub mod open_error;
pub mod origin;
pub mod pool;
pub mod sqlstate;
mod tls;
