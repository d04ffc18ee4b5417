//! Converts claims to signed tokens, and verified tokens to claims, with a given key. Whether a
//! token is still valid is decided elsewhere.

pub mod confirmation;
pub mod refresh;

pub use countersign_verification::{access, verified_cache};
