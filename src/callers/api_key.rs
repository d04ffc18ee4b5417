//! API keys, which are random secrets that callers send. The service knows only their hashes.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::rng::{Rng, RngFailed, random};

/// The prefix of each key. It lets people and secret scanners recognize a key.
pub const PREFIX: &str = "cs_ck_";
/// The prefix of each hash in the configuration.
const HASH_PREFIX: &str = "sha256:";
/// The number of random bytes in a key.
const SECRET_BYTES: usize = 32;
/// The length of a key: the prefix, and the secret in base64url.
const KEY_CHARACTERS: usize = PREFIX.len() + 43;

/// A key in plain text. `Debug` does not print it.
pub struct ApiKey(Zeroizing<String>);

impl ApiKey {
    /// Generates a random key.
    pub fn generate(rng: &dyn Rng) -> Result<Self, RngFailed> {
        let secret: Zeroizing<[u8; SECRET_BYTES]> = Zeroizing::new(random(rng)?);
        Ok(Self(Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(*secret)))))
    }

    /// Returns the key as text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the hash of the key.
    pub fn hash(&self) -> ApiKeyHash {
        ApiKeyHash::of(&self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The SHA-256 hash of a key. A fast hash is enough, because a key has 32 random bytes and cannot
/// be guessed (decision 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// Hashes a text that was sent as a key. A text that does not have the length of a key yields
    /// the hash of the empty text, which no key has.
    pub fn of(sent: &str) -> Self {
        let mut hash = [0; 32];
        let sent = if sent.len() == KEY_CHARACTERS { sent.as_bytes() } else { &[] };
        hash.copy_from_slice(digest(&SHA256, sent).as_ref());
        Self(hash)
    }

    /// Returns the first bytes of the hash, by which it is looked up. The timing of the look-up may
    /// reveal whether these bytes match, but this reveals nothing about the key.
    pub fn index(&self) -> [u8; 8] {
        let [index @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            self.0;
        index
    }

    /// Compares two hashes in constant time.
    pub fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Display for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl FromStr for ApiKeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(PREFIX) {
            // The error must not repeat the key.
            return Err(
                "this is a key, and its hash belongs here: make a new key with `countersign \
                 caller new`"
                    .to_owned(),
            );
        }
        let hash =
            text.strip_prefix(HASH_PREFIX).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let hash = hash.and_then(|bytes| bytes.try_into().ok()).map(Self);
        hash.ok_or_else(|| {
            format!(
                "must be {HASH_PREFIX} and 43 characters, as `countersign caller new` prints it"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SystemRng;

    #[test]
    fn only_the_key_itself_matches_its_hash() {
        let rng = SystemRng::default();
        let (key, other) = (ApiKey::generate(&rng).unwrap(), ApiKey::generate(&rng).unwrap());
        assert_eq!(key.reveal().len(), KEY_CHARACTERS);
        assert!(key.reveal().starts_with(PREFIX));
        assert!(ApiKeyHash::of(key.reveal()).is(&key.hash()));
        let hash = key.hash().to_string();
        for wrong in
            [other.reveal(), "", "cs_ck_", &key.reveal()[1..], &format!("{} ", key.reveal()), &hash]
        {
            assert!(!ApiKeyHash::of(wrong).is(&key.hash()), "{wrong}");
        }
        assert_eq!(hash.parse(), Ok(key.hash()));
        assert!(!format!("{key:?}").contains(&key.reveal()[6..]));
    }

    #[test]
    fn the_error_about_a_key_in_the_place_of_a_hash_does_not_repeat_the_key() {
        let key = ApiKey::generate(&SystemRng::default()).unwrap();
        let refused = key.reveal().parse::<ApiKeyHash>().unwrap_err();
        assert!(refused.contains("caller new") && !refused.contains(&key.reveal()[6..]));
        for wrong in ["", "sha256:", "sha256:AAAA", "md5:x"] {
            assert!(wrong.parse::<ApiKeyHash>().is_err(), "{wrong}");
        }
    }
}
