//! The rules of the service, checked from outside: configuration, store, server and tasks run as in
//! production, and a client asks over a socket. Only the clock is a settable one.
//!
//! They hold on every engine: a crate for each of them includes this list, and brings its own
//! `engine`.

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
