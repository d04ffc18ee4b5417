//! The keys that verify access tokens.

use jsonwebtoken::{Algorithm, DecodingKey};

/// A key that verifies access tokens.
pub struct VerifyingKey {
    /// The only algorithm with which the key may verify.
    pub algorithm: Algorithm,
    /// The key itself.
    pub decoding: DecodingKey,
}

/// The result of looking up the key that an access token names.
pub enum Found<'a> {
    /// A key whose tokens are accepted.
    Good(&'a VerifyingKey),
    /// A key that was revoked, so that its tokens are refused.
    Revoked,
    /// There is no signing key of this name.
    Unknown,
}

/// Keys that are looked up by their names.
pub trait VerifyingKeys {
    /// Looks up the key of this name.
    fn verifying(&self, kid: &str) -> Found<'_>;
}
