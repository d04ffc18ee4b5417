//! Tokens: bytes to claims and back, under a given key. Whether a token is still good is decided
//! elsewhere.

pub mod access;
pub mod refresh;
pub mod verified_cache;
