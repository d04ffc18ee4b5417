//! The keys that verify access tokens.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};

/// A key that verifies access tokens.
///
/// `jsonwebtoken` reads the key, but does not verify with it, because it would parse the key for
/// each signature. For RSA this takes a fifth as long as the check itself.
pub struct VerifyingKey {
    algorithm: Algorithm,
    public: ParsedPublicKey,
}

impl VerifyingKey {
    /// Creates a key that verifies with this algorithm only. `None` if the key is not one of the
    /// algorithm, or the algorithm is none of those with which access tokens are signed.
    pub fn new(algorithm: Algorithm, key: &DecodingKey) -> Option<Self> {
        let public = match (algorithm, key.kind()) {
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(public)) => {
                ParsedPublicKey::new(&ED25519, public)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(public)) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public)
            }
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let components = RsaPublicKeyComponents { n, e };
                components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            }
            _ => return None,
        };
        Some(Self { algorithm, public: public.ok()? })
    }

    /// Returns the only algorithm with which the key may verify.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns whether the key made the signature of a message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }
}

/// The result of looking up the key that an access token names.
pub enum Found<'a> {
    /// A key whose tokens are accepted.
    Good(&'a VerifyingKey),
    /// A key that was revoked, so that its tokens are refused.
    Revoked,
    /// There is no signing key of this name.
    Unknown,
}

/// Keys that are looked up by their names.
pub trait VerifyingKeys {
    /// Looks up the key of this name.
    fn verifying(&self, kid: &str) -> Found<'_>;
}
