//! Connections to the primary server: finds the server, connects to it, pools the connections, and
//! classifies their errors.

mod coded_stream;
pub mod connect;
pub mod fault;
mod hosts;
pub mod open_error;
pub mod origin;
pub mod pool;
pub mod sqlstate;
mod tls;
