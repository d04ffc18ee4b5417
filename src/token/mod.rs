//! Converts claims to signed tokens, and verified tokens to claims, with a given key. Whether a
//! token is still valid is decided elsewhere.

pub mod access;
pub mod confirmation;
mod factor_times;
pub mod refresh;
pub mod verified_cache;
