//! Background tasks: timers and watchers that call use cases. Each runs until it is dropped.

pub mod audit;
pub mod cut_offs;
pub mod keys;
pub mod sweeper;
