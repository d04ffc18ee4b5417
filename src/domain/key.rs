//! Keys as they are stored: named, with a purpose, sealed.

use std::fmt;

use super::time::Timestamp;

/// What a key is for. A key never serves two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyPurpose {
    /// Signs access tokens.
    AccessToken,
    /// Authenticates refresh tokens.
    RefreshToken,
}

impl KeyPurpose {
    /// The name under which it is stored and bound to the sealed bytes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
        }
    }

    /// The purpose of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::AccessToken, Self::RefreshToken].into_iter().find(|purpose| purpose.as_str() == name)
    }
}

/// A key's secret bytes, encrypted and bound to its name and purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// The key's name: the `kid` of a signing key, the hexadecimal identifier of a refresh key.
    pub kid: String,
    /// What it is for.
    pub purpose: KeyPurpose,
    /// `EdDSA` (RFC 8037) for signing keys, `HS256` (RFC 7518) for refresh keys.
    pub algorithm: String,
    /// The sealed secret.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedKey").field("kid", &self.kid).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

/// The short identifier of a refresh key, carried by the tokens made under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RefreshKeyId(pub [u8; 8]);

impl fmt::Display for RefreshKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl std::str::FromStr for RefreshKeyId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes()))
    }
}
