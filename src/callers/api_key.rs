//! API keys: random secrets that callers show, of which the service only knows hashes.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::rng::{Rng, RngFailed, random};

/// How each key begins, so that people and secret scanners know one when they see it.
pub const PREFIX: &str = "cs_ck_";
/// How each hash begins in the configuration.
const HASH_PREFIX: &str = "sha256:";
/// Bytes of randomness in a key.
const SECRET_BYTES: usize = 32;
/// Characters of a whole key: the prefix, and the secret in base64url.
const KEY_CHARACTERS: usize = PREFIX.len() + 43;

/// A key in the clear. It prints nothing of itself.
pub struct ApiKey(Zeroizing<String>);

impl ApiKey {
    /// Draws a new one.
    pub fn generate(rng: &dyn Rng) -> Result<Self, RngFailed> {
        let secret: Zeroizing<[u8; SECRET_BYTES]> = Zeroizing::new(random(rng)?);
        Ok(Self(Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(*secret)))))
    }

    /// What it is.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Its hash.
    pub fn hash(&self) -> ApiKeyHash {
        ApiKeyHash::of(&self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The SHA-256 of a key. With 32 random bytes behind it nobody finds the key, so a fast hash is
/// enough (decision 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// The hash of what somebody shows as a key. Of what cannot be one it is a hash too, that of no
    /// key.
    pub fn of(shown: &str) -> Self {
        let mut hash = [0; 32];
        let shown = if shown.len() == KEY_CHARACTERS { shown.as_bytes() } else { &[] };
        hash.copy_from_slice(digest(&SHA256, shown).as_ref());
        Self(hash)
    }

    /// By which it is found. Whoever learns from timing that the first bytes are right has learnt
    /// nothing of a key.
    pub fn index(&self) -> [u8; 8] {
        let [index @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            self.0;
        index
    }

    /// Whether two are the same, in a time that does not depend on where they differ.
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
            // It must not be repeated in an error.
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
    fn a_key_is_recognized_by_its_hash_and_nothing_else_is() {
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
    fn a_key_in_the_place_of_its_hash_is_refused_without_being_repeated() {
        let key = ApiKey::generate(&SystemRng::default()).unwrap();
        let refused = key.reveal().parse::<ApiKeyHash>().unwrap_err();
        assert!(refused.contains("caller new") && !refused.contains(&key.reveal()[6..]));
        for wrong in ["", "sha256:", "sha256:AAAA", "md5:x"] {
            assert!(wrong.parse::<ApiKeyHash>().is_err(), "{wrong}");
        }
    }
}
