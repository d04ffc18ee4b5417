//! Tests of calls with bad tokens, as tables with one row per case. They must pass on every engine,
//! so a test crate for each engine includes this module and provides its own `engine`.

mod harness;
mod jwt;
mod refresh;
mod revoke;

// Only the SQLite crate, which also tests the HTTP port, uses this from outside.
#[allow(unused_imports)]
pub use self::harness::Harness;
