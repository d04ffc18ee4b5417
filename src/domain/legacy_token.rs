//! Refresh tokens of another system. The database knows only their hashes, and the session that
//! each of them stands for.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

use super::{ids::SessionId, session::LineageSecret};

/// SHA-256 of the text of a refresh token that another system issued.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegacyTokenHash([u8; 32]);

impl LegacyTokenHash {
    /// Computes the hash of a token.
    pub fn of(token: &str) -> Self {
        let mut hash = [0; 32];
        // A SHA-256 digest has 32 bytes, so both slices have the same length.
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }

    /// Creates the hash from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The hash is not shown, because whoever has it can recognize the token in other places.
impl fmt::Debug for LegacyTokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a refresh token of another system stands for: the refresh token of the first generation of
/// a session, with this secret. Once a reauthentication has given the session another secret, the
/// token is as invalid as every other earlier refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyToken {
    /// The session.
    pub session_id: SessionId,
    /// The secret that the refresh tokens of the session carried when it was imported.
    pub secret: LineageSecret,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash is computed by operators with other tools, so it must be plain SHA-256 (FIPS 180-4;
    /// `printf abc | openssl dgst -sha256`).
    #[test]
    fn the_hash_is_sha_256_of_the_text() {
        let hash = LegacyTokenHash::of("abc");
        assert_eq!(hash.bytes()[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(hash.bytes()[28..], [0xf2, 0x00, 0x15, 0xad]);
        assert_eq!(format!("{hash:?}"), "[redacted]");
    }
}
