//! The first keys that are written are the keys.

use countersign::{
    domain::{
        key::{KeyPurpose, SealedKey},
        time::Timestamp,
    },
    store::Store,
};
use futures_util::future::join;

fn key(kid: &str, purpose: KeyPurpose) -> SealedKey {
    SealedKey {
        kid: kid.to_owned(),
        purpose,
        algorithm: if purpose == KeyPurpose::AccessToken { "EdDSA" } else { "HS256" }.to_owned(),
        sealed: [kid.as_bytes(), &[0, 0xff, 0x80, b'\'']].concat(),
        created_at: Timestamp::from_micros(1_700_000_000_123_456),
    }
}

fn pair(name: &str) -> Vec<SealedKey> {
    vec![key(&format!("{name}-a"), KeyPurpose::AccessToken), key(&format!("{name}-r"), KeyPurpose::RefreshToken)]
}

/// The order is nobody's business.
fn sorted(mut keys: Vec<SealedKey>) -> Vec<SealedKey> {
    keys.sort_by(|a, b| a.kid.cmp(&b.kid));
    keys
}

pub async fn first_keys_are_read_back(store: &dyn Store) {
    assert_eq!(store.keys().await.unwrap(), []);
    assert_eq!(sorted(store.insert_first_keys(pair("one")).await.unwrap()), pair("one"));
    assert_eq!(sorted(store.keys().await.unwrap()), pair("one"));
}

pub async fn later_first_keys_do_not_replace_them(store: &dyn Store) {
    store.insert_first_keys(pair("one")).await.unwrap();
    assert_eq!(sorted(store.insert_first_keys(pair("two")).await.unwrap()), pair("one"));
    assert_eq!(sorted(store.keys().await.unwrap()), pair("one"));
}

pub async fn two_who_write_first_keys_at_once_get_the_same(store: &dyn Store) {
    let (one, two) = join(store.insert_first_keys(pair("one")), store.insert_first_keys(pair("two"))).await;
    let one = sorted(one.unwrap());
    assert_eq!(one, sorted(two.unwrap()));
    assert_eq!(one, sorted(store.keys().await.unwrap()));
    assert!(one == pair("one") || one == pair("two"), "of one caller, not of both: {one:?}");
}
