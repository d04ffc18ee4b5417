//! The key ring: all keys in use, opened. It provides the key that signs, and finds the key that a
//! token names.

use std::{cmp::Reverse, collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use countersign_verification::keys::VerifyingKeys;
use jsonwebtoken::{
    DecodingKey,
    jwk::{Jwk, JwkSet},
};

pub use countersign_verification::keys::{Found, VerifyingKey};

use super::{
    pair::{SigningPair, jose},
    sealing::{MasterKeys, SealError},
};
use crate::{
    domain::{
        key::{Key, KeyAlgorithm, KeyPurpose, KeyState, RefreshKeyId, RingVersion, SealedKey},
        revocation::Timeline,
    },
    store::ring::SealedRing,
};

/// A ring could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A key cannot be opened by the master keys.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The sealed bytes are not a key of the kind that the row says.
    #[error("key {kid} is not a {algorithm} key: restore its row from a backup")]
    NotAKey {
        /// The key's name.
        kid: String,
        /// The algorithm in the row.
        algorithm: KeyAlgorithm,
    },
    /// The row is not one that this service writes.
    #[error("the row of key {0} is damaged: restore it from a backup")]
    Damaged(String),
    /// There is no active key for a purpose.
    #[error(
        "the database holds keys, but none that makes tokens now for {0}: restore it from a backup"
    )]
    Missing(&'static str),
}

/// A key that signs access tokens.
pub struct SigningKey {
    /// The name of the key: the RFC 7638 thumbprint of its public key.
    pub kid: String,
    /// The key itself.
    pub pair: SigningPair,
    /// The public key.
    jwk: Jwk,
    verifying: VerifyingKey,
}

/// The opened secret of a key.
#[derive(Clone)]
enum Opened {
    Signing(Arc<SigningKey>),
    Refresh(RefreshKeyId, Arc<hmac::Key>),
}

/// A key both sealed, as it is stored, and opened.
#[derive(Clone)]
struct Entry {
    sealed: SealedKey,
    opened: Opened,
}

/// All keys in use, as they were at one instant.
pub struct KeyRing {
    version: RingVersion,
    /// The timeline of the database to which `version` belongs.
    timeline: Timeline,
    entries: HashMap<String, Entry>,
    /// The keys whose refresh tokens are accepted.
    refresh: HashMap<RefreshKeyId, Arc<hmac::Key>>,
    signing: Option<Arc<SigningKey>>,
    active_refresh: Option<RefreshKeyId>,
    jwks: Jwks,
    /// The revoked keys whose revocation the database has lost.
    lost_revocations: Vec<String>,
}

/// The public keys as the document that verifiers fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwks {
    /// The document (RFC 7517, section 5).
    pub json: String,
    /// A hash of the document, by which a verifier sees whether it has changed.
    pub tag: String,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Entry {
    fn open(masters: &MasterKeys, sealed: SealedKey) -> Result<Self, RingError> {
        let secret = masters.open(&sealed)?;
        let SealedKey { key, .. } = &sealed;
        let not_a_key = || RingError::NotAKey { kid: key.kid.clone(), algorithm: key.algorithm };
        let opened = match key.algorithm.purpose() {
            KeyPurpose::AccessToken => {
                let pair = SigningPair::read(key.algorithm, &secret).ok_or_else(not_a_key)?;
                // Older versions imported keys with a small exponent. To refuse them now would stop
                // a service that has issued tokens with them.
                if let Some(exponent) =
                    pair.weak_exponent().filter(|_| key.state() != KeyState::Revoked)
                {
                    tracing::warn!(
                        kid = key.kid,
                        exponent,
                        "an RSA key has a public exponent below 65537: replace it by `countersign \
                         key rotate`"
                    );
                }
                let jwk = pair.jwk().ok_or_else(not_a_key)?;
                if jwk.common.key_id.as_ref() != Some(&key.kid) {
                    return Err(not_a_key());
                }
                let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| not_a_key())?;
                let verifying =
                    VerifyingKey::new(jose(key.algorithm), &decoding).ok_or_else(not_a_key)?;
                Opened::Signing(Arc::new(SigningKey { kid: key.kid.clone(), pair, jwk, verifying }))
            }
            KeyPurpose::RefreshToken => {
                let id = key.kid.parse::<RefreshKeyId>().map_err(|_| not_a_key())?;
                if secret.len() != 32 {
                    return Err(not_a_key());
                }
                Opened::Refresh(id, Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
            }
        };
        Ok(Self { sealed, opened })
    }

    fn key(&self) -> &Key {
        &self.sealed.key
    }
}

impl KeyRing {
    /// Opens the keys of a database. All of them must open, and there must be an active key for
    /// each purpose.
    pub fn open(masters: &MasterKeys, ring: SealedRing) -> Result<Self, RingError> {
        if let Some(kid) = ring.damaged.into_iter().next() {
            return Err(RingError::Damaged(kid));
        }
        let (version, timeline) = (ring.version, ring.position.timeline);
        let entries =
            ring.keys.into_iter().map(|key| Entry::open(masters, key)).collect::<Result<_, _>>()?;
        let opened = Self::assemble(version, timeline, entries);
        let missing = |purpose: KeyPurpose| RingError::Missing(purpose.as_str());
        opened.signing().ok_or(missing(KeyPurpose::AccessToken))?;
        opened.active_refresh().ok_or(missing(KeyPurpose::RefreshToken))?;
        Ok(opened)
    }

    /// Returns the ring after a change in the database, and the errors in its rows. If a row cannot
    /// be opened, the secret that was known before stays in use.
    pub fn follow(&self, masters: &MasterKeys, ring: SealedRing) -> (Self, Vec<RingError>) {
        let mut problems = vec![];
        let mut entries = vec![];
        for kid in ring.damaged {
            entries.extend(self.entries.get(&kid).cloned());
            problems.push(RingError::Damaged(kid));
        }
        for sealed in ring.keys {
            let known = self.entries.get(&sealed.key.kid);
            // The seal also authenticates the algorithm, so a row with another algorithm must be
            // opened again, which fails.
            let is_same = |known: &&Entry| {
                known.sealed.sealed == sealed.sealed
                    && known.key().algorithm == sealed.key.algorithm
            };
            if let Some(known) = known.filter(is_same) {
                entries.push(Entry { sealed, opened: known.opened.clone() });
                continue;
            }
            match Entry::open(masters, sealed.clone()) {
                Ok(entry) => entries.push(entry),
                Err(problem) => {
                    problems.push(problem);
                    // The state in the row is used nevertheless, so that a key that cannot be
                    // opened can still be retired or revoked.
                    entries.extend(known.map(|known| {
                        let key = Key { algorithm: known.key().algorithm, ..sealed.key };
                        Entry {
                            sealed: SealedKey { key, ..known.sealed.clone() },
                            opened: known.opened.clone(),
                        }
                    }));
                }
            }
        }
        // A failover may have lost the revocation of a key. The key stays revoked here.
        let mut lost_revocations = vec![];
        for Entry { sealed: SealedKey { key, .. }, .. } in &mut entries {
            let known = self.entries.get(&key.kid).and_then(|known| known.key().revoked_at);
            if key.revoked_at.is_none() && known.is_some() {
                key.revoked_at = known;
                lost_revocations.push(key.kid.clone());
            }
        }
        (
            Self {
                lost_revocations,
                ..Self::assemble(ring.version, ring.position.timeline, entries)
            },
            problems,
        )
    }

    fn assemble(version: RingVersion, timeline: Timeline, entries: Vec<Entry>) -> Self {
        let (mut refresh, mut signing, mut active_refresh) = (HashMap::new(), None, None);
        for entry in &entries {
            let (state, is_active) = (entry.key().state(), entry.key().state() == KeyState::Active);
            match &entry.opened {
                Opened::Signing(key) if is_active => signing = Some(key.clone()),
                Opened::Refresh(id, key) if state != KeyState::Revoked => {
                    refresh.insert(*id, key.clone());
                    if is_active {
                        active_refresh = Some(*id);
                    }
                }
                Opened::Signing(_) | Opened::Refresh(..) => {}
            }
        }
        let jwks = Jwks::of(&entries);
        let entries = entries.into_iter().map(|entry| (entry.key().kid.clone(), entry)).collect();
        Self {
            version,
            timeline,
            entries,
            refresh,
            signing,
            active_refresh,
            jwks,
            lost_revocations: vec![],
        }
    }

    /// Returns the version of the ring, which counts its changes.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    /// Returns the timeline of the database to which the version belongs.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Returns all keys.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.values().map(Entry::key)
    }

    /// Returns whether the ring needs a change at once: a lost revocation has to be repeated, or an
    /// active key is missing.
    pub fn is_in_trouble(&self) -> bool {
        !self.lost_revocations.is_empty() || !self.makes_tokens()
    }

    /// Returns whether there is an active key for each purpose.
    pub fn makes_tokens(&self) -> bool {
        self.signing.is_some() && self.active_refresh.is_some()
    }

    /// Returns a key as it is stored.
    pub fn sealed(&self, kid: &str) -> Option<&SealedKey> {
        self.entries.get(kid).map(|entry| &entry.sealed)
    }

    /// Returns the names of the revoked keys whose revocation the database has lost.
    pub fn lost_revocations(&self) -> &[String] {
        &self.lost_revocations
    }

    /// Returns the active key for access tokens.
    pub fn signing(&self) -> Option<&SigningKey> {
        self.signing.as_deref()
    }

    /// Looks up the key of this name, which verifies access tokens.
    pub fn verifying(&self, kid: &str) -> Found<'_> {
        match self.entries.get(kid) {
            Some(Entry { opened: Opened::Signing(key), sealed }) => match sealed.key.state() {
                KeyState::Revoked => Found::Revoked,
                KeyState::Pending | KeyState::Active | KeyState::Retired => {
                    Found::Good(&key.verifying)
                }
            },
            Some(_) | None => Found::Unknown,
        }
    }

    /// Returns the names of the revoked keys of access tokens.
    pub fn revoked_signing_keys(&self) -> impl Iterator<Item = &str> {
        self.keys()
            .filter(|key| key.algorithm.purpose() == KeyPurpose::AccessToken)
            .filter(|key| key.state() == KeyState::Revoked)
            .map(|key| &*key.kid)
    }

    /// Returns the active key for refresh tokens.
    pub fn active_refresh(&self) -> Option<RefreshKeyId> {
        self.active_refresh
    }

    /// Returns the refresh key of this name, unless it is revoked or unknown.
    pub fn refresh(&self, id: RefreshKeyId) -> Option<&hmac::Key> {
        self.refresh.get(&id).map(|key| &**key)
    }

    /// Returns the public keys.
    pub fn jwks(&self) -> &Jwks {
        &self.jwks
    }
}

impl VerifyingKeys for KeyRing {
    fn verifying(&self, kid: &str) -> Found<'_> {
        self.verifying(kid)
    }
}

impl Jwks {
    /// Makes the document. The newest keys come first, because they verify most tokens.
    fn of(entries: &[Entry]) -> Self {
        let mut published: Vec<_> = entries
            .iter()
            .filter(|entry| entry.key().state() != KeyState::Revoked)
            .filter_map(|entry| match &entry.opened {
                Opened::Signing(key) => Some((entry.key(), &key.jwk)),
                Opened::Refresh(..) => None,
            })
            .collect();
        published.sort_by_key(|(key, _)| (Reverse(key.created_at), &key.kid));
        let keys = published.into_iter().map(|(_, jwk)| jwk.clone()).collect();
        let json = serde_json::to_string(&JwkSet { keys }).unwrap_or_default();
        let digest = digest(&SHA256, json.as_bytes());
        let tag = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { json, tag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{revocation::FeedPosition, time::Timestamp},
        keys::{generate::generate, sealing::MasterKey},
        rng::SystemRng,
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    fn masters() -> MasterKeys {
        MasterKeys { current: MasterKey::new([1; 32]).unwrap(), additional: None }
    }

    fn new(algorithm: KeyAlgorithm) -> SealedKey {
        generate(&masters().current, &SystemRng::default(), algorithm, NOW).unwrap()
    }

    fn with(sealed: &SealedKey, key: Key) -> SealedKey {
        SealedKey { key, sealed: sealed.sealed.clone() }
    }

    fn active(algorithm: KeyAlgorithm) -> SealedKey {
        let new = new(algorithm);
        with(&new, new.key.activate(NOW).unwrap())
    }

    fn ring(version: i64, keys: &[&SealedKey]) -> SealedRing {
        let keys = keys.iter().map(|key| (*key).clone()).collect();
        SealedRing {
            version: RingVersion(version),
            keys,
            damaged: vec![],
            position: FeedPosition::default(),
        }
    }

    #[test]
    fn keys_that_are_not_revoked_verify_and_are_published() {
        let refresh = active(KeyAlgorithm::Hs256);
        let signing = active(KeyAlgorithm::EdDsa);
        let pending = new(KeyAlgorithm::Es256);
        let retired = active(KeyAlgorithm::Rs256);
        let retired = with(&retired, retired.key.retire(NOW).unwrap());
        let revoked = new(KeyAlgorithm::EdDsa);
        let revoked = with(&revoked, revoked.key.revoke(NOW).unwrap());
        let ring =
            KeyRing::open(&masters(), ring(1, &[&refresh, &signing, &pending, &retired, &revoked]))
                .unwrap();
        assert_eq!(ring.signing().unwrap().kid, signing.key.kid);
        let published: JwkSet = serde_json::from_str(&ring.jwks().json).unwrap();
        for good in [&signing, &pending, &retired] {
            assert!(matches!(ring.verifying(&good.key.kid), Found::Good(_)));
            let jwk = published.find(&good.key.kid).unwrap();
            assert_eq!(jwk.common.key_algorithm.unwrap().to_string(), good.key.algorithm.as_str());
        }
        assert_eq!(published.keys.len(), 3);
        assert!(matches!(ring.verifying(&revoked.key.kid), Found::Revoked));
        assert!(
            matches!(ring.verifying(&refresh.key.kid), Found::Unknown),
            "a key has one purpose"
        );
        assert!(matches!(ring.verifying("another"), Found::Unknown));
        assert!(ring.refresh(ring.active_refresh().unwrap()).is_some());
        assert!(!ring.jwks().json.contains(r#""d":"#), "no private key");
    }

    #[test]
    fn a_ring_without_an_active_key_for_each_purpose_is_not_opened() {
        for one in [active(KeyAlgorithm::Hs256), active(KeyAlgorithm::EdDsa)] {
            assert!(matches!(
                KeyRing::open(&masters(), ring(1, &[&one])),
                Err(RingError::Missing(_))
            ));
        }
        let both = [&new(KeyAlgorithm::Hs256), &new(KeyAlgorithm::EdDsa)];
        assert!(
            matches!(KeyRing::open(&masters(), ring(1, &both)), Err(RingError::Missing(_))),
            "none is active"
        );
    }

    #[test]
    fn bad_rows_are_reported_and_the_others_are_used() {
        let (refresh, signing) = (active(KeyAlgorithm::Hs256), active(KeyAlgorithm::EdDsa));
        let opened = KeyRing::open(&masters(), ring(1, &[&refresh, &signing])).unwrap();
        let next = new(KeyAlgorithm::EdDsa);

        // The row of the signing key has the secret of the next key, and the secret in the row of
        // the next key is truncated. The signing key that was known before stays in use.
        let swapped = SealedKey { sealed: next.sealed.clone(), ..signing.clone() };
        let truncated = SealedKey { sealed: next.sealed[..30].to_vec(), ..next.clone() };
        let (followed, problems) =
            opened.follow(&masters(), ring(2, &[&refresh, &swapped, &truncated]));
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(
            texts.len() == 2
                && texts[0].contains(&signing.key.kid)
                && texts[1].contains(&next.key.kid),
            "{texts:?}"
        );
        assert_eq!(followed.signing().unwrap().kid, signing.key.kid);
        assert!(matches!(followed.verifying(&next.key.kid), Found::Unknown));

        // The algorithm in the row was changed, which the seal does not allow.
        let relabelled =
            with(&signing, Key { algorithm: KeyAlgorithm::Es256, ..signing.key.clone() });
        let (followed, problems) = opened.follow(&masters(), ring(2, &[&refresh, &relabelled]));
        assert!(
            problems.len() == 1 && problems[0].to_string().contains(&signing.key.kid),
            "{problems:?}"
        );
        assert_eq!(followed.signing().unwrap().kid, signing.key.kid);
        assert_eq!(followed.sealed(&signing.key.kid), Some(&signing));

        // A key whose secret is damaged can be revoked nevertheless.
        let revoked = with(&swapped, signing.key.revoke(NOW).unwrap());
        let activated = with(&next, next.key.activate(NOW).unwrap());
        let (followed, problems) =
            opened.follow(&masters(), ring(3, &[&refresh, &revoked, &activated]));
        assert_eq!(problems.len(), 1);
        assert!(matches!(followed.verifying(&signing.key.kid), Found::Revoked));
        assert_eq!(followed.signing().unwrap().kid, next.key.kid);
        assert_eq!(followed.version(), RingVersion(3));

        let again = ring(4, &[&refresh, &signing, &activated]);
        let (kept, _) = followed.follow(&masters(), again.clone());
        assert_eq!(kept.lost_revocations(), std::slice::from_ref(&signing.key.kid));
        assert!(
            matches!(kept.verifying(&signing.key.kid), Found::Revoked),
            "a revoked key stays revoked"
        );
        let with_revoked =
            ring(5, &[&refresh, &with(&signing, signing.key.revoke(NOW).unwrap()), &activated]);
        assert!(kept.follow(&masters(), with_revoked).0.lost_revocations().is_empty());

        let damaged = SealedRing { damaged: vec![signing.key.kid.clone()], ..ring(4, &[&refresh]) };
        assert!(matches!(KeyRing::open(&masters(), damaged.clone()), Err(RingError::Damaged(_))));
        let (followed, problems) = opened.follow(&masters(), damaged);
        assert!(problems.len() == 1 && followed.signing().is_some());
        let (followed, problems) = opened.follow(&masters(), ring(5, &[&refresh]));
        assert!(
            problems.is_empty() && followed.signing().is_none(),
            "a deleted row removes the key"
        );
    }

    #[test]
    fn nothing_secret_is_printed() {
        let (refresh, signing) = (active(KeyAlgorithm::Hs256), active(KeyAlgorithm::EdDsa));
        let ring = KeyRing::open(&masters(), ring(1, &[&refresh, &signing])).unwrap();
        assert_eq!(format!("{ring:?}"), "KeyRing { version: RingVersion(1), .. }");
        assert_eq!(format!("{:?}", ring.signing().unwrap().pair), "EdDSA [redacted]");
    }
}
