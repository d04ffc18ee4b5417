//! Creates, refreshes, revokes, reads and sweeps sessions.

mod batch_state;
pub mod change;
pub mod covered;
pub mod create;
pub mod expiries;
mod insert;
mod jsonb;
pub mod legacy_tokens;
mod lock;
pub mod metadata;
pub mod oldest_live;
mod quota_lock;
pub mod reads;
pub mod refresh;
mod revoke;
pub mod search;
pub mod sweep;
