//! The schedule by which keys are published, activated, withdrawn and dropped. For each purpose,
//! one key is active, and all verifiers know the next key long before it becomes active.

use std::time::Duration;

use super::{
    key::{Key, KeyAlgorithm, KeyPurpose, KeyState, NoSuchStep},
    time::{Timestamp, brief},
};

/// The largest number of keys of one purpose. More would make the JWK set, which every verifier
/// fetches, needlessly long.
pub const MOST_KEYS: usize = 64;

/// The rules for the rotation of the keys of one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationRules {
    /// The algorithm of new keys.
    pub algorithm: KeyAlgorithm,
    /// The time for which a key is active; zero for no limit.
    pub interval: Duration,
    /// The time for which a key must be known to all verifiers before it may become active.
    pub publish_ahead: Duration,
    /// The time after which every replica either knows a new key or has stopped answering.
    pub spreads_within: Duration,
    /// The time for which a key is kept after it was retired or revoked. All access tokens that
    /// were issued under it have expired by then, by every clock.
    pub kept_for: Duration,
}

/// The reason why a key is not rotated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRotated {
    /// The next key is not yet known to every verifier.
    #[error(
        "the next key, {kid}, is not known to every verifier yet: wait {}, or force it",
        brief(*wait)
    )]
    TooSoon {
        /// The next key.
        kid: String,
        /// The time to wait.
        wait: Duration,
    },
    /// There is no next key.
    #[error("there is no next key yet")]
    NoNext,
    /// There are [`MOST_KEYS`] keys already.
    #[error(
        "there are {MOST_KEYS} keys already, which is as many as there may be: wait until old \
         ones are dropped"
    )]
    TooMany,
    /// A key cannot change to the requested state.
    #[error(transparent)]
    Step(#[from] NoSuchStep),
}

/// A change of the keys of one purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Existing keys in their new states.
    pub put: Vec<Key>,
    /// The algorithm of a new pending key, if one is to be generated.
    pub publish: Option<KeyAlgorithm>,
    /// The identifiers of keys to be deleted.
    pub drop: Vec<String>,
}

impl Change {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The revocation of several keys of one purpose at once, and the keys that have to be generated
/// for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MassRevocation {
    /// The keys in their revoked state.
    pub revoked: Vec<Key>,
    /// True if the revocation leaves no active key.
    pub lacks_active: bool,
    /// True if the revocation leaves no pending key.
    pub lacks_pending: bool,
}

/// The keys of one purpose, and the rules for their rotation.
#[derive(Clone, Debug)]
pub struct Rotation<'a> {
    keys: Vec<&'a Key>,
    rules: RotationRules,
}

impl<'a> Rotation<'a> {
    /// Selects the keys that have the purpose of the rules.
    pub fn new(keys: impl IntoIterator<Item = &'a Key>, rules: RotationRules) -> Self {
        let mut keys: Vec<_> =
            keys.into_iter().filter(|key| key.purpose() == rules.algorithm.purpose()).collect();
        keys.sort_by_key(|key| key.created_at);
        Self { keys, rules }
    }

    fn newest(&self, state: KeyState) -> Option<&'a Key> {
        self.keys.iter().rev().find(|key| key.state() == state).copied()
    }

    /// Returns the active key.
    pub fn active(&self) -> Option<&'a Key> {
        self.newest(KeyState::Active)
    }

    /// Returns the pending key, which becomes active next.
    pub fn next(&self) -> Option<&'a Key> {
        self.newest(KeyState::Pending)
    }

    /// Returns the instant at which a pending key may become active.
    pub fn ready_at(&self, pending: &Key) -> Timestamp {
        pending.created_at.plus(self.rules.publish_ahead).plus(self.rules.spreads_within)
    }

    /// Returns the change that is due now by the schedule.
    pub fn due(&self, now: Timestamp) -> Result<Change, NotRotated> {
        let drop = self.outlived(now);
        let withdraw = |next: &Key| Change { drop: vec![next.kid.clone()], ..self.publish() };
        let change = match (self.active(), self.next()) {
            (_, None) => self.publish(),
            // A clock that was ahead determined `created_at`, so this key would become ready too
            // late.
            (_, Some(next)) if self.is_of_the_future(next.created_at, now) => withdraw(next),
            // The configured algorithm has changed, and this key has issued nothing yet, so the key
            // is replaced, but not before it is ready. Otherwise, during a rolling restart,
            // replicas with the old and the new configuration would replace each other's keys again
            // and again.
            (_, Some(next))
                if next.algorithm != self.rules.algorithm && now >= self.ready_at(next) =>
            {
                withdraw(next)
            }
            (None, Some(_)) => self.replace(now)?,
            (Some(active), Some(next))
                if self.is_due(active, now) && now >= self.ready_at(next) =>
            {
                self.replace(now)?
            }
            _ => Change::default(),
        };
        Ok(Change { drop: [change.drop, drop].concat(), ..change })
    }

    /// Returns the time at which the active key is to be replaced; none if there is no active key,
    /// or if keys are not replaced by the schedule.
    pub fn due_at(&self) -> Option<Timestamp> {
        let activated_at = self.active()?.activated_at?;
        (!self.rules.interval.is_zero()).then(|| activated_at.plus(self.rules.interval))
    }

    fn is_due(&self, active: &Key, now: Timestamp) -> bool {
        self.due_at().is_some_and(|at| now >= at)
            || !self.rules.interval.is_zero()
                && active.activated_at.is_some_and(|at| self.is_of_the_future(at, now))
    }

    fn is_of_the_future(&self, at: Timestamp, now: Timestamp) -> bool {
        at > now.plus(self.rules.spreads_within)
    }

    /// Returns the change that makes the next key the active one now. `force` makes the key active
    /// even if some verifiers may not know it yet.
    pub fn rotate(&self, now: Timestamp, force: bool) -> Result<Change, NotRotated> {
        let next = self.next().ok_or(NotRotated::NoNext)?;
        let ready_at = self.ready_at(next);
        if now < ready_at && !force {
            // People read the message, so the time is rounded up to whole seconds.
            let wait = Duration::from_secs(
                ready_at.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
            );
            return Err(NotRotated::TooSoon { kid: next.kid.clone(), wait });
        }
        // The limit is checked only for rotation by hand. The schedule is not fast enough to reach
        // the limit, and a revocation must not be refused in an emergency.
        if self.keys.len() >= MOST_KEYS {
            return Err(NotRotated::TooMany);
        }
        self.replace(now)
    }

    /// Returns the change that revokes a key. If the key is active, the next one takes its place.
    pub fn revoke(&self, key: &Key, now: Timestamp) -> Result<Change, NotRotated> {
        let revoked = key.revoke(now)?;
        Ok(match key.state() {
            KeyState::Active => {
                let next = self.next().ok_or(NotRotated::NoNext)?.activate(now)?;
                // The revoked key comes first, so that there are never two active keys.
                Change { put: vec![revoked, next], ..self.publish() }
            }
            KeyState::Pending => Change { put: vec![revoked], ..self.publish() },
            KeyState::Retired | KeyState::Revoked => {
                Change { put: vec![revoked], ..Change::default() }
            }
        })
    }

    /// Revokes all keys that match, including pending keys. If an older copy of the database was
    /// restored, a key that is pending in the copy may have issued tokens since the copy was made.
    pub fn revoke_all(
        &self,
        matches: impl Fn(&Key) -> bool,
        now: Timestamp,
    ) -> Result<MassRevocation, NotRotated> {
        let usable = |key: &&&Key| key.state() != KeyState::Revoked;
        let (revoked, kept): (Vec<&Key>, Vec<&Key>) =
            self.keys.iter().filter(usable).partition(|key| matches(key));
        let lacks = |state| !revoked.is_empty() && kept.iter().all(|key| key.state() != state);
        let (lacks_active, lacks_pending) = (lacks(KeyState::Active), lacks(KeyState::Pending));
        let revoked = revoked.into_iter().map(|key| key.revoke(now)).collect::<Result<_, _>>()?;
        Ok(MassRevocation { revoked, lacks_active, lacks_pending })
    }

    fn publish(&self) -> Change {
        Change { publish: Some(self.rules.algorithm), ..Change::default() }
    }

    fn replace(&self, now: Timestamp) -> Result<Change, NotRotated> {
        let mut put = vec![];
        for active in self.keys.iter().filter(|key| key.state() == KeyState::Active) {
            put.push(active.retire(now)?);
        }
        put.push(self.next().ok_or(NotRotated::NoNext)?.activate(now)?);
        Ok(Change { put, ..self.publish() })
    }

    /// Returns the keys whose tokens have all expired. Retired refresh keys are not among them,
    /// because only the sessions show whether those keys are still needed.
    fn outlived(&self, now: Timestamp) -> Vec<String> {
        let is_over = |at: Timestamp| now >= at.plus(self.rules.kept_for);
        let is_outlived = |key: &Key| match (key.state(), key.purpose()) {
            (KeyState::Pending | KeyState::Active, _)
            | (KeyState::Retired, KeyPurpose::RefreshToken) => false,
            (KeyState::Retired, KeyPurpose::AccessToken) => key.retired_at.is_some_and(is_over),
            (KeyState::Revoked, _) => key.revoked_at.is_some_and(is_over),
        };
        self.keys.iter().filter(|key| is_outlived(key)).map(|key| key.kid.clone()).collect()
    }

    /// Returns the refresh keys that were retired at least `kept_for` ago. The caller must find out
    /// from the sessions whether these keys are still needed.
    pub fn retired(&self, now: Timestamp) -> impl Iterator<Item = &'a Key> {
        let is_over = move |at: Timestamp| now >= at.plus(self.rules.kept_for);
        let retired = self.keys.iter().filter(|key| key.state() == KeyState::Retired).copied();
        retired.filter(move |key| {
            key.purpose() == KeyPurpose::RefreshToken && key.retired_at.is_some_and(is_over)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const RULES: RotationRules = RotationRules {
        algorithm: KeyAlgorithm::EdDsa,
        interval: Duration::from_secs(30 * 86_400),
        publish_ahead: HOUR,
        spreads_within: Duration::from_secs(3),
        kept_for: Duration::from_secs(7200),
    };

    fn key(name: &str, at: Timestamp) -> Key {
        Key::new(name.to_owned(), RULES.algorithm, at)
    }

    /// Carries out a change, and generates the key that it asks for.
    fn carry_out(keys: &mut Vec<Key>, change: Change, now: Timestamp) {
        keys.retain(|key| !change.drop.contains(&key.kid));
        for put in change.put {
            let index = keys.iter().position(|key| key.kid == put.kid).unwrap();
            keys[index] = put;
        }
        if let Some(algorithm) = change.publish {
            keys.push(Key::new(format!("{} {}", now.micros(), keys.len()), algorithm, now));
        }
    }

    fn ring() -> Vec<Key> {
        vec![key("active", NOW).activate(NOW).unwrap(), key("next", NOW)]
    }

    #[test]
    fn the_active_key_is_replaced_after_its_interval_once_verifiers_know_the_next_key() {
        let keys = ring();
        let due_at = NOW.plus(RULES.interval);
        let rotation = Rotation::new(&keys, RULES);
        assert!(rotation.due(due_at.minus(Duration::from_micros(1))).unwrap().is_empty());
        let change = rotation.due(due_at).unwrap();
        assert_eq!(change.publish, Some(KeyAlgorithm::EdDsa));
        assert_eq!(
            change.put,
            [keys[0].retire(due_at).unwrap(), keys[1].activate(due_at).unwrap()]
        );

        let late = Key { created_at: due_at, ..keys[1].clone() };
        let keys = [keys[0].clone(), late.clone()];
        let rotation = Rotation::new(&keys, RULES);
        let ready_at = due_at.plus(RULES.publish_ahead).plus(RULES.spreads_within);
        assert!(rotation.due(ready_at.minus(Duration::from_micros(1))).unwrap().is_empty());
        assert_eq!(rotation.due(ready_at).unwrap().put.len(), 2);
        assert_eq!(
            rotation.rotate(due_at, false),
            Err(NotRotated::TooSoon {
                kid: late.kid,
                wait: RULES.publish_ahead + RULES.spreads_within
            })
        );
        assert_eq!(rotation.rotate(due_at, true).unwrap().put.len(), 2);
    }

    #[test]
    fn a_mass_revocation_reports_which_keys_have_to_be_generated() {
        let mut keys = ring();
        keys.push(key("retired", NOW).activate(NOW).unwrap().retire(NOW).unwrap());
        keys.push(key("revoked", NOW).revoke(NOW).unwrap());
        let rotation = Rotation::new(&keys, RULES);
        for (names, lacks_active, lacks_pending) in [
            (&["active", "next", "retired", "revoked"][..], true, true),
            (&["active"], true, false),
            (&["next", "retired"], false, true),
            (&["revoked", "unknown"], false, false),
        ] {
            let all = rotation.revoke_all(|key| names.contains(&&*key.kid), NOW).unwrap();
            assert_eq!(
                (all.lacks_active, all.lacks_pending),
                (lacks_active, lacks_pending),
                "{names:?}"
            );
            let expected =
                names.iter().filter(|name| ["active", "next", "retired"].contains(name)).count();
            assert_eq!(all.revoked.len(), expected, "{names:?}");
            assert!(all.revoked.iter().all(|key| key.state() == KeyState::Revoked));
        }
    }

    #[test]
    fn without_an_interval_the_schedule_replaces_no_key() {
        let keys = ring();
        let rotation = Rotation::new(&keys, RotationRules { interval: Duration::ZERO, ..RULES });
        assert!(rotation.due(NOW.plus(RULES.interval * 100)).unwrap().is_empty());
        assert!(
            !rotation.rotate(NOW.plus(HOUR * 2), false).unwrap().is_empty(),
            "rotation by hand still works"
        );
    }

    #[test]
    fn a_new_algorithm_takes_effect_with_the_next_key() {
        let mut keys = ring();
        let rules = RotationRules { algorithm: KeyAlgorithm::Rs256, ..RULES };
        assert!(
            Rotation::new(&keys, rules).due(NOW).unwrap().is_empty(),
            "replicas may be configured differently for a while"
        );
        let later = NOW.plus(HOUR * 2);
        let change = Rotation::new(&keys, rules).due(later).unwrap();
        assert_eq!(
            change,
            Change {
                put: vec![],
                publish: Some(KeyAlgorithm::Rs256),
                drop: vec!["next".to_owned()]
            }
        );
        carry_out(&mut keys, change, later);
        let due_at = NOW.plus(RULES.interval);
        let change = Rotation::new(&keys, rules).due(due_at).unwrap();
        carry_out(&mut keys, change, due_at);
        assert_eq!(Rotation::new(&keys, rules).active().unwrap().algorithm, KeyAlgorithm::Rs256);
        assert_eq!(keys[0].state(), KeyState::Retired, "its tokens are still accepted");
    }

    #[test]
    fn a_key_is_dropped_once_its_last_token_has_expired() {
        let retired = key("retired", NOW).activate(NOW).unwrap().retire(NOW).unwrap();
        let revoked = key("revoked", NOW).revoke(NOW).unwrap();
        let over = NOW.plus(RULES.kept_for);
        for old in [retired, revoked] {
            let mut keys = ring();
            keys.push(old.clone());
            assert_eq!(
                Rotation::new(&keys, RULES).outlived(over.minus(Duration::from_micros(1))),
                Vec::<String>::new()
            );
            assert_eq!(Rotation::new(&keys, RULES).due(over).unwrap().drop, [old.kid]);
        }
        let refresh = RotationRules { algorithm: KeyAlgorithm::Hs256, ..RULES };
        let retired = Key { algorithm: KeyAlgorithm::Hs256, ..key("refresh", NOW) };
        let retired = [retired.activate(NOW).unwrap().retire(NOW).unwrap()];
        let rotation = Rotation::new(&retired, refresh);
        assert_eq!(
            rotation.outlived(over.plus(HOUR)),
            Vec::<String>::new(),
            "sessions may still have refresh tokens of it"
        );
        assert_eq!(rotation.retired(over).count(), 1);
        assert_eq!(rotation.retired(over.minus(Duration::from_micros(1))).count(), 0);
    }

    #[test]
    fn the_next_key_takes_the_place_of_a_revoked_one() {
        let mut keys = ring();
        let change = Rotation::new(&keys, RULES).revoke(&keys[0], NOW).unwrap();
        carry_out(&mut keys, change, NOW);
        let states: Vec<_> = keys.iter().map(Key::state).collect();
        assert_eq!(states, [KeyState::Revoked, KeyState::Active, KeyState::Pending]);
        let change = Rotation::new(&keys, RULES).revoke(&keys[2], NOW).unwrap();
        carry_out(&mut keys, change, NOW);
        assert_eq!(Rotation::new(&keys, RULES).active().unwrap().kid, "next");
        assert!(Rotation::new(&keys, RULES).next().is_some());
        assert!(matches!(
            Rotation::new(&keys, RULES).revoke(&keys[0], NOW),
            Err(NotRotated::Step(_))
        ));
        let alone = [keys[1].clone()];
        assert_eq!(Rotation::new(&alone, RULES).revoke(&alone[0], NOW), Err(NotRotated::NoNext));
    }

    #[test]
    fn rotation_by_hand_stops_at_the_largest_number_of_keys() {
        let mut keys = ring();
        let mut now = NOW;
        while let Ok(change) = Rotation::new(&keys, RULES).rotate(now, true) {
            now = now.plus(Duration::from_secs(1));
            carry_out(&mut keys, change, now);
        }
        assert_eq!(keys.len(), MOST_KEYS);
        assert_eq!(Rotation::new(&keys, RULES).rotate(now, true), Err(NotRotated::TooMany));
        let rotation = Rotation::new(&keys, RULES);
        assert!(
            rotation.revoke(rotation.active().unwrap(), now).is_ok(),
            "a revocation is not refused"
        );
        let later = now.plus(RULES.interval);
        let change = rotation.due(later).unwrap();
        assert!(
            change.put.len() == 2 && change.drop.len() > 50,
            "the schedule goes on: {change:?}"
        );
    }

    #[test]
    fn keys_stored_by_a_clock_that_was_ahead_are_replaced() {
        let ahead = NOW.plus(HOUR * 24 * 365);
        let keys = [key("active", ahead).activate(ahead).unwrap(), key("next", ahead)];
        let change = Rotation::new(&keys, RULES).due(NOW).unwrap();
        assert_eq!(
            (change.drop, change.publish),
            (vec!["next".to_owned()], Some(KeyAlgorithm::EdDsa))
        );
        let keys = [keys[0].clone(), key("fresh", NOW)];
        let ready_at = NOW.plus(RULES.publish_ahead).plus(RULES.spreads_within);
        assert!(
            Rotation::new(&keys, RULES)
                .due(ready_at.minus(Duration::from_micros(1)))
                .unwrap()
                .is_empty()
        );
        assert_eq!(Rotation::new(&keys, RULES).due(ready_at).unwrap().put.len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Tick,
        Rotate(bool),
        Revoke(usize),
        Algorithm(KeyAlgorithm),
    }

    fn event() -> impl Strategy<Value = (u64, Event)> {
        let algorithm = prop::sample::select(KeyAlgorithm::SIGNING.to_vec());
        let event = prop_oneof![
            4 => Just(Event::Tick),
            1 => any::<bool>().prop_map(Event::Rotate),
            1 => any::<usize>().prop_map(Event::Revoke),
            1 => algorithm.prop_map(Event::Algorithm),
        ];
        (0..RULES.interval.as_secs(), event)
    }

    proptest! {
        /// For every sequence of events, there is one active key, and all verifiers knew it before,
        /// unless the rotation was forced or caused by a revocation.
        #[test]
        fn exactly_one_key_is_active_and_verifiers_knew_it_before(
            events in prop::collection::vec(event(), 1..60),
        ) {
            let mut rules = RULES;
            let mut keys = ring();
            let mut now = NOW;
            for (passed, event) in events {
                now = now.plus(Duration::from_secs(passed));
                let before = keys.clone();
                let rotation = Rotation::new(&before, rules);
                let (change, in_order) = match event {
                    Event::Tick => (rotation.due(now), true),
                    Event::Rotate(force) => (rotation.rotate(now, force), !force),
                    Event::Revoke(n) => (rotation.revoke(&before[n % before.len()], now), false),
                    Event::Algorithm(algorithm) => {
                        rules.algorithm = algorithm;
                        continue;
                    }
                };
                if let Ok(change) = change {
                    carry_out(&mut keys, change, now);
                }
                let are = |state| keys.iter().filter(move |key| key.state() == state);
                let active: Vec<_> = are(KeyState::Active).collect();
                prop_assert_eq!(active.len(), 1);
                let activated_now = active[0].activated_at == Some(now) && now > NOW;
                if in_order && activated_now {
                    let known_for = now.since(active[0].created_at);
                    prop_assert!(known_for >= rules.publish_ahead + rules.spreads_within);
                }
                prop_assert!(are(KeyState::Pending).count() <= 1);
                for key in &before {
                    let after = keys.iter().find(|after| after.kid == key.kid);
                    let is_forward = after.is_none_or(|after| after.state() >= key.state());
                    prop_assert!(is_forward, "a key returned to an earlier state");
                }
            }
        }
    }
}
