//! Tests of the rules of the service from outside: configuration, store, server and tasks run as in
//! production, and a client calls over a socket. Only the clock is replaced by one that the tests
//! set.
//!
//! The rules hold on every engine, so a test crate for each engine includes this module and
//! provides its own `engine`.

mod audit;
mod audit_walk;
mod batch;
mod callers;
mod clock;
mod create;
mod faults;
mod fields;
mod gateways;
mod health;
mod http;
mod inactive;
mod keys;
mod lifecycle;
mod limits;
mod listing;
mod refresh;
mod refusals;
mod revoke;
mod secrecy;
mod setback;
