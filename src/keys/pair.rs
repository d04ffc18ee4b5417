//! The key pairs that sign access tokens by one of three algorithms, and their public keys.

use std::{fmt, ops::RangeInclusive};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair, RsaPublicKeyComponents,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_verification::keys::VerifyingKey;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{
        AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
        EllipticCurveKeyType, Jwk, KeyAlgorithm as JwkAlgorithm, OctetKeyPairParameters,
        OctetKeyPairType, PublicKeyUse, RSAKeyParameters, RSAKeyType, ThumbprintHash,
    },
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use x509_cert::der::{
    self, Decode, Reader, SliceReader,
    asn1::{AnyRef, ObjectIdentifier, OctetStringRef, UintRef},
};
use zeroize::Zeroizing;

use crate::{
    domain::key::KeyAlgorithm,
    rng::{Rng, RngFailed, random},
};

/// A key pair that signs access tokens.
pub enum SigningPair {
    /// A pair for `EdDSA`.
    Ed25519(Ed25519KeyPair),
    /// A pair for `ES256`.
    P256(EcdsaKeyPair),
    /// A pair for `RS256`.
    Rsa(RsaKeyPair),
}

impl fmt::Debug for SigningPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [redacted]", self.algorithm())
    }
}

/// A private key in PKCS #8 (RFC 5958).
pub type Secret = Zeroizing<Vec<u8>>;

/// A key pair could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The random generator failed.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The cryptographic library returned an error.
    #[error("the cryptographic library refused to work with a new {0} key")]
    Refused(KeyAlgorithm),
}

/// A file does not hold a key that can be imported.
#[derive(Debug, thiserror::Error)]
pub enum NotImported {
    /// The file holds no private key in PEM.
    #[error(
        "it holds no private key in PEM (`BEGIN PRIVATE KEY`, `BEGIN EC PRIVATE KEY` or `BEGIN \
         RSA PRIVATE KEY`, not encrypted)"
    )]
    NoPem,
    /// The key is of an algorithm that is not supported.
    #[error(
        "it is not an Ed25519 key, nor an EC key on P-256, nor an RSA key of 2048 to 8192 bits"
    )]
    NotSupported,
    /// The RSA key is too short, or longer than the cryptographic library accepts.
    #[error(
        "it is an RSA key of {0} bits, and must be one of 2048 to 8192: `openssl genpkey \
         -algorithm RSA -pkeyopt rsa_keygen_bits:2048` makes one"
    )]
    RsaSize(usize),
    /// The public exponent of the RSA key is not one that NIST SP 800-56B, section 6.2, allows.
    #[error(
        "it is an RSA key with the public exponent {0}, which must be odd, at least 65537, and \
         have at most 33 bits: `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048` \
         makes a key with 65537"
    )]
    RsaExponent(String),
    /// The private and the public part of the key do not belong together.
    #[error("the key does not verify what it signs: it is damaged")]
    Damaged,
}

/// The message that is signed to check a key.
const TRIAL: &[u8] = b"countersign";

impl SigningPair {
    /// Generates a pair, and returns it with its private key in PKCS #8. Generating an RSA key
    /// takes long, so a service that answers calls must do it on a thread that may block.
    pub fn generate(algorithm: KeyAlgorithm, rng: &dyn Rng) -> Result<(Self, Secret), PairError> {
        let refused = |_| PairError::Refused(algorithm);
        let pair = match algorithm {
            KeyAlgorithm::EdDsa => {
                let seed = Zeroizing::new(random::<32>(rng)?);
                Self::Ed25519(
                    Ed25519KeyPair::from_seed_unchecked(seed.as_slice())
                        .map_err(|_| PairError::Refused(algorithm))?,
                )
            }
            KeyAlgorithm::Es256 => Self::P256(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(refused)?,
            ),
            KeyAlgorithm::Rs256 => {
                Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(refused)?)
            }
            KeyAlgorithm::Hs256 => return Err(PairError::Refused(algorithm)),
        };
        let secret = pair.secret().ok_or(PairError::Refused(algorithm))?;
        Ok((pair, secret))
    }

    /// Reads a private key that [`SigningPair::generate`] returned.
    pub fn read(algorithm: KeyAlgorithm, secret: &[u8]) -> Option<Self> {
        match algorithm {
            KeyAlgorithm::EdDsa => Ed25519KeyPair::from_pkcs8(secret).ok().map(Self::Ed25519),
            KeyAlgorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, secret)
                    .ok()
                    .map(Self::P256)
            }
            KeyAlgorithm::Rs256 => RsaKeyPair::from_pkcs8(secret).ok().map(Self::Rsa),
            KeyAlgorithm::Hs256 => None,
        }
    }

    /// Reads a key that was made elsewhere, and refuses a weak one.
    pub fn from_pem(pem: &[u8]) -> Result<(Self, Secret), NotImported> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| NotImported::NoPem)?;
        // RSA keys are checked first, because the library accepts some weak keys, and refuses
        // others without a reason.
        if let Some(public) = RsaPublic::of_private(&key) {
            public.check()?;
        }
        let pair = match &key {
            PrivateKeyDer::Pkcs8(key) => {
                let key = key.secret_pkcs8_der();
                let all = KeyAlgorithm::SIGNING.into_iter();
                // The file may also contain the public key, which some tools write (RFC 5958,
                // version 2).
                all.filter_map(|algorithm| Self::read(algorithm, key)).next()
            }
            PrivateKeyDer::Sec1(key) => EcdsaKeyPair::from_private_key_der(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                key.secret_sec1_der(),
            )
            .ok()
            .map(Self::P256),
            PrivateKeyDer::Pkcs1(key) => {
                RsaKeyPair::from_der(key.secret_pkcs1_der()).ok().map(Self::Rsa)
            }
            _ => None,
        };
        let pair = pair.ok_or(NotImported::NotSupported)?;
        let secret = pair.secret().ok_or(NotImported::NotSupported)?;
        match pair.is_sound() {
            true => Ok((pair, secret)),
            false => Err(NotImported::Damaged),
        }
    }

    /// Returns whether the public key verifies what the private key signs.
    fn is_sound(&self) -> bool {
        let Some(jwk) = self.jwk() else { return false };
        let key = DecodingKey::from_jwk(&jwk).ok();
        let key = key.and_then(|key| VerifyingKey::new(jose(self.algorithm()), &key));
        key.zip(self.sign(TRIAL)).is_some_and(|(key, signature)| key.verifies(TRIAL, &signature))
    }

    /// Returns the public exponent of an RSA key if it is too small to be imported today.
    pub fn weak_exponent(&self) -> Option<u64> {
        let Self::Rsa(pair) = self else { return None };
        let RsaPublicKeyComponents { n: modulus, e: exponent } =
            RsaPublicKeyComponents::from(pair.public_key());
        RsaPublic { modulus, exponent }
            .exponent()
            .filter(|exponent| *exponent < SMALLEST_RSA_EXPONENT)
    }

    /// Returns the algorithm of the signatures.
    pub fn algorithm(&self) -> KeyAlgorithm {
        match self {
            Self::Ed25519(_) => KeyAlgorithm::EdDsa,
            Self::P256(_) => KeyAlgorithm::Es256,
            Self::Rsa(_) => KeyAlgorithm::Rs256,
        }
    }

    fn secret(&self) -> Option<Secret> {
        let bytes = match self {
            Self::Ed25519(pair) => pair.to_pkcs8v1().ok()?.as_ref().to_vec(),
            Self::P256(pair) => pair.to_pkcs8v1().ok()?.as_ref().to_vec(),
            Self::Rsa(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair).ok()?.as_ref().to_vec(),
        };
        Some(Zeroizing::new(bytes))
    }

    /// Signs a message in the form of a JWS signature (RFC 7518, section 3; RFC 8037, section 3.1).
    /// Returns `None` if the cryptographic library fails.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Self::P256(pair) => Some(pair.sign(&unused(), message).ok()?.as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &unused(), message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }

    /// Returns the public key as a JWK (RFC 7517), with its thumbprint (RFC 7638) as `kid`.
    pub fn jwk(&self) -> Option<Jwk> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, parameters) = match self {
            Self::Ed25519(pair) => (
                JwkAlgorithm::EdDSA,
                AlgorithmParameters::OctetKeyPair(OctetKeyPairParameters {
                    key_type: OctetKeyPairType::OctetKeyPair,
                    curve: EllipticCurve::Ed25519,
                    x: text(pair.public_key().as_ref()),
                }),
            ),
            Self::P256(pair) => {
                // The point is not compressed. It consists of a byte that says so and the two
                // coordinates (SEC 1, section 2.3.3).
                let (_, point) = pair.public_key().as_ref().split_first()?;
                let (x, y) = point.split_at_checked(32)?;
                let parameters = EllipticCurveKeyParameters {
                    key_type: EllipticCurveKeyType::EC,
                    curve: EllipticCurve::P256,
                    x: text(x),
                    y: text(y),
                };
                (JwkAlgorithm::ES256, AlgorithmParameters::EllipticCurve(parameters))
            }
            Self::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                let parameters = RSAKeyParameters {
                    key_type: RSAKeyType::RSA,
                    n: text(&public.n),
                    e: text(&public.e),
                };
                (JwkAlgorithm::RS256, AlgorithmParameters::RSA(parameters))
            }
        };
        let common = CommonParameters {
            public_key_use: Some(PublicKeyUse::Signature),
            key_algorithm: Some(algorithm),
            ..CommonParameters::default()
        };
        let mut jwk = Jwk { common, algorithm: parameters };
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).ok()?);
        Some(jwk)
    }
}

/// The accepted sizes of an RSA modulus, in bits. RFC 7518, section 3.3, sets the minimum; the
/// library does not read longer keys than the maximum.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;
/// The smallest public exponent of an RSA key. With a smaller one, some mistakes in verifiers make
/// forged signatures possible.
const SMALLEST_RSA_EXPONENT: u64 = 65_537;
/// The largest public exponent that the library reads.
const LARGEST_RSA_EXPONENT: u64 = (1 << 33) - 1;
/// The identifier of RSA keys in PKCS #8 (RFC 8017, appendix A.1).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// The numbers of a public RSA key, big-endian and without leading zeros.
struct RsaPublic {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaPublic {
    /// Reads the public key out of a private RSA key; `None` if the key is not RSA, or not DER.
    fn of_private(key: &PrivateKeyDer<'_>) -> Option<Self> {
        match key {
            PrivateKeyDer::Pkcs8(key) => Self::in_pkcs8(key.secret_pkcs8_der()).ok().flatten(),
            PrivateKeyDer::Pkcs1(key) => Self::in_pkcs1(key.secret_pkcs1_der()).ok(),
            _ => None,
        }
    }

    /// Reads a `OneAsymmetricKey` (RFC 5958); `None` if it is not an RSA key.
    fn in_pkcs8(der: &[u8]) -> der::Result<Option<Self>> {
        SliceReader::new(der)?.sequence(|reader| {
            AnyRef::decode(reader)?; // The version.
            let algorithm = reader.sequence(|reader| {
                let algorithm = ObjectIdentifier::decode(reader)?;
                skip_rest(reader)?;
                Ok(algorithm)
            })?;
            let key = OctetStringRef::decode(reader)?;
            skip_rest(reader)?;
            (algorithm == RSA_ENCRYPTION).then(|| Self::in_pkcs1(key.as_bytes())).transpose()
        })
    }

    /// Reads an `RSAPrivateKey` (RFC 8017, appendix A.1.2).
    fn in_pkcs1(der: &[u8]) -> der::Result<Self> {
        SliceReader::new(der)?.sequence(|reader| {
            AnyRef::decode(reader)?; // The version.
            let (modulus, exponent) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
            skip_rest(reader)?;
            Ok(Self {
                modulus: modulus.as_bytes().to_vec(),
                exponent: exponent.as_bytes().to_vec(),
            })
        })
    }

    /// Returns the exponent, or `None` if it is longer than 64 bits.
    fn exponent(&self) -> Option<u64> {
        (self.exponent.len() <= 8)
            .then(|| self.exponent.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    /// Refuses a weak key, and numbers that cannot be an RSA key.
    fn check(&self) -> Result<(), NotImported> {
        let bits = bits(&self.modulus);
        if !RSA_BITS.contains(&bits) {
            return Err(NotImported::RsaSize(bits));
        }
        match self.exponent() {
            Some(SMALLEST_RSA_EXPONENT..=LARGEST_RSA_EXPONENT) if is_odd(&self.exponent) => {}
            Some(exponent) => return Err(NotImported::RsaExponent(exponent.to_string())),
            None => {
                let long = format!("of {} bits that it has", self::bits(&self.exponent));
                return Err(NotImported::RsaExponent(long));
            }
        }
        // The modulus is a product of two odd primes, so it is odd.
        is_odd(&self.modulus).then_some(()).ok_or(NotImported::Damaged)
    }
}

/// Skips the rest of a sequence.
fn skip_rest<'a>(reader: &mut impl Reader<'a>) -> der::Result<()> {
    while !reader.is_finished() {
        AnyRef::decode(reader)?;
    }
    Ok(())
}

/// Returns the number of bits of a big-endian number without leading zero bytes.
fn bits(number: &[u8]) -> usize {
    let leading = number.first().map_or(0, |byte| byte.leading_zeros());
    (number.len() * 8).saturating_sub(usize::try_from(leading).unwrap_or_default())
}

fn is_odd(number: &[u8]) -> bool {
    number.last().is_some_and(|byte| byte % 2 == 1)
}

/// Returns a random generator that the signing functions require but do not use: this RSA scheme
/// needs no randomness, and ECDSA uses the library's own generator.
#[allow(clippy::disallowed_methods)]
fn unused() -> SystemRandom {
    SystemRandom::new()
}

/// Returns the algorithm as a value of `jsonwebtoken`.
pub fn jose(algorithm: KeyAlgorithm) -> Algorithm {
    match algorithm {
        KeyAlgorithm::EdDsa => Algorithm::EdDSA,
        KeyAlgorithm::Es256 => Algorithm::ES256,
        KeyAlgorithm::Rs256 => Algorithm::RS256,
        KeyAlgorithm::Hs256 => Algorithm::HS256,
    }
}

#[cfg(test)]
mod tests {
    use x509_cert::der::{Encode, Tag};

    use super::*;
    use crate::rng::SystemRng;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn a_generated_pair_is_sound_and_can_be_read_and_imported() {
        for algorithm in KeyAlgorithm::SIGNING {
            let (pair, secret) = SigningPair::generate(algorithm, &SystemRng::default()).unwrap();
            assert!(pair.is_sound() && pair.algorithm() == algorithm);
            let read = SigningPair::read(algorithm, &secret).unwrap();
            assert_eq!(read.jwk(), pair.jwk());
            for other in KeyAlgorithm::SIGNING.into_iter().filter(|other| *other != algorithm) {
                assert!(SigningPair::read(other, &secret).is_none(), "{algorithm} as {other}");
            }
            let (imported, _) =
                SigningPair::from_pem(pem("PRIVATE KEY", &secret).as_bytes()).unwrap();
            assert_eq!(imported.jwk(), pair.jwk());
        }
        assert!(SigningPair::generate(KeyAlgorithm::Hs256, &SystemRng::default()).is_err());
    }

    #[test]
    fn only_supported_private_keys_are_imported() {
        let refusal = |text: &str| SigningPair::from_pem(text.as_bytes()).unwrap_err();
        for nothing in ["", "hello", &pem("PUBLIC KEY", b"x"), &pem("ENCRYPTED PRIVATE KEY", b"x")]
        {
            assert!(matches!(refusal(nothing), NotImported::NoPem), "{nothing}");
        }
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            assert!(
                matches!(refusal(&pem(label, b"garbage")), NotImported::NotSupported),
                "{label}"
            );
        }
        // P-384 is not supported.
        assert!(matches!(refusal(include_str!("test_keys/p384.pem")), NotImported::NotSupported));
        for good in
            [include_str!("test_keys/p256_sec1.pem"), include_str!("test_keys/rsa2048_pkcs1.pem")]
        {
            assert!(SigningPair::from_pem(good.as_bytes()).is_ok(), "{good}");
        }
    }

    /// Returns the beginning of a file with an RSA key of these numbers. The numbers are checked
    /// before the rest is read.
    fn rsa(modulus: &[u8], exponent: &[u8]) -> String {
        let integer = |number: &[u8]| UintRef::new(number).unwrap().to_der().unwrap();
        let numbers = [&[0][..], modulus, exponent, &[1]].map(integer).concat();
        pem("RSA PRIVATE KEY", &AnyRef::new(Tag::Sequence, &numbers).unwrap().to_der().unwrap())
    }

    /// NIST SP 800-56B, section 6.2, requires an odd exponent of at least 65537. RFC 7518, section
    /// 3.3, requires at least 2048 bits.
    #[test]
    fn an_rsa_key_with_a_weak_exponent_or_of_a_wrong_size_is_refused_with_the_reason() {
        let refusal = |text: &str| SigningPair::from_pem(text.as_bytes()).unwrap_err();
        let modulus = [0xff; 256];
        let of_exponent = |exponent: &[u8]| rsa(&modulus, exponent);
        for (key, exponent) in [
            (include_str!("test_keys/rsa2048_e3.pem").to_owned(), "3,"),
            (include_str!("test_keys/rsa2048_e17_pkcs1.pem").to_owned(), "17,"),
            (of_exponent(&[0]), "0,"),
            (of_exponent(&[1]), "1,"),
            (of_exponent(&[2]), "2,"),
            (of_exponent(&[0xff, 0xff]), "65535,"),
            (of_exponent(&[1, 0, 0]), "65536,"),
            (of_exponent(&[1, 0, 2]), "65538,"),
            (of_exponent(&[2, 0, 0, 0, 1]), "8589934593,"),
            (of_exponent(&[1; 9]), "of 65 bits that it has,"),
        ] {
            let refused = refusal(&key);
            assert!(matches!(refused, NotImported::RsaExponent(_)), "{exponent} {refused}");
            let text = refused.to_string();
            assert!(text.contains(&format!("the public exponent {exponent}")), "{text}");
            assert!(text.contains("at least 65537") && text.contains("`openssl genpkey"), "{text}");
        }
        let good = [1, 0, 1];
        let odd = |bits: usize| {
            let mut modulus = vec![0xff; bits.div_ceil(8)];
            modulus[0] >>= modulus.len() * 8 - bits;
            modulus
        };
        for (key, bits) in [
            (include_str!("test_keys/rsa1024.pem").to_owned(), 1024),
            (rsa(&odd(2047), &good), 2047),
            (rsa(&odd(8193), &good), 8193),
            (rsa(&[1], &good), 1),
        ] {
            let refused = refusal(&key);
            assert!(
                matches!(refused, NotImported::RsaSize(found) if found == bits),
                "{bits} {refused}"
            );
        }
        let mut even = modulus;
        even[255] = 0xfe;
        assert!(matches!(refusal(&rsa(&even, &good)), NotImported::Damaged));
        // The library refuses numbers that are within the bounds and do not form a key.
        assert!(matches!(refusal(&rsa(&modulus, &good)), NotImported::NotSupported));
    }

    #[test]
    fn a_stored_rsa_key_with_a_weak_exponent_is_read_and_reported() {
        let read = |pem: &str| {
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            SigningPair::read(KeyAlgorithm::Rs256, key.secret_der())
                .map(|pair| pair.weak_exponent())
        };
        assert_eq!(read(include_str!("test_keys/rsa2048_e3.pem")), Some(Some(3)));
        let (good, _) =
            SigningPair::from_pem(include_bytes!("test_keys/rsa2048_pkcs1.pem")).unwrap();
        assert_eq!(good.weak_exponent(), None);
    }
}
