//! Sealing: AES-256-GCM under the master key, bound to the key's name, purpose and algorithm, so that rows cannot be swapped.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    domain::key::{KeyPurpose, SealedKey},
    rng::{Rng, RngFailed, random},
};

/// The key under which all other keys are sealed. It never leaves memory and the master key file.
pub struct MasterKey(LessSafeKey);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A sealed key could not be opened, or a key could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The seal does not open: another master key, or a row that was edited.
    #[error(
        "key {kid} ({purpose}) cannot be opened with this master key: restore the master key file that belongs to this \
         database, or the row from a backup"
    )]
    DoesNotOpen {
        /// The key's name.
        kid: String,
        /// What it is for.
        purpose: &'static str,
    },
    /// No randomness for the nonce.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The cryptographic library refused.
    #[error("key {0} could not be sealed")]
    Refused(String),
}

impl MasterKey {
    /// From its 32 bytes, which are wiped.
    pub fn new(mut bytes: [u8; 32]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Refused("master".to_owned()));
        bytes.zeroize();
        Ok(Self(LessSafeKey::new(key?)))
    }

    /// The binding of a seal: changing any of these makes the seal useless.
    fn binding(kid: &str, purpose: KeyPurpose, algorithm: &str) -> Vec<u8> {
        // Length-prefixed, so that no two bindings have the same bytes.
        let mut binding = b"countersign key seal v1".to_vec();
        for part in [kid, purpose.as_str(), algorithm] {
            binding.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            binding.extend_from_slice(part.as_bytes());
        }
        binding
    }

    /// Seals a secret: nonce, ciphertext, tag.
    pub fn seal(
        &self,
        rng: &dyn Rng,
        kid: &str,
        purpose: KeyPurpose,
        algorithm: &str,
        secret: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random(rng)?;
        let mut in_out = secret.to_vec();
        let binding = Self::binding(kid, purpose, algorithm);
        let outcome =
            self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(binding), &mut in_out);
        if outcome.is_err() {
            in_out.zeroize();
            return Err(SealError::Refused(kid.to_owned()));
        }
        Ok([nonce.as_slice(), &in_out].concat())
    }

    /// Opens a sealed key.
    pub fn open(&self, key: &SealedKey) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let does_not_open = || SealError::DoesNotOpen { kid: key.kid.clone(), purpose: key.purpose.as_str() };
        let (nonce, sealed) = key.sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(does_not_open)?;
        let mut in_out = Zeroizing::new(sealed.to_vec());
        let binding = Self::binding(&key.kid, key.purpose, &key.algorithm);
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(binding), &mut in_out)
            .map_err(|_| does_not_open())?
            .len();
        in_out.truncate(length);
        Ok(in_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::time::Timestamp, rng::SystemRng};

    fn sealed(master: &MasterKey) -> SealedKey {
        let sealed = master.seal(&SystemRng::default(), "k", KeyPurpose::AccessToken, "EdDSA", b"secret").unwrap();
        SealedKey {
            kid: "k".to_owned(),
            purpose: KeyPurpose::AccessToken,
            algorithm: "EdDSA".to_owned(),
            sealed,
            created_at: Timestamp::from_seconds(0),
        }
    }

    #[test]
    fn a_seal_opens_under_its_own_name_and_master_key_only() {
        let master = MasterKey::new([1; 32]).unwrap();
        let key = sealed(&master);
        assert_eq!(master.open(&key).unwrap().as_slice(), b"secret");

        let renamed = SealedKey { kid: "other".to_owned(), ..key.clone() };
        let repurposed = SealedKey { purpose: KeyPurpose::RefreshToken, ..key.clone() };
        let relabelled = SealedKey { algorithm: "HS256".to_owned(), ..key.clone() };
        let truncated = SealedKey { sealed: key.sealed[..20].to_vec(), ..key.clone() };
        let empty = SealedKey { sealed: vec![], ..key.clone() };
        let mut edited = key.clone();
        *edited.sealed.last_mut().unwrap() ^= 1;
        for wrong in [renamed, repurposed, relabelled, truncated, empty, edited] {
            assert!(matches!(master.open(&wrong), Err(SealError::DoesNotOpen { .. })));
        }
        assert!(MasterKey::new([2; 32]).unwrap().open(&key).is_err());
    }

    #[test]
    fn a_seal_never_shows_its_secret() {
        let master = MasterKey::new([1; 32]).unwrap();
        let key = sealed(&master);
        assert!(!key.sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(format!("{master:?}"), "[redacted]");
        assert!(!format!("{key:?}").contains("sealed:"));
    }
}
