//! The index of revocations in memory, and the lease protocol that decides whether Validate may
//! rely on it.

pub mod counts;
mod others;
mod progress;
pub mod published;
mod recovery;
pub mod renewer;
pub mod replica;
pub mod watchers;

pub use countersign_verification::{index, lease};
