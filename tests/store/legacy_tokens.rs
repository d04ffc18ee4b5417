//! Tests of the refresh tokens of other systems.

use std::collections::BTreeSet;

use countersign::{
    domain::{
        legacy_token::{LegacyToken, LegacyTokenHash},
        revocation::RevocationTarget,
        session::Session,
    },
    store::{Created, Store},
};
use futures_util::future::join_all;

use crate::support::{
    after, assert_unchanged, revoke, revoke_session, seconds, session, text, unlimited,
    with_legacy_token,
};

const NEW: Created = Created::New { eviction: None };

async fn find(store: &dyn Store, token: &str) -> Option<LegacyToken> {
    store.legacy_token(LegacyTokenHash::of(token)).await.unwrap()
}

fn stands_for(session: &Session) -> Option<LegacyToken> {
    Some(LegacyToken { session_id: session.id, secret: session.lineage.secret })
}

pub async fn a_token_stands_for_the_session_that_it_was_imported_with(store: &dyn Store) {
    for n in 1..3 {
        let creation = with_legacy_token(session(n), &format!("old {n}"));
        assert_eq!(store.create_session(creation).await.unwrap(), NEW);
    }
    assert_unchanged(store, &[session(1), session(2)]).await;
    assert_eq!(find(store, "old 1").await, stands_for(&session(1)));
    assert_eq!(find(store, "old 2").await, stands_for(&session(2)));
    assert_eq!(find(store, "old 3").await, None);
}

pub async fn a_token_stands_for_one_session_even_if_many_are_created_with_it_at_once(
    store: &dyn Store,
) {
    let with_token = |n| with_legacy_token(session(n), "old");
    let creations = join_all((0..32).map(|n| store.create_session(with_token(n)))).await;
    let created: Vec<_> = creations.into_iter().map(Result::unwrap).collect();
    let is_new = |created: &Created| *created == NEW;
    let first = created.iter().position(is_new).unwrap();
    let others = created.iter().filter(|created| **created == Created::LegacyTokenTaken).count();
    assert_eq!(others, 31, "{created:?}");
    let first = session(u32::try_from(first).unwrap());
    assert_eq!(find(store, "old").await, stands_for(&first));
    assert_unchanged(store, std::slice::from_ref(&first)).await;
    // The token stays taken even if its session has ended.
    revoke_session(store, &first, after(60)).await;
    let again = store.create_session(with_token(40)).await.unwrap();
    assert_eq!(again, Created::LegacyTokenTaken);
}

pub async fn a_repeated_creation_with_a_token_returns_the_first_session(store: &dyn Store) {
    let imported = |n| Session { request_id: Some(text("s1")), ..session(n) };
    let first = with_legacy_token(imported(1), "old");
    assert_eq!(store.create_session(first.clone()).await.unwrap(), NEW);
    for again in [
        first,
        with_legacy_token(imported(2), "old"),
        with_legacy_token(imported(2), "another"),
        unlimited(imported(2)),
    ] {
        let repeated = Created::Repeated(Box::new(imported(1)));
        assert_eq!(store.create_session(again).await.unwrap(), repeated);
    }
    assert_eq!(find(store, "another").await, None);
    assert_unchanged(store, &[imported(1)]).await;
}

pub async fn a_session_that_a_revocation_covers_leaves_no_token(store: &dyn Store) {
    let subject = session(1).subject;
    let target = RevocationTarget::Subject { tenant: session(1).tenant, subject, except: None };
    revoke(store, target, after(1)).await.unwrap();
    let covered = store.create_session(with_legacy_token(session(1), "old 1")).await.unwrap();
    assert!(matches!(covered, Created::Revoked { .. }), "{covered:?}");
    assert_eq!(store.create_session(with_legacy_token(session(2), "old 2")).await.unwrap(), NEW);
    assert_eq!(find(store, "old 1").await, None);
    assert_unchanged(store, &[session(2)]).await;
}

pub async fn creations_with_and_without_tokens_can_share_a_batch(store: &dyn Store) {
    let creation = |n: u32| match n % 2 {
        0 => unlimited(session(n)),
        _ => with_legacy_token(session(n), &format!("old {n}")),
    };
    let created = join_all((0..100).map(|n| store.create_session(creation(n)))).await;
    assert!(created.into_iter().all(|created| created.unwrap() == NEW));
    assert_unchanged(store, &(0..100).map(session).collect::<Vec<_>>()).await;
    for n in 0..100 {
        let expected = if n % 2 == 0 { None } else { stands_for(&session(n)) };
        assert_eq!(find(store, &format!("old {n}")).await, expected);
    }
}

pub async fn old_tokens_are_deleted_in_batches_the_oldest_first(store: &dyn Store) {
    for n in 1..=5 {
        let creation = with_legacy_token(session(n), &format!("old {n}"));
        assert_eq!(store.create_session(creation).await.unwrap(), NEW);
    }
    let left = async || {
        let mut left = BTreeSet::new();
        for n in 1..=5 {
            if find(store, &format!("old {n}")).await.is_some() {
                left.insert(n);
            }
        }
        left
    };
    // The fourth session ends at this very instant.
    let until = session(4).expires_at;
    assert_eq!(store.delete_old_legacy_tokens(until, 2).await.unwrap(), 2);
    assert_eq!(left().await, BTreeSet::from([3, 4, 5]));
    assert_eq!(store.delete_old_legacy_tokens(until, 2).await.unwrap(), 1);
    assert_eq!(left().await, BTreeSet::from([4, 5]));
    assert_eq!(store.delete_old_legacy_tokens(until, 2).await.unwrap(), 0);
    let end = session(5).expires_at.plus(seconds(1));
    assert_eq!(store.delete_old_legacy_tokens(end, 9).await.unwrap(), 2);
    assert_unchanged(store, &(1..=5).map(session).collect::<Vec<_>>()).await;
}
