//! Tokens that are not good, and what is done with them: one row a case. They hold on every engine:
//! a crate for each of them includes this list, and brings its own `engine`.

mod field;
mod jwt;
mod refresh;
mod revoke;

// What is bad below the level of calls is tried on one engine.
#[allow(unused_imports)]
pub use self::field::Field;
