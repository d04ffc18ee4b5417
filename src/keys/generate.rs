//! Generates keys.

use zeroize::Zeroizing;

use super::{
    pair::{PairError, SigningPair},
    sealing::{MasterKey, SealError},
};
use crate::{
    domain::{
        key::{Key, KeyAlgorithm, KeyPurpose, RefreshKeyId, SealedKey},
        time::Timestamp,
    },
    rng::{Rng, RngFailed, random},
};

/// A key could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum NotGenerated {
    /// The random generator failed.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The key pair could not be generated.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The key could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Generates a new pending key. Generating an RSA key takes long, so a service that answers calls
/// must do it on a thread that may block.
pub fn generate(
    master: &MasterKey,
    rng: &dyn Rng,
    algorithm: KeyAlgorithm,
    now: Timestamp,
) -> Result<SealedKey, NotGenerated> {
    let (kid, secret) = match algorithm.purpose() {
        KeyPurpose::AccessToken => {
            let (pair, secret) = SigningPair::generate(algorithm, rng)?;
            (name(&pair).ok_or(PairError::Refused(algorithm))?, secret)
        }
        KeyPurpose::RefreshToken => {
            (RefreshKeyId(random(rng)?).to_string(), Zeroizing::new(random::<32>(rng)?.to_vec()))
        }
    };
    Ok(master.seal(rng, Key::new(kid, algorithm, now), &secret)?)
}

/// Generates a new key that is active at once.
pub fn generate_active(
    master: &MasterKey,
    rng: &dyn Rng,
    algorithm: KeyAlgorithm,
    now: Timestamp,
) -> Result<SealedKey, NotGenerated> {
    let SealedKey { key, sealed } = generate(master, rng, algorithm, now)?;
    Ok(SealedKey { key: Key { activated_at: Some(now), ..key }, sealed })
}

/// Returns the name of a signing key: its JWK thumbprint (RFC 7638, section 3, with SHA-256).
pub fn name(pair: &SigningPair) -> Option<String> {
    pair.jwk()?.common.key_id
}

/// Generates the first keys of a new database: an active and a pending key for each purpose.
pub fn first(
    master: &MasterKey,
    rng: &dyn Rng,
    signing: KeyAlgorithm,
    now: Timestamp,
) -> Result<Vec<SealedKey>, NotGenerated> {
    let mut keys = vec![];
    for algorithm in [signing, KeyAlgorithm::Hs256] {
        keys.push(generate_active(master, rng, algorithm, now)?);
        keys.push(generate(master, rng, algorithm, now)?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_key_is_its_thumbprint() {
        // The private key of RFC 8037, appendix A.1, and its thumbprint of appendix A.3.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        assert_eq!(
            name(&SigningPair::Ed25519(pair)).unwrap(),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }
}
