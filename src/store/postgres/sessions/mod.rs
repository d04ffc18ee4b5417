//! Creates, refreshes, revokes, reads and sweeps sessions.

mod claims;
pub mod create;
pub mod expiries;
mod insert;
mod lock;
pub mod oldest_live;
mod quota_lock;
pub mod reads;
pub mod refresh;
mod revoke;
pub mod sweep;
