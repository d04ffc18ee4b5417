//! Background tasks, which call use cases at certain times or when they are notified. Each task
//! runs until it is dropped.

pub mod audit;
pub mod cut_offs;
pub mod keys;
pub mod sizes;
pub mod sweeper;
