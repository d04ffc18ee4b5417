//! Tests of the feed of revocations. The feed returns each entry once, in the order in which the
//! entries were committed.

use std::{collections::HashSet, future::Future, time::Duration};

use countersign::{
    domain::{
        policy::{OnQuota, OnRefresh},
        refresh::RefreshAttempt,
        revocation::{Revoked, Seq},
        session::Session,
        text::Tenant,
    },
    store::{Creation, FeedEntry, Store},
};
use futures_util::future::{join, join_all};

use crate::support::{
    Reader, after, attempt, create, create_all, entries, read_feed, revoke_session, revoke_tenant,
    revoke_token, rotate, session, text,
};

/// A test that waits for a hint fails after this time.
const WATCHDOG: Duration = Duration::from_secs(60);

pub async fn the_feed_returns_entries_page_by_page_in_the_order_of_their_sequence_numbers(
    store: &dyn Store,
) {
    let mut expected = vec![];
    for session in create_all(store, (1..=7).map(session)).await {
        let outcome = revoke_session(store, &session, after(10)).await;
        expected.push((outcome.position.seq, Revoked::Session(session.id)));
    }
    for limit in [1, 2, 7, 100] {
        let mut last = Seq::default();
        let mut seen = vec![];
        loop {
            let page = read_feed(store, last, limit).await.entries;
            assert!(i64::try_from(page.len()).unwrap() <= limit);
            let Some(entry) = page.last() else { break };
            assert!(entry.seq > last, "the cursor must move on");
            last = entry.seq;
            seen.extend(page.into_iter().map(|entry| (entry.seq, entry.revoked)));
        }
        assert_eq!(seen, expected, "in pages of {limit}");
    }
    assert!(expected.is_sorted_by(|a, b| a.0 < b.0), "{expected:?}");
    assert!(expected[0].0 > Seq::default(), "the first sequence number is 1");
}

/// Reads the feed until it has returned `count` entries. After an empty page, only a hint starts
/// the next read.
async fn follow(store: &dyn Store, count: usize) -> Vec<FeedEntry> {
    let mut reader = Reader::join(store).await;
    let mut hints = store.revocation_hints();
    let mut seen: Vec<FeedEntry> = vec![];
    while seen.len() < count {
        hints.borrow_and_update();
        let last = seen.last().map(|entry| entry.seq).unwrap_or_default();
        let page = reader.read(last, 5).await.entries;
        if page.is_empty() {
            hints.changed().await.unwrap();
        }
        seen.extend(page);
    }
    seen
}

pub async fn a_reader_that_hints_wake_sees_every_entry_once_during_concurrent_revocations(
    store: &dyn Store,
) {
    const REVOKERS: u32 = 32;
    const EACH: u32 = 8;
    let sessions = create_all(store, (0..REVOKERS * EACH).map(session)).await;
    let revokers = sessions.chunks(EACH as usize).map(|own| async move {
        for session in own {
            revoke_session(store, session, after(300)).await;
        }
    });
    let following = tokio::time::timeout(WATCHDOG, follow(store, sessions.len()));
    let (seen, _) = join(following, join_all(revokers)).await;

    let seen = seen.expect("the reader sees all entries in time");
    assert_eq!(seen, entries(store).await);
    let distinct: HashSet<_> = seen.into_iter().map(|entry| entry.revoked).collect();
    assert_eq!(distinct, sessions.iter().map(|session| Revoked::Session(session.id)).collect());
}

/// Checks that `call` adds one entry to the blacklist, and that the store gives a hint of the
/// entry.
async fn assert_hinted(store: &dyn Store, kind: &str, call: impl Future) {
    let count = entries(store).await.len();
    let mut hints = store.revocation_hints();
    call.await;
    let hinted = tokio::time::timeout(WATCHDOG, hints.changed()).await;
    hinted.unwrap_or_else(|_| panic!("no hint of a new entry: {kind}")).unwrap();
    assert_eq!(entries(store).await.len(), count + 1, "{kind}");
}

pub async fn every_kind_of_new_entry_changes_the_hint(store: &dyn Store) {
    let alices = create_all(store, (1..=4).map(session)).await;
    let mut strict = Session { subject: text("strict"), ..session(5) };
    strict.policy.on_refresh = OnRefresh::RevokeAccessToken;
    create(store, strict.clone()).await;
    let rotated = rotate(store, &alices[0], after(10)).await;

    let acme: Tenant = text("acme");
    create(store, Session { tenant: acme.clone(), ..session(6) }).await;
    let token = alices[1].access_token_id;
    let now = after(30);
    assert_hinted(store, "a token", revoke_token(store, &alices[1], token, now)).await;
    assert_hinted(store, "a session", revoke_session(store, &alices[1], now)).await;
    assert_hinted(store, "a tenant", revoke_tenant(store, &acme, now)).await;
    assert_hinted(store, "a refresh", store.refresh_session(attempt(&strict, now))).await;
    let reuse = RefreshAttempt { generation: 1, ..attempt(&rotated, now) };
    assert_hinted(store, "a reuse", store.refresh_session(reuse)).await;
    let evicting = Creation {
        session: session(30),
        max_sessions: 2,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    };
    assert_hinted(store, "an eviction", store.create_session(evicting)).await;
}
