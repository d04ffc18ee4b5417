//! The index of revocations in memory, and the lease protocol that decides whether Validate may
//! rely on it.

pub mod counts;
mod cut_offs;
pub mod index;
pub mod lease;
mod others;
mod progress;
mod published;
mod recovery;
pub mod renewer;
pub mod replica;
pub mod watchers;
