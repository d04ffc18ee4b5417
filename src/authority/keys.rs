//! The use cases for keys: publishing, listing, rotation by schedule or by hand, and revocation.
//! [`crate::domain::rotation`] has the rules. A change of the key ring is a compare-and-set: the
//! database accepts the change only if the ring is still in the state for which the change was
//! computed, so concurrent changes by two replicas cannot both succeed. A key issues no tokens
//! before every replica knows the key.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Authority, error::AuthorityError, slow_clock::SlowClock};
use crate::{
    clock::Clock,
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        key::{Key, KeyPurpose, KeyState, RefreshKeyId, SealedKey},
        revocation::FeedPosition,
        rotation::{Change, NotRotated, Rotation, RotationRules},
        time::Timestamp,
        who::Who,
    },
    instruments::times::in_own_task,
    keys::{
        generate::{NotGenerated, generate},
        ring::Jwks,
    },
    store::{
        StoreError,
        ring::{RingChange, SealedRing},
    },
};

/// The time between two checks for retired refresh keys that no session needs any more.
const UNUSED_KEYS_INTERVAL: Duration = Duration::from_secs(3600);

/// The state that the scheduled rotation keeps between two runs.
#[derive(Debug)]
pub struct Rotating {
    clock: SlowClock,
    /// The uptime at the last check for unused refresh keys.
    checked_at: Option<Duration>,
    /// The refresh keys that no session needs, each with the instant at which it was first found to
    /// be unused.
    unused_since: HashMap<String, Timestamp>,
}

impl Rotating {
    /// Creates the state before the first run.
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            clock: SlowClock::at(clock.now(), clock.uptime()),
            checked_at: None,
            unused_since: HashMap::new(),
        }
    }
}

/// The public keys for verifiers.
#[derive(Clone, Debug)]
pub struct PublicKeys {
    /// The JWK set.
    pub jwks: Jwks,
    /// The time for which a verifier may use the JWK set before it fetches the set again. It is
    /// zero if there may be keys that this replica does not know.
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
        tracing::error!(%error, "a key could not be generated");
        Self::Internal
    }
}

impl Authority {
    /// Returns the public keys that verify access tokens.
    pub fn public_keys(&self) -> PublicKeys {
        // The lease must be checked before the ring is read. A key that is added in between may be
        // missing here. That does no harm, because a key is published long before it is used.
        let jwks_max_age = self.settings.load().jwks_max_age;
        let max_age = if self.is_current() { jwks_max_age } else { Duration::ZERO };
        PublicKeys { jwks: self.keeper.ring().jwks().clone(), max_age }
    }

    /// Returns the issuer of access tokens.
    pub fn issuer(&self) -> String {
        self.settings.load().issuer.clone()
    }

    /// Returns the keys as they are stored. If the row of a key is damaged, the copy of the key in
    /// memory is returned instead, so that the next change of the ring repairs the row.
    async fn stored_ring(&self) -> Result<SealedRing, AuthorityError> {
        let mut ring = self.store.ring().await?;
        let known = self.keeper.ring();
        for kid in std::mem::take(&mut ring.damaged) {
            tracing::error!(kid, "the row of a key is damaged");
            ring.keys.extend(known.sealed(&kid).cloned());
        }
        Ok(ring)
    }

    /// Returns all keys. The keys of access tokens come first, and the keys of each purpose are
    /// sorted from the newest to the oldest.
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

    /// Returns the keys that this replica knows.
    pub fn known_keys(&self) -> Vec<Key> {
        self.keeper.ring().keys().cloned().collect()
    }

    /// Returns the time at which the active key of a purpose is to be replaced; none if there is no
    /// active key, or if keys are not rotated.
    pub fn next_rotation(&self, purpose: KeyPurpose) -> Option<Timestamp> {
        Rotation::new(self.keeper.ring().keys(), self.rules(purpose)).due_at()
    }

    fn rules(&self, purpose: KeyPurpose) -> RotationRules {
        let settings = self.settings.load();
        match purpose {
            KeyPurpose::AccessToken => settings.signing_rotation,
            KeyPurpose::RefreshToken => settings.refresh_rotation,
        }
    }

    /// Returns the interval at which the keys are checked for a change that is due: a tenth of the
    /// shortest span in the schedule, within limits.
    pub fn key_check_interval(&self) -> Duration {
        let publish_ahead = self.rules(KeyPurpose::AccessToken).publish_ahead;
        (publish_ahead / 10).clamp(Duration::from_millis(100), Duration::from_secs(30))
    }

    /// Activates the next key of a purpose, and returns it. Fails if some verifier may not have had
    /// time to fetch the key, unless `force` is true.
    pub async fn rotate_key(
        &self,
        by: &Actor,
        purpose: KeyPurpose,
        force: bool,
    ) -> Result<Key, AuthorityError> {
        // `wanted` is the identifier of the key that was next in the first iteration. If another
        // replica has activated that key meanwhile, there is nothing left to do.
        let mut wanted: Option<String> = None;
        loop {
            if !self.is_current() {
                // Without a lease, the clock may be wrong, and the clock determines how long
                // verifiers have known the next key.
                self.wait_until_confirmed().await?;
            }
            let epoch = self.replica.epoch();
            let ring = self.stored_ring().await?;
            // Every replica must know the next key before that key issues tokens.
            self.wait_until_acknowledged(epoch, ring.position).await?;
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
            // The next iteration sees whether the key has become active, by this change or by a
            // change that another replica made.
            self.change_ring(Some(by), &ring, change, now).await?;
        }
    }

    /// Revokes a key. When this returns, no replica accepts its tokens any more. If the key was
    /// active, the next one has taken its place.
    pub async fn revoke_key(&self, by: &Actor, kid: &str) -> Result<Key, AuthorityError> {
        self.end_key(Some(by), kid).await
    }

    /// Revokes a key on behalf of a caller, or of the service itself if `by` is `None`.
    async fn end_key(&self, by: Option<&Actor>, kid: &str) -> Result<Key, AuthorityError> {
        loop {
            let epoch = self.replica.epoch();
            let ring = self.stored_ring().await?;
            // The wait ensures that the ring was read from the current primary, and that every
            // replica knows the next key before that key issues tokens.
            self.wait_until_acknowledged(epoch, ring.position).await?;
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
            // The next iteration sees whether the key has been revoked, by this change or by a
            // change that another replica made. It also waits until all replicas know about the
            // revocation, before this function returns.
            self.change_ring(by, &ring, change, now).await?;
        }
    }

    /// Carries out the changes of keys that are due by the schedule.
    pub async fn rotate_what_is_due(&self) -> Result<(), AuthorityError> {
        // The lock is held throughout, because two concurrent runs would do the same work twice.
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
        if rotating
            .checked_at
            .is_none_or(|last| uptime.saturating_sub(last) >= UNUSED_KEYS_INTERVAL)
        {
            rotating.checked_at = Some(uptime);
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

    /// Carries out the change that is due for a purpose, and deletes the keys in `drop`.
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
        // If another replica has changed the ring meanwhile, the change is not made.
        let epoch = self.replica.epoch();
        if let Some(position) = self.change_ring(None, &ring, change, now).await? {
            // Every replica, including this one, must know the change before this returns.
            self.wait_until_acknowledged(epoch, position).await?;
        }
        Ok(())
    }

    /// Notes the retired refresh keys under which no current refresh token of a live session was
    /// issued, and the instant at which each of them was first found to be unused. These keys must
    /// be kept for a while, because during the grace a client may still present the previous
    /// refresh token, which may have been issued under such a key.
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
            match self.store.is_refresh_key_in_use(id, now).await? {
                true => unused_since.remove(&key.kid),
                false => Some(*unused_since.entry(key.kid.clone()).or_insert(now)),
            };
        }
        Ok(())
    }

    /// Changes the ring, unless the ring was changed since it was read. Returns the position of the
    /// change in the feed, or `None` if the change was not made.
    async fn change_ring(
        &self,
        by: Option<&Actor>,
        ring: &SealedRing,
        change: Change,
        now: Timestamp,
    ) -> Result<Option<FeedPosition>, AuthorityError> {
        let mut put: Vec<SealedKey> = vec![];
        for key in change.put {
            let stored = ring
                .keys
                .iter()
                .find(|stored| stored.key.kid == key.kid)
                .ok_or(AuthorityError::Internal)?;
            put.push(SealedKey { key, sealed: stored.sealed.clone() });
        }
        if let Some(algorithm) = change.publish {
            let (keeper, rng) = (Arc::clone(&self.keeper), Arc::clone(&self.rng));
            let made = tokio::task::spawn_blocking(move || {
                generate(&keeper.masters().current, &*rng, algorithm, now)
            });
            put.push(made.await.map_err(|_| AuthorityError::Internal)??);
        }
        let is_unchanged = |key: &&SealedKey| ring.keys.iter().any(|stored| stored.key == key.key);
        let keys: Vec<Key> =
            put.iter().filter(|key| !is_unchanged(key)).map(|sealed| sealed.key.clone()).collect();
        let dropped = change.drop.clone();
        let by = by.cloned();
        let record = move |action, kid: &str| {
            let record = match &by {
                Some(actor) => AuditRecord::by(actor, action, now),
                None => AuditRecord::new(action, now, Who::Service, None),
            };
            record.about_key(kid)
        };
        let change = RingChange { version: ring.version, put, drop: change.drop };
        let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
        // The change is made in a task of its own, so that it is recorded even if the caller
        // disconnects.
        let changing = in_own_task(async move {
            let position = store.change_ring(change).await?;
            if position.is_some() {
                for key in &keys {
                    log_change(key);
                    audit.record(record(AuditAction::of_key(key.state()), &key.kid));
                }
                for kid in &dropped {
                    tracing::info!(kid, "a key has been dropped");
                    audit.record(record(AuditAction::KeyDropped, kid));
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
