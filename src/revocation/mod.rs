//! What was revoked, in memory, and whether this memory may be believed.

pub mod counts;
mod cut_offs;
pub mod index;
pub mod lease;
mod others;
mod recovery;
pub mod renewer;
pub mod replica;
