//! Tokens that are not good, and what is done with them: one row a case. They hold on every engine: a crate for each of them
//! includes this list, and brings its own `engine`.

pub mod field;
mod jwt;
mod refresh;
mod revoke;
