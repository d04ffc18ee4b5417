//! Checks the stored keys: whether the master key opens them, and when they rotate next.

use std::time::Duration;

use super::finding::Finding;
use crate::{
    app::keys::{Masters, open_ring},
    config::Config,
    domain::{
        key::{Key, KeyPurpose, KeyState},
        rotation::Rotation,
        time::Timestamp,
    },
    keys::ring::KeyRing,
    net::tls::format_rfc3339,
    store::{StoreError, ring::SealedRing},
};

const CHECK: &str = "keys";
/// The time by which a rotation may be late before there is a warning. A running service rotates
/// within seconds.
const LATE: Duration = Duration::from_secs(3600);

/// Checks the keys of the database.
pub fn check(
    config: &Config,
    masters: Masters,
    ring: Result<SealedRing, StoreError>,
    now: Timestamp,
) -> Vec<Finding> {
    let ring = match ring {
        Ok(ring) => ring,
        Err(error) => {
            return vec![Finding::error(
                CHECK,
                &format!("the keys cannot be read: {error}"),
                "restore the rows of signing_keys from a backup, or give this user the right to \
                 read them",
            )];
        }
    };
    match open_ring(config, masters, ring) {
        Ok(None) => vec![Finding::ok(
            CHECK,
            "there are no keys yet: the service makes them at its first start",
        )],
        Ok(Some(ring)) => {
            vec![
                describe(&ring),
                check_rotation(config, &ring.keys().cloned().collect::<Vec<_>>(), now),
            ]
        }
        Err(error) => vec![Finding::error(
            CHECK,
            &error,
            "restore the master key that belongs to this database, or the keys from a backup",
        )],
    }
}

/// Describes a ring, in which all keys could be opened and there is an active one for each purpose.
fn describe(ring: &KeyRing) -> Finding {
    let active = KeyPurpose::ALL.map(|purpose| {
        let mut keys = ring.keys();
        let key = keys.find(|key| key.purpose() == purpose && key.state() == KeyState::Active);
        let kid = key.map(|key| key.kid.as_str()).unwrap_or_default();
        format!("{kid} ({})", purpose.as_str())
    });
    Finding::ok(
        CHECK,
        format!(
            "the master key opens all {}; active are {}",
            ring.keys().count(),
            active.join(" and ")
        ),
    )
}

/// Checks when the active keys are to be replaced.
fn check_rotation(config: &Config, keys: &[Key], now: Timestamp) -> Finding {
    const CHECK: &str = "key_rotation";
    let rules = [config.keys.signing, config.keys.refresh];
    let rotations = rules.map(|rules| {
        let due_at = Rotation::new(keys, rules).due_at();
        (rules.algorithm.purpose().as_str(), due_at)
    });
    let schedule = rotations.map(|(purpose, due_at)| match due_at {
        Some(at) => format!("{purpose} at {}", format_rfc3339(at.floor_to_second())),
        None => format!("{purpose} never"),
    });
    let schedule = schedule.join(", ");
    let is_late =
        |(_, due_at): &(_, Option<Timestamp>)| due_at.is_some_and(|at| now > at.plus(LATE));
    match rotations.iter().any(is_late) {
        true => Finding::warn(
            CHECK,
            format!("a key should have been replaced by now: {schedule}"),
            "start the service, which replaces it; if it runs, its log says why it does not",
        ),
        false => Finding::ok(CHECK, format!("keys are replaced by schedule: {schedule}")),
    }
}
