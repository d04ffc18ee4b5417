//! What was revoked, in memory, and whether this memory may be believed.

pub mod counts;
mod cut_offs;
mod errands;
pub mod index;
pub mod lease;
mod others;
pub mod renewing;
pub mod replica;
