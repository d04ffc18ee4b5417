//! Refresh tokens. They are opaque to clients, and authenticated by a MAC, so that garbage is
//! refused without reading the database.
//!
//! A token is `cs_rt_` and then, in base64url, `version | key id | session id | generation | secret
//! | MAC`. The MAC is HMAC-SHA-256 (RFC 2104) over all bytes that precede it, under the refresh key
//! that the key id names. The secret is random for each session, and stored in the session's row.
//! So neither a copy of the database alone nor the refresh key alone is enough to forge a token. A
//! token can be computed again from the session's row and the refresh key. That is how a replay
//! yields the same token again.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::domain::{
    ids::SessionId,
    key::RefreshKeyId,
    session::{Lineage, LineageSecret},
};

pub use countersign_verification::access::REFRESH_TOKEN_PREFIX as PREFIX;

const VERSION: u8 = 1;
const BODY: usize = 1 + 8 + 16 + 4 + 16;
const MAC: usize = 32;
/// The length of the base64url part: 77 bytes give 103 characters.
const ENCODED: usize = ((BODY + MAC) * 4).div_ceil(3);

/// The text is not a refresh token that this service issued under the given key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a refresh token of this service")]
pub struct NotAuthentic;

/// The content of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshClaims {
    /// The session that the token belongs to.
    pub session_id: SessionId,
    /// The generation, the secret of the session, and the name of the key that authenticates the
    /// token.
    pub lineage: Lineage,
}

/// A well-formed refresh token whose MAC has not been checked.
pub struct Unverified {
    bytes: [u8; BODY + MAC],
    claims: RefreshClaims,
}

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").field("claims", &self.claims).finish_non_exhaustive()
    }
}

impl Unverified {
    /// Parses a token, without checking its MAC.
    pub fn parse(token: &str) -> Result<Self, NotAuthentic> {
        let encoded = token.strip_prefix(PREFIX).ok_or(NotAuthentic)?;
        if encoded.len() != ENCODED {
            return Err(NotAuthentic);
        }
        let mut bytes = [0; BODY + MAC];
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, &mut bytes).map_err(|_| NotAuthentic)?;
        let mut rest = Reader(&bytes);
        let [version] = rest.take::<1>()?;
        if length != bytes.len() || version != VERSION {
            return Err(NotAuthentic);
        }
        let key = RefreshKeyId(rest.take()?);
        let session_id = SessionId::from_bytes(rest.take()?);
        let generation = u32::from_be_bytes(rest.take()?);
        let secret = LineageSecret(rest.take()?);
        let claims = RefreshClaims { session_id, lineage: Lineage { generation, secret, key } };
        Ok(Self { bytes, claims })
    }

    /// Returns the name of the key in the token, which is not authenticated yet.
    pub fn key(&self) -> RefreshKeyId {
        self.claims.lineage.key
    }

    /// Returns the session identifier in the token, which is not authenticated yet.
    pub fn session_id(&self) -> SessionId {
        self.claims.session_id
    }

    /// Returns the generation in the token, which is not authenticated yet.
    pub fn generation(&self) -> u32 {
        self.claims.lineage.generation
    }

    /// Checks the MAC in constant time, and returns the content of the token.
    pub fn verify(self, key: &hmac::Key) -> Result<RefreshClaims, NotAuthentic> {
        let (body, mac) = self.bytes.split_at(BODY);
        hmac::verify(key, body, mac).map_err(|_| NotAuthentic)?;
        Ok(self.claims)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], NotAuthentic> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(NotAuthentic)?;
        self.0 = rest;
        Ok(*taken)
    }
}

/// Computes the refresh token of a session in the given generation. The key must be the one that
/// the lineage names.
pub fn issue(session_id: SessionId, lineage: &Lineage, key: &hmac::Key) -> String {
    let mut bytes = Vec::with_capacity(BODY + MAC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&lineage.key.0);
    bytes.extend_from_slice(session_id.bytes());
    bytes.extend_from_slice(&lineage.generation.to_be_bytes());
    bytes.extend_from_slice(&lineage.secret.0);
    let mac = hmac::sign(key, &bytes);
    bytes.extend_from_slice(mac.as_ref());
    let mut token = String::with_capacity(PREFIX.len() + ENCODED);
    token.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(&bytes, &mut token);
    token
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])
    }

    fn lineage(generation: u32) -> Lineage {
        Lineage { generation, secret: LineageSecret([5; 16]), key: RefreshKeyId([6; 8]) }
    }

    const SESSION: [u8; 16] = [7; 16];

    #[test]
    fn the_same_lineage_always_yields_the_same_token() {
        let issue = || issue(SessionId::from_bytes(SESSION), &lineage(3), &key(1));
        assert_eq!(issue(), issue());
        assert_eq!(issue().len(), PREFIX.len() + ENCODED);
    }

    #[test]
    fn another_key_or_a_flipped_bit_is_refused() {
        let token = issue(SessionId::from_bytes(SESSION), &lineage(3), &key(1));
        assert!(Unverified::parse(&token).unwrap().verify(&key(1)).is_ok());
        assert_eq!(Unverified::parse(&token).unwrap().verify(&key(2)), Err(NotAuthentic));

        let mut bytes = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).unwrap();
        for position in 0..bytes.len() * 8 {
            bytes[position / 8] ^= 1 << (position % 8);
            let forged = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            let outcome =
                Unverified::parse(&forged).and_then(|unverified| unverified.verify(&key(1)));
            assert_eq!(outcome, Err(NotAuthentic), "bit {position}");
            bytes[position / 8] ^= 1 << (position % 8);
        }
    }

    proptest! {
        #[test]
        fn an_issued_token_is_read_back(
            session in any::<[u8; 16]>(), generation in any::<u32>(), secret in any::<[u8; 16]>(),
            id in any::<[u8; 8]>(),
        ) {
            let session_id = SessionId::from_bytes(session);
            let secret = LineageSecret(secret);
            let lineage = Lineage { generation, secret, key: RefreshKeyId(id) };
            let read = Unverified::parse(&issue(session_id, &lineage, &key(1))).unwrap();
            prop_assert_eq!(read.key(), lineage.key);
            prop_assert_eq!(read.verify(&key(1)), Ok(RefreshClaims { session_id, lineage }));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", tail in "cs_rt_[A-Za-z0-9_-]{0,120}") {
            let _ = Unverified::parse(&text);
            if let Ok(unverified) = Unverified::parse(&tail) {
                prop_assert_eq!(unverified.verify(&key(1)), Err(NotAuthentic));
            }
        }
    }
}
