//! Keeps the server within its limits when clients ask for more than it can do (decision 14).
//!
//! A call is refused when its headers have been read and before anything is done for it.
//! [`admission`] finds the caller and asks [`crate::callers`], which has the limits on calls under
//! way and on their rate. What memory allows is checked next: [`unsent`] counts the answers that
//! clients have not read.
//!
//! Refusing must cost much less than serving. [`refusals`] keeps the last answer, so that the same
//! reason is encoded once. [`spawner`] runs the answers that are ready at once in the task that
//! reads the connection, and [`connection_driver`] polls the connection again at once, which sends
//! all of them by one write. Each poll reads a limited number of bytes
//! ([`ReadBudget`](crate::net::read_budget::ReadBudget)), so that the refusals of a connection that
//! never stops sending are sent too. [`request_body`] reads the rest of a message that nobody
//! reads, because the HTTP/2 library counts it as an error of the client.
//!
//! Everything besides calls is limited by connection: [`frame_budget`] closes one that sends too
//! many other frames; [`activity`] finds one that has no calls, or that does not read its
//! answers, whose bodies ([`answer`]) report to it.
//!
//! Much of this relies on the order in which hyper accepts a call, hands its answer to the
//! executor, and asks for the parts of its body. `hyper_tests.rs` checks that order.

pub mod activity;
pub mod admission;
pub mod answer;
pub mod connection_driver;
pub mod frame_budget;
pub mod refusals;
pub mod request_body;
pub mod spawner;
pub mod unsent;

#[cfg(test)]
mod hyper_tests;
