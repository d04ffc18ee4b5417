//! Keys, their purposes, and the states that a key goes through.

use std::fmt;

use super::time::Timestamp;

/// The purpose of a key. A key never serves two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyPurpose {
    /// Signs access tokens.
    AccessToken,
    /// Authenticates refresh tokens.
    RefreshToken,
}

impl KeyPurpose {
    /// All purposes.
    pub const ALL: [Self; 2] = [Self::AccessToken, Self::RefreshToken];

    /// Returns the name under which the purpose is stored. The name is also part of the associated
    /// data with which a key's secret is encrypted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
        }
    }

    /// Returns the purpose with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == name)
    }
}

/// The algorithm of a key, with its name in JOSE (RFC 7518).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// Ed25519 (RFC 8037, section 3.1).
    EdDsa,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3).
    Rs256,
    /// HMAC-SHA-256 (RFC 7518, section 3.2), used only for refresh tokens.
    Hs256,
}

impl KeyAlgorithm {
    /// The algorithms that sign access tokens.
    pub const SIGNING: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    /// Returns the JOSE name of the algorithm.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Hs256 => "HS256",
        }
    }

    /// Returns the algorithm with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::EdDsa, Self::Es256, Self::Rs256, Self::Hs256]
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
    }

    /// Returns the algorithm named `name`, if its keys serve the purpose named `purpose`.
    pub fn for_purpose(name: &str, purpose: &str) -> Option<Self> {
        Self::from_name(name).filter(|algorithm| algorithm.purpose().as_str() == purpose)
    }

    /// Returns the purpose of the keys of this algorithm.
    pub fn purpose(self) -> KeyPurpose {
        match self {
            Self::EdDsa | Self::Es256 | Self::Rs256 => KeyPurpose::AccessToken,
            Self::Hs256 => KeyPurpose::RefreshToken,
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a key. A key never returns to an earlier state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// The key is published, but it issues no tokens yet, so that all verifiers know it before it
    /// is used. Tokens of the key would already be accepted.
    Pending,
    /// The key issues all new tokens.
    Active,
    /// The key issues no new tokens. Its existing tokens are accepted.
    Retired,
    /// Tokens issued under the key are not accepted.
    Revoked,
}

impl KeyState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Retired, Self::Revoked];

    /// Returns the name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// The key is in a state from which it cannot change to the requested one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {kid} is {}, so it cannot become {}", from.as_str(), to.as_str())]
pub struct NoSuchStep {
    /// The identifier of the key.
    pub kid: String,
    /// The state of the key.
    pub from: KeyState,
    /// The requested state.
    pub to: KeyState,
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The identifier: the `kid` of a signing key, or the hexadecimal [`RefreshKeyId`] of a refresh
    /// key.
    pub kid: String,
    /// The algorithm, which also determines the purpose of the key.
    pub algorithm: KeyAlgorithm,
    /// The instant at which the key was stored, and thereby published.
    pub created_at: Timestamp,
    /// The instant at which the key became active, if it ever did.
    pub activated_at: Option<Timestamp>,
    /// The instant at which the key was retired, if it was.
    pub retired_at: Option<Timestamp>,
    /// The instant at which the key was revoked, if it was. From then on, its tokens are not
    /// accepted.
    pub revoked_at: Option<Timestamp>,
}

impl Key {
    /// Creates a pending key.
    pub fn new(kid: String, algorithm: KeyAlgorithm, now: Timestamp) -> Self {
        Self {
            kid,
            algorithm,
            created_at: now,
            activated_at: None,
            retired_at: None,
            revoked_at: None,
        }
    }

    /// Returns the purpose of the key.
    pub fn purpose(&self) -> KeyPurpose {
        self.algorithm.purpose()
    }

    /// Returns the state of the key.
    pub fn state(&self) -> KeyState {
        match self {
            Self { revoked_at: Some(_), .. } => KeyState::Revoked,
            Self { retired_at: Some(_), .. } => KeyState::Retired,
            Self { activated_at: Some(_), .. } => KeyState::Active,
            _ => KeyState::Pending,
        }
    }

    /// Returns this key in the active state. Fails unless this key is pending.
    pub fn activate(&self, now: Timestamp) -> Result<Self, NoSuchStep> {
        self.require([KeyState::Pending], KeyState::Active)?;
        Ok(Self { activated_at: Some(now), ..self.clone() })
    }

    /// Returns this key in the retired state. Fails unless this key is active.
    pub fn retire(&self, now: Timestamp) -> Result<Self, NoSuchStep> {
        self.require([KeyState::Active], KeyState::Retired)?;
        Ok(Self { retired_at: Some(now), ..self.clone() })
    }

    /// Returns this key in the revoked state. Fails if this key is revoked already.
    pub fn revoke(&self, now: Timestamp) -> Result<Self, NoSuchStep> {
        self.require([KeyState::Pending, KeyState::Active, KeyState::Retired], KeyState::Revoked)?;
        Ok(Self { revoked_at: Some(now), ..self.clone() })
    }

    fn require<const N: usize>(&self, from: [KeyState; N], to: KeyState) -> Result<(), NoSuchStep> {
        match from.contains(&self.state()) {
            true => Ok(()),
            false => Err(NoSuchStep { kid: self.kid.clone(), from: self.state(), to }),
        }
    }
}

/// A key with its encrypted secret. The encryption authenticates the identifier, the purpose and
/// the algorithm of the key as well, so that the secret cannot be passed off as that of another
/// key.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// The key without its secret.
    pub key: Key,
    /// The encrypted secret.
    pub sealed: Vec<u8>,
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The number of changes that have been made to the key ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingVersion(pub i64);

/// The short identifier of a refresh key. Each refresh token carries the identifier of the key
/// under which it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RefreshKeyId(pub [u8; 8]);

impl fmt::Display for RefreshKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl std::str::FromStr for RefreshKeyId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    #[test]
    fn a_key_never_returns_to_an_earlier_state() {
        use KeyState::{Active, Pending, Retired, Revoked};
        let pending = Key::new("k".to_owned(), KeyAlgorithm::EdDsa, NOW);
        let active = pending.activate(NOW).unwrap();
        let retired = active.retire(NOW).unwrap();
        let revoked = retired.revoke(NOW).unwrap();
        let keys =
            [(Pending, &pending), (Active, &active), (Retired, &retired), (Revoked, &revoked)];
        type Step = fn(&Key, Timestamp) -> Result<Key, NoSuchStep>;
        let steps: [(Step, KeyState, &[KeyState]); 3] = [
            (Key::activate, Active, &[Pending]),
            (Key::retire, Retired, &[Active]),
            (Key::revoke, Revoked, &[Pending, Active, Retired]),
        ];
        for (state, key) in keys {
            assert_eq!(key.state(), state);
            for (step, to, from) in steps {
                match step(key, NOW) {
                    Ok(next) => assert!(
                        from.contains(&state) && next.state() == to && to > state,
                        "{state:?} {to:?}"
                    ),
                    Err(error) => {
                        assert!(!from.contains(&state), "{state:?} {to:?}");
                        assert_eq!(error, NoSuchStep { kid: "k".to_owned(), from: state, to });
                    }
                }
            }
        }
    }
}
