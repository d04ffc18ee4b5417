//! The keys that verify access tokens, as a JWK set has them.

use std::collections::{HashMap, HashSet};

use countersign_verification::keys::{Found, VerifyingKey, VerifyingKeys};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{Jwk, KeyAlgorithm},
};
use serde::Deserialize;
use serde_json::Value;

/// The keys by their names (`kid`).
#[derive(Default)]
pub(crate) struct KeySet {
    keys: HashMap<String, (Jwk, VerifyingKey)>,
    revoked: HashSet<String>,
}

impl VerifyingKeys for KeySet {
    fn verifying(&self, kid: &str) -> Found<'_> {
        if self.revoked.contains(kid) {
            return Found::Revoked;
        }
        self.keys.get(kid).map_or(Found::Unknown, |(_, key)| Found::Good(key))
    }
}

impl KeySet {
    /// Reads a JWK set, and the names of revoked keys; `None` if it is not a JWK set. A key that this
    /// library cannot use is left out, so its tokens are refused.
    pub(crate) fn read(jwks: &str, revoked: Vec<String>) -> Option<Self> {
        let set: Value = serde_json::from_str(jwks).ok()?;
        let keys = set.get("keys")?.as_array()?.iter().filter_map(|key| {
            let read = read_key(key);
            if read.is_none() {
                tracing::warn!("a public key cannot be used: its tokens will be refused");
            }
            read
        });
        Some(Self { keys: keys.collect(), revoked: revoked.into_iter().collect() })
    }

    /// Returns whether the set has all keys of `earlier`. Only then is each signature still good
    /// that was verified with the earlier keys.
    pub(crate) fn includes(&self, earlier: &Self) -> bool {
        earlier
            .keys
            .iter()
            .all(|(kid, (earlier, _))| self.keys.get(kid).is_some_and(|(key, _)| key == earlier))
    }
}

fn read_key(json: &Value) -> Option<(String, (Jwk, VerifyingKey))> {
    let jwk = Jwk::deserialize(json).ok()?;
    let algorithm = match jwk.common.key_algorithm? {
        KeyAlgorithm::EdDSA => Algorithm::EdDSA,
        KeyAlgorithm::ES256 => Algorithm::ES256,
        KeyAlgorithm::RS256 => Algorithm::RS256,
        _ => return None,
    };
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let kid = jwk.common.key_id.clone()?;
    Some((kid, (jwk, VerifyingKey::new(algorithm, &decoding)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = r#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"good","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"OKP","crv":"Ed25519","kid":"no-alg","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"oct","alg":"HS256","kid":"shared","k":"c2VjcmV0"},
        {"kty":"AKP","alg":"ML-DSA-44","kid":"future","pub":"AA"}]}"#;

    #[test]
    fn only_keys_with_a_known_algorithm_are_used_and_revoked_ones_are_refused() {
        let keys = KeySet::read(SET, vec!["bad".to_owned()]).unwrap();
        assert!(matches!(keys.verifying("good"), Found::Good(_)));
        assert!(matches!(keys.verifying("bad"), Found::Revoked));
        for kid in ["no-alg", "shared", "future", "", "other"] {
            assert!(matches!(keys.verifying(kid), Found::Unknown), "{kid}");
        }
        let revoked = KeySet::read(SET, vec!["good".to_owned()]).unwrap();
        assert!(matches!(revoked.verifying("good"), Found::Revoked));
        assert!(KeySet::read("{}", vec![]).is_none() && KeySet::read("", vec![]).is_none());
    }

    #[test]
    fn a_set_includes_another_unless_a_key_is_missing_or_different() {
        let keys = |text: &str| KeySet::read(text, vec![]).unwrap();
        assert!(keys(SET).includes(&KeySet::default()) && keys(SET).includes(&keys(SET)));
        assert!(!KeySet::default().includes(&keys(SET)));
        assert!(!keys(&SET.replace("11qY", "22qY")).includes(&keys(SET)));
    }
}
