//! The feed of revocations: its entries, the replicas that read it, and the notifications of new
//! entries.

pub mod cut_offs;
pub mod entries;
pub mod renewals;
pub mod replicas;
pub mod wake_up;
