//! Tests of the key ring. Each change is applied as a whole, and only to the version of the ring
//! for which it was made.

use std::time::Duration;

use countersign::{
    domain::{
        ids::TokenId,
        key::{Key, KeyAlgorithm, RefreshKeyId, RingVersion, SealedKey},
        refresh::RefreshAttempt,
        session::{Lineage, Session},
        time::Timestamp,
    },
    store::{
        Refreshed, Store,
        ring::{RingChange, SealedRing},
    },
};
use futures_util::future::join;

use crate::support::{after, attempt, create, revoke_session, session};

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_123_456);

fn key(kid: &str, algorithm: KeyAlgorithm) -> SealedKey {
    SealedKey {
        key: Key::new(kid.to_owned(), algorithm, NOW),
        sealed: [kid.as_bytes(), &[0, 0xff, 0x80, b'\'']].concat(),
    }
}

fn put(version: RingVersion, put: Vec<SealedKey>) -> RingChange {
    RingChange { version, put, drop: vec![] }
}

/// Reads the ring and sorts its keys, because the store may return them in any order.
async fn ring(store: &dyn Store) -> SealedRing {
    let mut ring = store.ring().await.unwrap();
    ring.keys.sort_by(|a, b| a.key.kid.cmp(&b.key.kid));
    ring
}

pub async fn keys_are_read_back_in_every_state(store: &dyn Store) {
    let empty = ring(store).await;
    assert_eq!((empty.version, empty.keys), (RingVersion(0), vec![]));
    let pending = key("a", KeyAlgorithm::EdDsa);
    let later = NOW.plus(Duration::from_micros(1));
    let with = |kid, algorithm, state: fn(&Key, Timestamp) -> Key| {
        let new = key(kid, algorithm);
        SealedKey { key: state(&new.key, NOW.plus(Duration::from_micros(1))), ..new }
    };
    let active = with("b", KeyAlgorithm::Es256, |key, at| key.activate(at).unwrap());
    let retired =
        with("c", KeyAlgorithm::Rs256, |key, at| key.activate(at).unwrap().retire(at).unwrap());
    let revoked = with("d", KeyAlgorithm::Hs256, |key, at| key.revoke(at).unwrap());
    let keys = vec![pending.clone(), active, retired, revoked];
    assert!(store.change_ring(put(RingVersion(0), keys.clone())).await.unwrap().is_some());
    assert_eq!(ring(store).await.keys, keys);

    // One change seals the key again and activates it.
    let changed = SealedKey { key: pending.key.activate(later).unwrap(), sealed: vec![7; 60] };
    let change = RingChange {
        drop: vec!["b".to_owned(), "c".to_owned()],
        ..put(RingVersion(1), vec![changed.clone()])
    };
    store.change_ring(change).await.unwrap().unwrap();
    let now = ring(store).await;
    assert_eq!((now.version, now.keys), (RingVersion(2), vec![changed, keys[3].clone()]));
    assert_eq!(now.damaged, Vec::<String>::new());
}

pub async fn a_change_is_applied_once_and_only_to_the_version_of_the_ring_that_it_names(
    store: &dyn Store,
) {
    let change = put(RingVersion(0), vec![key("a", KeyAlgorithm::EdDsa)]);
    let before = ring(store).await.position;
    let position = store.change_ring(change.clone()).await.unwrap().unwrap();
    assert!(position.seq >= before.seq);
    assert_eq!(ring(store).await.position, position);
    assert_eq!(store.change_ring(change).await.unwrap(), None);
    let early = put(RingVersion(2), vec![key("b", KeyAlgorithm::EdDsa)]);
    assert_eq!(store.change_ring(early).await.unwrap(), None);
    let now = ring(store).await;
    assert_eq!((now.version, now.position), (RingVersion(1), position));
    assert_eq!(now.keys, [key("a", KeyAlgorithm::EdDsa)]);
    // Later entries of the feed have later positions than the change.
    let there = create(store, session(1)).await;
    assert!(revoke_session(store, &there, after(2)).await.position.seq > position.seq);
}

pub async fn only_one_of_two_concurrent_key_changes_is_made(store: &dyn Store) {
    for round in 0..10 {
        let change = |name| {
            put(RingVersion(round), vec![key(&format!("{name}-{round}"), KeyAlgorithm::EdDsa)])
        };
        let (one, two) =
            join(store.change_ring(change("one")), store.change_ring(change("two"))).await;
        let made = [one.unwrap(), two.unwrap()];
        assert_eq!(made.iter().flatten().count(), 1, "{made:?}");
        let now = ring(store).await;
        assert_eq!(
            (now.version.0, now.keys.len()),
            (round + 1, usize::try_from(round).unwrap() + 1)
        );
    }
}

pub async fn a_refresh_key_is_in_use_as_long_as_a_live_session_has_a_token_of_it(
    store: &dyn Store,
) {
    let (old, new) = (RefreshKeyId([1; 8]), RefreshKeyId([2; 8]));
    let under = |n, key| {
        let session = session(n);
        Session { lineage: Lineage { key, ..session.lineage }, ..session }
    };
    let at = after(200);
    let is_in_use = async |now| store.is_refresh_key_in_use(old, now).await.unwrap();
    assert!(!is_in_use(at).await, "there is no session");
    create(store, under(1, new)).await;
    assert!(!is_in_use(at).await, "the session is under another key");

    let holder = create(store, under(2, old)).await;
    assert!(is_in_use(at).await);
    assert!(!is_in_use(holder.idle_expires_at).await, "the session is over");
    let attempt = RefreshAttempt {
        next_key: new,
        next_access_token_id: TokenId::new([9; 16]),
        ..attempt(&holder, at)
    };
    assert!(matches!(store.refresh_session(attempt).await.unwrap(), Refreshed::Rotated { .. }));
    assert!(!is_in_use(at).await, "the session has moved to the new key");

    let ended = create(store, under(3, old)).await;
    assert!(is_in_use(after(300)).await);
    revoke_session(store, &ended, after(301)).await;
    assert!(!is_in_use(after(302)).await);
}
