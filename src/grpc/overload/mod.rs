//! Keeps the server within its limits when clients ask for more than it can do (decision 14).
//!
//! A call is refused as soon as its headers have been read, before the server does any work for it.
//! [`admission`] finds the caller and asks [`crate::callers`], which limits the number of calls
//! under way and the rate of calls. Next, memory is checked: [`unsent`] counts the bytes of the
//! answers that clients have not read.
//!
//! Refusing a call must cost much less than serving it. [`refusals`] keeps the last answer, so
//! that a reason that repeats is encoded only once. [`spawner`] runs the answers that are ready
//! immediately in the task that reads the connection. [`connection_driver`] then polls the
//! connection again, which sends all these answers by one write. Each poll reads a limited number
//! of bytes ([`ReadBudget`](crate::net::read_budget::ReadBudget)), so that refusals are sent even
//! to a client that never stops sending. [`request_body`] reads the rest of a message that the
//! server has dropped, because otherwise the HTTP/2 library counts that rest as an error of the
//! client.
//!
//! Everything besides calls is limited for each connection: [`frame_budget`] closes a connection
//! whose client sends too many other frames. [`activity`] finds a connection that has no calls, or
//! whose client does not read the answers. The bodies of the answers ([`answer`]) report their
//! progress to it.
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
