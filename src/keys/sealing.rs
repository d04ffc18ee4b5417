//! Seals keys with AES-256-GCM under the master key. The name, purpose and algorithm of a key are
//! authenticated together with its secret, so that sealed keys cannot be swapped between rows.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    domain::key::{Key, SealedKey},
    rng::{Rng, RngFailed, random},
};

/// The key under which all other keys are sealed. The service keeps it in memory, and writes it
/// nowhere but to the master key file.
pub struct MasterKey(LessSafeKey);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A key could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key was sealed under another master key, or its row was edited.
    #[error(
        "key {kid} ({purpose}) cannot be opened with this master key: restore the master key file \
         that belongs to this database, or the row from a backup"
    )]
    DoesNotOpen {
        /// The key's name.
        kid: String,
        /// The purpose of the key.
        purpose: &'static str,
    },
    /// The random generator failed to make a nonce.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The cryptographic library returned an error.
    #[error("key {0} could not be sealed")]
    Refused(String),
}

impl MasterKey {
    /// Creates a master key from its 32 bytes, which are wiped.
    pub fn new(mut bytes: [u8; 32]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| SealError::Refused("master".to_owned()));
        bytes.zeroize();
        Ok(Self(LessSafeKey::new(key?)))
    }

    /// Returns the data that is authenticated with a sealed key. A key whose name, purpose or
    /// algorithm was changed cannot be opened.
    fn associated_data(key: &Key) -> Vec<u8> {
        // Each part is prefixed by its length, so that different keys never yield the same data.
        let mut data = b"countersign key seal v1".to_vec();
        for part in [&*key.kid, key.purpose().as_str(), key.algorithm.as_str()] {
            data.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            data.extend_from_slice(part.as_bytes());
        }
        data
    }

    /// Seals the secret of a key. The result is the nonce, the ciphertext and the tag.
    pub fn seal(&self, rng: &dyn Rng, key: Key, secret: &[u8]) -> Result<SealedKey, SealError> {
        let nonce: [u8; NONCE_LEN] = random(rng)?;
        let mut in_out = secret.to_vec();
        let aad = Aad::from(Self::associated_data(&key));
        let outcome =
            self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut in_out);
        if outcome.is_err() {
            in_out.zeroize();
            return Err(SealError::Refused(key.kid));
        }
        Ok(SealedKey { key, sealed: [nonce.as_slice(), &in_out].concat() })
    }

    /// Opens a sealed key, and returns its secret.
    pub fn open(
        &self,
        SealedKey { key, sealed }: &SealedKey,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let does_not_open =
            || SealError::DoesNotOpen { kid: key.kid.clone(), purpose: key.purpose().as_str() };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(does_not_open)?;
        let mut in_out = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(Self::associated_data(key));
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut in_out)
            .map_err(|_| does_not_open())?
            .len();
        in_out.truncate(length);
        Ok(in_out)
    }
}

/// The master key, and the additional one while the master key is being replaced.
#[derive(Debug)]
pub struct MasterKeys {
    /// The master key that seals keys, and opens the keys that it has sealed.
    pub current: MasterKey,
    /// Another master key, which only opens keys.
    pub additional: Option<MasterKey>,
}

impl MasterKeys {
    /// Opens a sealed key with the current or the additional master key.
    pub fn open(&self, key: &SealedKey) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let outcome = self.current.open(key);
        match &self.additional {
            Some(additional) if outcome.is_err() => additional.open(key),
            _ => outcome,
        }
    }

    /// Seals a key anew under the current master key. Returns `None` if the key is already sealed
    /// under this master key.
    pub fn reseal(&self, rng: &dyn Rng, key: &SealedKey) -> Result<Option<SealedKey>, SealError> {
        if self.current.open(key).is_ok() {
            return Ok(None);
        }
        self.current.seal(rng, key.key.clone(), &self.open(key)?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{key::KeyAlgorithm, time::Timestamp},
        rng::SystemRng,
    };

    const NOW: Timestamp = Timestamp::from_seconds(0);

    fn master(byte: u8) -> MasterKey {
        MasterKey::new([byte; 32]).unwrap()
    }

    fn sealed(master: &MasterKey) -> SealedKey {
        master
            .seal(
                &SystemRng::default(),
                Key::new("k".to_owned(), KeyAlgorithm::EdDsa, NOW),
                b"secret",
            )
            .unwrap()
    }

    #[test]
    fn a_sealed_key_opens_under_its_own_name_and_master_key_only() {
        let key = sealed(&master(1));
        assert_eq!(master(1).open(&key).unwrap().as_slice(), b"secret");

        let with = |changed: Key| SealedKey { key: changed, sealed: key.sealed.clone() };
        let renamed = with(Key { kid: "other".to_owned(), ..key.key.clone() });
        let repurposed = with(Key { algorithm: KeyAlgorithm::Hs256, ..key.key.clone() });
        let relabelled = with(Key { algorithm: KeyAlgorithm::Es256, ..key.key.clone() });
        let truncated = SealedKey { sealed: key.sealed[..20].to_vec(), ..key.clone() };
        let empty = SealedKey { sealed: vec![], ..key.clone() };
        let mut edited = key.clone();
        *edited.sealed.last_mut().unwrap() ^= 1;
        for wrong in [renamed, repurposed, relabelled, truncated, empty, edited] {
            assert!(matches!(master(1).open(&wrong), Err(SealError::DoesNotOpen { .. })));
        }
        assert!(master(2).open(&key).is_err());
        let activated = with(key.key.activate(NOW).unwrap());
        assert!(master(1).open(&activated).is_ok(), "a change of state keeps the seal valid");
    }

    #[test]
    fn a_sealed_key_never_shows_its_secret() {
        let key = sealed(&master(1));
        assert!(!key.sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(format!("{:?}", master(1)), "[redacted]");
        assert!(!format!("{key:?}").contains("sealed:"));
    }

    #[test]
    fn a_key_sealed_under_the_old_master_key_is_opened_and_sealed_under_the_new_one() {
        let rng = SystemRng::default();
        let old = sealed(&master(1));
        let alone = MasterKeys { current: master(2), additional: None };
        assert!(alone.open(&old).is_err() && alone.reseal(&rng, &old).is_err());
        let both = MasterKeys { current: master(2), additional: Some(master(1)) };
        assert_eq!(both.open(&old).unwrap().as_slice(), b"secret");
        let new = both.reseal(&rng, &old).unwrap().unwrap();
        assert_eq!(alone.open(&new).unwrap().as_slice(), b"secret");
        assert_eq!(new.key, old.key);
        assert_eq!(
            both.reseal(&rng, &new).unwrap(),
            None,
            "the key is already sealed under the current master key"
        );
    }
}
