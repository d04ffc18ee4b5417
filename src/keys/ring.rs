//! The ring: the keys in use, opened. It signs, and finds the key that a token names.

use std::{collections::HashMap, fmt};

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey,
    jwk::{Jwk, ThumbprintHash},
};
use zeroize::Zeroizing;

use super::sealing::{MasterKey, SealError};
use crate::{
    domain::{
        key::{KeyPurpose, RefreshKeyId, SealedKey},
        time::Timestamp,
    },
    rng::{Rng, RngFailed, random},
};

const EDDSA: &str = "EdDSA";
const HS256: &str = "HS256";

/// A ring could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A seal does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No randomness for a new key.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The sealed bytes are not a key of the kind that the row says.
    #[error("key {kid} is not a {algorithm} key: restore its row from a backup")]
    NotAKey {
        /// The key's name.
        kid: String,
        /// What it should be.
        algorithm: String,
    },
    /// There is no key for a purpose.
    #[error("the database holds keys, but none for {0}: restore it from a backup")]
    Missing(&'static str),
}

/// A key that signs access tokens.
pub struct SigningKey {
    /// Its name: the RFC 7638 thumbprint of its public half.
    pub kid: String,
    /// The key itself.
    pub pair: Ed25519KeyPair,
}

/// A key that verifies access tokens.
pub struct VerifyingKey {
    /// The only algorithm that it verifies with.
    pub algorithm: Algorithm,
    /// The key itself.
    pub decoding: DecodingKey,
}

/// All keys in use.
pub struct KeyRing {
    signing: SigningKey,
    verifying: HashMap<String, VerifyingKey>,
    refresh: HashMap<RefreshKeyId, hmac::Key>,
    active_refresh: RefreshKeyId,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("signing", &self.signing.kid).finish_non_exhaustive()
    }
}

/// The first keys of a new database: one that signs access tokens, one that authenticates refresh tokens.
pub fn generate(master: &MasterKey, rng: &dyn Rng, now: Timestamp) -> Result<Vec<SealedKey>, RingError> {
    let seed = Zeroizing::new(random::<32>(rng)?);
    let refused = || RingError::NotAKey { kid: "new".to_owned(), algorithm: EDDSA.to_owned() };
    let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| refused())?;
    let signing_secret = Zeroizing::new(pair.to_pkcs8v1().map_err(|_| refused())?.as_ref().to_vec());
    let signing_kid = thumbprint(&EncodingKey::from_ed_der(&signing_secret)).ok_or_else(refused)?;

    let refresh_kid = RefreshKeyId(random(rng)?).to_string();
    let refresh_secret = Zeroizing::new(random::<32>(rng)?);

    let seal = |kid: String, purpose, algorithm: &str, secret: &[u8]| -> Result<SealedKey, RingError> {
        let sealed = master.seal(rng, &kid, purpose, algorithm, secret)?;
        Ok(SealedKey { kid, purpose, algorithm: algorithm.to_owned(), sealed, created_at: now })
    };
    Ok(vec![
        seal(signing_kid, KeyPurpose::AccessToken, EDDSA, &signing_secret)?,
        seal(refresh_kid, KeyPurpose::RefreshToken, HS256, refresh_secret.as_slice())?,
    ])
}

/// The name of a signing key (RFC 7638, section 3, with SHA-256).
fn thumbprint(key: &EncodingKey) -> Option<String> {
    Jwk::from_encoding_key(key, Algorithm::EdDSA).ok()?.thumbprint(ThumbprintHash::SHA256).ok()
}

impl KeyRing {
    /// Opens sealed keys. The newest of each purpose is the one in use.
    pub fn open(master: &MasterKey, mut keys: Vec<SealedKey>) -> Result<Self, RingError> {
        keys.sort_by_key(|key| key.created_at);
        let (mut signing, mut verifying) = (None, HashMap::new());
        let (mut refresh, mut active_refresh) = (HashMap::new(), None);
        for key in &keys {
            let secret = master.open(key)?;
            let not_a_key = || RingError::NotAKey { kid: key.kid.clone(), algorithm: key.algorithm.clone() };
            match (key.purpose, key.algorithm.as_str()) {
                (KeyPurpose::AccessToken, EDDSA) => {
                    let pair = Ed25519KeyPair::from_pkcs8(&secret).map_err(|_| not_a_key())?;
                    if thumbprint(&EncodingKey::from_ed_der(&secret)).as_ref() != Some(&key.kid) {
                        return Err(not_a_key());
                    }
                    let decoding = DecodingKey::from_ed_der(pair.public_key().as_ref());
                    verifying.insert(key.kid.clone(), VerifyingKey { algorithm: Algorithm::EdDSA, decoding });
                    signing = Some(SigningKey { kid: key.kid.clone(), pair });
                }
                (KeyPurpose::RefreshToken, HS256) if secret.len() == 32 => {
                    let id = key.kid.parse::<RefreshKeyId>().map_err(|_| not_a_key())?;
                    refresh.insert(id, hmac::Key::new(hmac::HMAC_SHA256, &secret));
                    active_refresh = Some(id);
                }
                _ => return Err(not_a_key()),
            }
        }
        Ok(Self {
            signing: signing.ok_or(RingError::Missing(KeyPurpose::AccessToken.as_str()))?,
            verifying,
            refresh,
            active_refresh: active_refresh.ok_or(RingError::Missing(KeyPurpose::RefreshToken.as_str()))?,
        })
    }

    /// The key that signs access tokens now.
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The key of this name, if access tokens that it signed are accepted.
    pub fn verifying(&self, kid: &str) -> Option<&VerifyingKey> {
        self.verifying.get(kid)
    }

    /// The key that new refresh tokens are made under.
    pub fn active_refresh(&self) -> RefreshKeyId {
        self.active_refresh
    }

    /// The refresh key of this name.
    pub fn refresh(&self, id: RefreshKeyId) -> Option<&hmac::Key> {
        self.refresh.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SystemRng;

    #[test]
    fn the_name_of_a_key_is_its_thumbprint() {
        // The private key of RFC 8037, appendix A.1, and its thumbprint of appendix A.3.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let key = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
        assert_eq!(thumbprint(&key).unwrap(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_ring_opens_with_its_own_keys_and_refuses_half_of_them() {
        let master = MasterKey::new([1; 32]).unwrap();
        let keys = generate(&master, &SystemRng::default(), Timestamp::from_seconds(1)).unwrap();
        let ring = KeyRing::open(&master, keys.clone()).unwrap();
        assert!(ring.verifying(&ring.signing().kid).is_some());
        assert!(ring.refresh(ring.active_refresh()).is_some());
        assert!(ring.verifying("another").is_none());
        for one in keys {
            assert!(matches!(KeyRing::open(&master, vec![one]), Err(RingError::Missing(_))));
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let master = MasterKey::new([1; 32]).unwrap();
        let keys = generate(&master, &SystemRng::default(), Timestamp::from_seconds(1)).unwrap();
        let ring = KeyRing::open(&master, keys).unwrap();
        assert_eq!(format!("{ring:?}"), format!("KeyRing {{ signing: {:?}, .. }}", ring.signing().kid));
    }
}
