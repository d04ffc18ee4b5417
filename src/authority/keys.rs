//! The keys: told, rotated by schedule or by hand, revoked. The rules are those of
//! [`crate::domain::rotation`]; the database lets one replica at a time carry them out, and a key
//! makes no tokens before every replica knows of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Authority, error::AuthorityError, slow_clock::SlowClock};
use crate::{
    clock::Clock,
    domain::{
        audit::{AuditAction, Who},
        caller::Actor,
        key::{Key, KeyPurpose, KeyState, RefreshKeyId, SealedKey},
        revocation::FeedPosition,
        rotation::{Change, NotRotated, Rotation, RotationRules},
        time::Timestamp,
    },
    keys::{
        generate::{NotGenerated, generate},
        ring::Jwks,
    },
    store::{
        StoreError,
        ring::{RingChange, SealedRing},
    },
};

/// The pause between two times that the sessions are asked whether they still need a retired
/// refresh key.
const ASK_SESSIONS: Duration = Duration::from_secs(3600);

/// The state from which the scheduled rotation goes on.
#[derive(Debug)]
pub struct Rotating {
    clock: SlowClock,
    /// The instant at which the sessions were last asked, by the clock of uptime.
    asked: Option<Duration>,
    /// Refresh keys that no session needed then, and since when.
    unused_since: HashMap<String, Timestamp>,
}

impl Rotating {
    /// Has done nothing.
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            clock: SlowClock::at(clock.now(), clock.uptime()),
            asked: None,
            unused_since: HashMap::new(),
        }
    }
}

/// The public keys, for a verifier.
#[derive(Clone, Debug)]
pub struct PublicKeys {
    /// The document.
    pub jwks: Jwks,
    /// The time for which it may be used without asking again. Zero if there may be keys that are
    /// not known here.
    pub max_age: Duration,
}

impl From<NotRotated> for AuthorityError {
    fn from(error: NotRotated) -> Self {
        match error {
            NotRotated::TooSoon { .. } | NotRotated::TooMany => Self::KeyNotRotated(error),
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
        let max_age = if self.is_current() { self.settings.jwks_max_age } else { Duration::ZERO };
        PublicKeys { jwks: self.keeper.ring().jwks().clone(), max_age }
    }

    /// The issuer of the tokens that these keys verify.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// Waits until something is to be done about the keys at once.
    pub async fn keys_wanted(&self) {
        self.replica.keys_wanted().await;
    }

    /// The keys as they are stored. In the place of a damaged row, what is known of its key: then a
    /// change puts it right.
    async fn stored_ring(&self) -> Result<SealedRing, AuthorityError> {
        let mut ring = self.store.ring().await?;
        let known = self.keeper.ring();
        for kid in std::mem::take(&mut ring.damaged) {
            tracing::error!(kid, "the row of a key is damaged");
            ring.keys.extend(known.sealed(&kid).cloned());
        }
        Ok(ring)
    }

    /// All keys, those of access tokens first, each purpose's newest first.
    pub async fn list_keys(&self) -> Result<Vec<Key>, AuthorityError> {
        let ring = self.stored_ring().await?;
        let mut keys: Vec<Key> = ring.keys.into_iter().map(|sealed| sealed.key).collect();
        keys.sort_by(|a, b| {
            let order = |key: &Key| key.purpose() != KeyPurpose::AccessToken;
            order(a)
                .cmp(&order(b))
                .then(b.created_at.cmp(&a.created_at))
                .then(a.state().cmp(&b.state()))
        });
        Ok(keys)
    }

    fn rules(&self, purpose: KeyPurpose) -> RotationRules {
        match purpose {
            KeyPurpose::AccessToken => self.settings.signing_rotation,
            KeyPurpose::RefreshToken => self.settings.refresh_rotation,
        }
    }

    /// Lets the next key of a purpose make all tokens from now on, and returns it. Unless it is
    /// forced, every verifier must have had time to learn of it.
    pub async fn rotate_key(
        &self,
        by: &Actor,
        purpose: KeyPurpose,
        force: bool,
    ) -> Result<Key, AuthorityError> {
        // The first one that was to be the next: if others were faster, there is nothing left to
        // do.
        let mut wanted: Option<String> = None;
        loop {
            if !self.is_current() {
                // The clock may be off, and says how long verifiers have known the next key.
                self.confirmed().await?;
            }
            let epoch = self.replica.epoch();
            let ring = self.stored_ring().await?;
            // The next key is known to every replica before it makes tokens.
            self.acknowledged(epoch, ring.position).await?;
            let now = self.clock.now();
            let keys = || ring.keys.iter().map(|sealed| &sealed.key);
            let is_wanted =
                |key: &&Key| key.state() == KeyState::Active && Some(&key.kid) == wanted.as_ref();
            if let Some(key) = keys().find(is_wanted) {
                return Ok(key.clone());
            }
            let rotation = Rotation::new(keys(), self.rules(purpose));
            let change = match rotation.next() {
                Some(next) => {
                    wanted.get_or_insert_with(|| next.kid.clone());
                    rotation.rotate(now, force)?
                }
                None => rotation.due(now)?,
            };
            // The next turn finds out what came of it, be it by this change or another's.
            self.change_ring(Some(by), &ring, change, now).await?;
        }
    }

    /// Makes a key worthless: when this returns, no replica accepts any token of it. If it made
    /// tokens, the next one does now.
    pub async fn revoke_key(&self, by: &Actor, kid: &str) -> Result<Key, AuthorityError> {
        self.end_key(Some(by), kid).await
    }

    /// The same, also by the service itself.
    async fn end_key(&self, by: Option<&Actor>, kid: &str) -> Result<Key, AuthorityError> {
        loop {
            let epoch = self.replica.epoch();
            let ring = self.stored_ring().await?;
            // Whatever comes next was decided by a database that is in charge, and the next key is
            // known to every replica before it makes tokens.
            self.acknowledged(epoch, ring.position).await?;
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
            // The next turn finds out what came of it, be it by this change or another's, and waits
            // until all know.
            self.change_ring(by, &ring, change, now).await?;
        }
    }

    /// Carries out what the schedule asks for.
    pub async fn rotate_what_is_due(&self) -> Result<(), AuthorityError> {
        // Held throughout: two at once would do each other's work.
        let mut rotating = self.rotating.lock().await;
        let now = rotating.clock.advance(self.clock.now(), self.clock.uptime());
        if !self.is_current() {
            return Ok(());
        }
        let lost_revocations = self.keeper.ring().lost_revocations().to_vec();
        for kid in lost_revocations {
            self.end_key(None, &kid).await?;
        }
        let uptime = self.clock.uptime();
        if rotating.asked.is_none_or(|asked| uptime.saturating_sub(asked) >= ASK_SESSIONS) {
            rotating.asked = Some(uptime);
            self.find_unused_refresh_keys(&mut rotating.unused_since, now).await?;
        }
        let refresh_rules = self.rules(KeyPurpose::RefreshToken);
        rotating.unused_since.retain(|kid, _| self.keeper.ring().sealed(kid).is_some());
        let is_over = |since: &Timestamp| now >= since.plus(refresh_rules.kept_for);
        let unneeded = rotating
            .unused_since
            .iter()
            .filter(|(_, since)| is_over(since))
            .map(|(kid, _)| kid.clone())
            .collect();
        let access = self.carry_out(KeyPurpose::AccessToken, now, vec![]).await;
        let refresh = self.carry_out(KeyPurpose::RefreshToken, now, unneeded).await;
        access.and(refresh)
    }

    /// Carries out what is due for a purpose, and drops these keys.
    async fn carry_out(
        &self,
        purpose: KeyPurpose,
        now: Timestamp,
        drop: Vec<String>,
    ) -> Result<(), AuthorityError> {
        let is_due =
            !Rotation::new(self.keeper.ring().keys(), self.rules(purpose)).due(now)?.is_empty();
        if !is_due && drop.is_empty() {
            return Ok(());
        }
        let ring = self.stored_ring().await?;
        let mut change =
            Rotation::new(ring.keys.iter().map(|sealed| &sealed.key), self.rules(purpose))
                .due(now)?;
        change.drop.extend(drop);
        if change.is_empty() {
            return Ok(());
        }
        // If others were faster, there is nothing left to do.
        let epoch = self.replica.epoch();
        if let Some(position) = self.change_ring(None, &ring, change, now).await? {
            // Until all know of it, this replica too.
            self.acknowledged(epoch, position).await?;
        }
        Ok(())
    }

    /// Notes which retired refresh keys no session has a token of, and since when. It takes the
    /// longest grace until nobody may come again with the token before, which can be of such a key
    /// too.
    async fn find_unused_refresh_keys(
        &self,
        unused_since: &mut HashMap<String, Timestamp>,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let ring = self.stored_ring().await?;
        let rotation = Rotation::new(
            ring.keys.iter().map(|sealed| &sealed.key),
            self.rules(KeyPurpose::RefreshToken),
        );
        for key in rotation.retired(now) {
            let Ok(id) = key.kid.parse::<RefreshKeyId>() else { continue };
            match self.store.is_refresh_key_held(id, now).await? {
                true => unused_since.remove(&key.kid),
                false => Some(*unused_since.entry(key.kid.clone()).or_insert(now)),
            };
        }
        Ok(())
    }

    /// Makes a change to a ring, if it still is as it was. Returns its position.
    async fn change_ring(
        &self,
        by: Option<&Actor>,
        ring: &SealedRing,
        change: Change,
        now: Timestamp,
    ) -> Result<Option<FeedPosition>, AuthorityError> {
        let mut put: Vec<SealedKey> = vec![];
        for key in change.put {
            let there = ring
                .keys
                .iter()
                .find(|there| there.key.kid == key.kid)
                .ok_or(AuthorityError::Internal)?;
            put.push(SealedKey { key, sealed: there.sealed.clone() });
        }
        if let Some(algorithm) = change.publish {
            let (keeper, rng) = (Arc::clone(&self.keeper), Arc::clone(&self.rng));
            let made = tokio::task::spawn_blocking(move || {
                generate(&keeper.masters().current, &*rng, algorithm, now)
            });
            put.push(made.await.map_err(|_| AuthorityError::Internal)??);
        }
        let kept = |key: &&SealedKey| ring.keys.iter().any(|there| there.key == key.key);
        let keys: Vec<Key> =
            put.iter().filter(|key| !kept(key)).map(|sealed| sealed.key.clone()).collect();
        let dropped = change.drop.clone();
        let (by, peer) = by.map_or((Who::Service, None), |actor| (actor.into(), actor.peer));
        let change = RingChange { version: ring.version, put, drop: change.drop };
        let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
        // This goes on if the caller goes away: a change that was made is recorded.
        let changing = tokio::spawn(async move {
            let position = store.change_ring(change).await?;
            if position.is_some() {
                for key in &keys {
                    log_change(key);
                    audit.record_key(
                        AuditAction::of_key(key.state()),
                        &key.kid,
                        now,
                        by.clone(),
                        peer,
                    );
                }
                for kid in &dropped {
                    tracing::info!(kid, "a key has been dropped");
                    audit.record_key(AuditAction::KeyDropped, kid, now, by.clone(), peer);
                }
            }
            Ok::<_, StoreError>(position)
        });
        Ok(changing.await.map_err(|_| AuthorityError::Internal)??)
    }
}

fn log_change(key: &Key) {
    let (kid, purpose, state) = (&*key.kid, key.purpose().as_str(), key.state().as_str());
    match key.state() {
        KeyState::Revoked => tracing::warn!(kid, purpose, "a key has been revoked"),
        _ => tracing::info!(kid, purpose, algorithm = %key.algorithm, state, "a key has changed"),
    }
}
