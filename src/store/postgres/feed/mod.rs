//! The feed of revocations: its entries, the members that follow it, and how they learn of more.

pub mod cut_offs;
pub mod entries;
pub mod renewals;
pub mod replicas;
pub mod wake_up;
