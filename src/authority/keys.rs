//! The keys: told, rotated by schedule or by hand, revoked. The rules are those of [`crate::domain::rotation`]; the database
//! lets one replica at a time carry them out, and a key makes no tokens before every replica knows of it.

use std::{sync::Arc, time::Duration};

use super::{Authority, error::AuthorityError, sweep::SweepClock};
use crate::{
    clock::Clock,
    domain::{
        key::{Key, KeyPurpose, KeyState, RefreshKeyId, SealedKey},
        revocation::Place,
        rotation::{Change, NotRotated, Rotation, RotationRules},
        time::Timestamp,
    },
    keys::{
        generate::{NotGenerated, generate},
        ring::Jwks,
    },
    store::ring::{RingChange, SealedRing},
};

/// How often the sessions are asked whether they still need a retired refresh key.
const ASK_SESSIONS: Duration = Duration::from_secs(3600);

/// What the scheduled rotation goes on from.
#[derive(Debug)]
pub struct Rotating {
    clock: SweepClock,
    /// When the sessions were last asked, by the clock of uptime.
    asked: Option<Duration>,
}

impl Rotating {
    /// Has done nothing.
    pub fn new(clock: &dyn Clock) -> Self {
        Self { clock: SweepClock::new(clock), asked: None }
    }
}

/// The public keys, for a verifier.
#[derive(Clone, Debug)]
pub struct PublicKeys {
    /// The document.
    pub jwks: Jwks,
    /// How long it may be used without asking again. Zero if there may be keys that are not known here.
    pub max_age: Duration,
}

impl From<NotRotated> for AuthorityError {
    fn from(error: NotRotated) -> Self {
        match error {
            NotRotated::TooSoon { kid, wait } => Self::KeyTooNew { kid, wait },
            NotRotated::TooMany => Self::TooManyKeys,
            NotRotated::NoNext | NotRotated::Step(_) => {
                tracing::error!(%error, "a key could not be rotated");
                Self::Internal
            }
        }
    }
}

impl From<NotGenerated> for AuthorityError {
    fn from(error: NotGenerated) -> Self {
        tracing::error!(%error, "a key could not be made");
        Self::Internal
    }
}

impl Authority {
    /// The public keys that verify access tokens.
    pub fn public_keys(&self) -> PublicKeys {
        // Looked at before the ring: keys that come later are published long before they are used.
        let is_current = self.replica.lease().remaining().is_some();
        let max_age = if is_current { self.settings.jwks_max_age } else { Duration::ZERO };
        PublicKeys { jwks: self.keeper.ring().jwks().clone(), max_age }
    }

    /// Who issues the tokens that these keys verify.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// All keys, those of access tokens first, each purpose's newest first.
    pub async fn list_keys(&self) -> Result<Vec<Key>, AuthorityError> {
        let ring = self.store.ring().await?;
        for kid in &ring.damaged {
            tracing::error!(kid, "the row of a key is damaged");
        }
        let mut keys: Vec<Key> = ring.keys.into_iter().map(|sealed| sealed.key).collect();
        keys.sort_by(|a, b| {
            let order = |key: &Key| key.purpose() != KeyPurpose::AccessToken;
            order(a).cmp(&order(b)).then(b.created_at.cmp(&a.created_at)).then(a.state().cmp(&b.state()))
        });
        Ok(keys)
    }

    fn rules(&self, purpose: KeyPurpose) -> RotationRules {
        match purpose {
            KeyPurpose::AccessToken => self.settings.signing_rotation,
            KeyPurpose::RefreshToken => self.settings.refresh_rotation,
        }
    }

    /// Lets the next key of a purpose make all tokens from now on, and returns it. Unless it is forced, every verifier must have
    /// had time to learn of it.
    pub async fn rotate_key(&self, purpose: KeyPurpose, force: bool) -> Result<Key, AuthorityError> {
        loop {
            let ring = self.store.ring().await?;
            let now = self.clock.now();
            let rotation = Rotation::new(ring.keys.iter().map(|sealed| &sealed.key), self.rules(purpose));
            let (change, next) = match rotation.next() {
                Some(next) => (rotation.rotate(now, force)?, Some(next.kid.clone())),
                None => (rotation.due(now)?, None),
            };
            // The next key is known to every replica before it makes tokens.
            self.acknowledged_as_read(ring.place).await?;
            if let Some((place, keys)) = self.change_ring(&ring, change, now).await? {
                self.acknowledged_as_read(place).await?;
                if let Some(key) = keys.into_iter().find(|key| Some(&key.kid) == next.as_ref()) {
                    return Ok(key);
                }
            }
        }
    }

    /// Makes a key worthless: when this returns, no replica accepts any token of it. If it made tokens, the next one does now.
    pub async fn revoke_key(&self, kid: &str) -> Result<Key, AuthorityError> {
        loop {
            let ring = self.store.ring().await?;
            // Whatever comes next was decided by a database that is in charge, and the next key is known to every replica
            // before it makes tokens.
            self.acknowledged_as_read(ring.place).await?;
            let keys = || ring.keys.iter().map(|sealed| &sealed.key);
            let key = keys().find(|key| key.kid == kid).ok_or(AuthorityError::KeyNotFound)?;
            if key.state() == KeyState::Revoked {
                return Ok(key.clone());
            }
            let now = self.clock.now();
            let rotation = Rotation::new(keys(), self.rules(key.purpose()));
            let change = match rotation.revoke(key, now) {
                Err(NotRotated::NoNext) => rotation.due(now)?,
                change => change?,
            };
            if let Some((place, keys)) = self.change_ring(&ring, change, now).await? {
                self.acknowledged_as_read(place).await?;
                if let Some(key) = keys.into_iter().find(|key| key.kid == kid && key.state() == KeyState::Revoked) {
                    tracing::warn!(kid, purpose = key.purpose().as_str(), "a key has been revoked");
                    return Ok(key);
                }
            }
        }
    }

    /// Carries out what the schedule asks for.
    pub async fn rotate_what_is_due(&self) -> Result<(), AuthorityError> {
        // Held throughout: two at once would do each other's work.
        let mut rotating = self.rotating.lock().await;
        let now = rotating.clock.advance(&*self.clock);
        if self.replica.lease().remaining().is_none() {
            // The clock may be off, or the database is away.
            return Ok(());
        }
        let is_time_to_ask =
            rotating.asked.is_none_or(|asked| self.clock.uptime().saturating_sub(asked) >= ASK_SESSIONS);
        if is_time_to_ask {
            rotating.asked = Some(self.clock.uptime());
        }
        for purpose in KeyPurpose::ALL {
            let known = self.keeper.ring();
            let is_due = !Rotation::new(known.keys(), self.rules(purpose)).due(now)?.is_empty();
            drop(known);
            let may_have_outlived = is_time_to_ask && purpose == KeyPurpose::RefreshToken;
            if !is_due && !may_have_outlived {
                continue;
            }
            let ring = self.store.ring().await?;
            let rotation = Rotation::new(ring.keys.iter().map(|sealed| &sealed.key), self.rules(purpose));
            let mut change = rotation.due(now)?;
            if may_have_outlived {
                for (key, created_until) in rotation.retired(now) {
                    if !self.is_held(key, created_until, now).await? {
                        change.drop.push(key.kid.clone());
                    }
                }
            }
            if !change.is_empty() {
                // If others were faster, there is nothing left to do.
                if let Some((place, _)) = self.change_ring(&ring, change, now).await? {
                    // Until all know of it, this replica too.
                    self.acknowledged_as_read(place).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether a session may still have a refresh token under a key.
    async fn is_held(&self, key: &Key, created_until: Timestamp, now: Timestamp) -> Result<bool, AuthorityError> {
        let Ok(id) = key.kid.parse::<RefreshKeyId>() else { return Ok(true) };
        Ok(self.store.is_refresh_key_held(id, created_until, now).await?)
    }

    /// Makes a change to a ring, if it still is as it was. Returns its place, and the keys as they then are.
    async fn change_ring(
        &self,
        ring: &SealedRing,
        change: Change,
        now: Timestamp,
    ) -> Result<Option<(Place, Vec<Key>)>, AuthorityError> {
        let mut put: Vec<SealedKey> = vec![];
        for key in change.put {
            let there = ring.keys.iter().find(|there| there.key.kid == key.kid).ok_or(AuthorityError::Internal)?;
            put.push(SealedKey { key, sealed: there.sealed.clone() });
        }
        if let Some(algorithm) = change.publish {
            let (keeper, rng) = (Arc::clone(&self.keeper), Arc::clone(&self.rng));
            let made = tokio::task::spawn_blocking(move || generate(&keeper.masters().current, &*rng, algorithm, now));
            put.push(made.await.map_err(|_| AuthorityError::Internal)??);
        }
        let keys: Vec<Key> = put.iter().map(|sealed| sealed.key.clone()).collect();
        let change = RingChange { version: ring.version, put, drop: change.drop };
        let dropped = change.drop.clone();
        let place = self.store.change_ring(change).await?;
        if place.is_some() {
            for key in &keys {
                let (kid, purpose, state) = (&*key.kid, key.purpose().as_str(), key.state().as_str());
                tracing::info!(kid, purpose, algorithm = %key.algorithm, state, "a key has changed");
            }
            for kid in &dropped {
                tracing::info!(kid, "a key has been dropped");
            }
        }
        Ok(place.map(|place| (place, keys)))
    }
}
