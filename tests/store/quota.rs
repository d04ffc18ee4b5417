//! Tests of the quota: a subject has no more live sessions than its policy allows.

use countersign::{
    domain::{
        ids::SessionId,
        policy::OnQuota,
        quota::{MOST_EVICTED, MOST_READ},
        revocation::{BlacklistEntry, Revoked},
        search::{SessionQuery, SessionSearch},
        session::{EndReason, Session},
        time::Timestamp,
    },
    store::{Created, Creation, FeedEntry, Store},
};
use futures_util::future::join_all;

use crate::support::{
    after, assert_unchanged, create, create_all, ended_without_note, entries, list, query, read,
    revoke_session, rotate, session, text, unlimited,
};

fn limited(session: Session, max_sessions: u32, on_quota: OnQuota) -> Creation {
    Creation { session, max_sessions, on_quota, legacy_token: None }
}

fn evicted(session: &Session, at: Timestamp) -> Session {
    session.clone().end(ended_without_note(at, EndReason::QuotaEvicted))
}

pub async fn a_session_over_the_limit_is_refused_without_an_eviction(store: &dyn Store) {
    let there = create_all(store, [session(1), session(2)]).await;
    let third = store.create_session(limited(session(3), 2, OnQuota::Refuse)).await.unwrap();
    assert_eq!(third, Created::QuotaExceeded);
    assert_eq!(store.session(session(3).id).await.unwrap(), None);
    assert_unchanged(store, &there).await;
    assert_eq!(entries(store).await, []);

    let room = store.create_session(limited(session(3), 3, OnQuota::Refuse)).await.unwrap();
    assert_eq!(room, Created::New { eviction: None });
}

/// Returns the sessions that a creation has evicted.
fn evicted_for(created: &Created) -> &[SessionId] {
    match created {
        Created::New { eviction: Some(eviction) } => &eviction.sessions,
        other => panic!("nothing was evicted: {other:?}"),
    }
}

pub async fn a_session_over_the_limit_evicts_the_oldest_session(store: &dyn Store) {
    // The oldest session is the one that was created first. Neither the time of its last refresh
    // nor the order in which the rows were written matters.
    let there = create_all(store, [session(3), session(1), session(2)]).await;
    let oldest = rotate(store, &there[1], after(4)).await;

    let created = store.create_session(limited(session(5), 3, OnQuota::EvictOldest)).await.unwrap();
    let entries = entries(store).await;
    let [FeedEntry { seq, revoked, expires_at, .. }] = &entries[..] else {
        panic!("one entry, not {entries:?}")
    };
    assert_eq!(created.position().map(|position| position.seq), Some(*seq));
    assert_eq!(evicted_for(&created), [oldest.id]);
    assert_eq!(*revoked, Revoked::Session(oldest.id));
    let ended = ended_without_note(after(5), EndReason::QuotaEvicted);
    assert_eq!(*expires_at, BlacklistEntry::for_session(&oldest, &ended).expires_at);
    assert_unchanged(
        store,
        &[evicted(&oldest, after(5)), there[0].clone(), there[2].clone(), session(5)],
    )
    .await;
}

pub async fn under_a_lowered_limit_a_creation_evicts_every_session_over_the_limit(
    store: &dyn Store,
) {
    let there = create_all(store, (1..=5).map(session)).await;
    let created = store.create_session(limited(session(6), 2, OnQuota::EvictOldest)).await.unwrap();

    let entries = entries(store).await;
    let stopped: Vec<_> = entries.iter().map(|entry| entry.revoked.clone()).collect();
    assert_eq!(stopped.len(), 4);
    for session in &there[..4] {
        assert!(stopped.contains(&Revoked::Session(session.id)));
        assert_unchanged(store, &[evicted(session, after(6))]).await;
    }
    let last = entries.last().unwrap().seq;
    assert_eq!(created.position().map(|position| position.seq), Some(last));
    assert_eq!(
        evicted_for(&created),
        there[..4].iter().map(|session| session.id).collect::<Vec<_>>()
    );
    assert_unchanged(store, &[there[4].clone(), session(6)]).await;
}

pub async fn ended_and_expired_sessions_do_not_count(store: &dyn Store) {
    let live = create(store, session(1)).await;
    let ended = create(store, session(2)).await;
    revoke_session(store, &ended, after(3)).await;
    let ended = read(store, &ended).await;
    let entries_before = entries(store).await;
    // The session `expired` expires at the instant at which the next one is created.
    let expired = create(store, Session { idle_expires_at: after(10), ..session(4) }).await;

    for (n, max_sessions, on_quota) in [(10, 2, OnQuota::Refuse), (11, 3, OnQuota::EvictOldest)] {
        let created =
            store.create_session(limited(session(n), max_sessions, on_quota)).await.unwrap();
        assert_eq!(created, Created::New { eviction: None });
    }
    assert_unchanged(store, &[live, ended, expired]).await;
    assert_eq!(entries(store).await, entries_before);
}

pub async fn sessions_of_others_do_not_count(store: &dyn Store) {
    let bob = Session { subject: text("bob"), ..session(1) };
    let elsewhere = Session { tenant: text("acme"), ..session(2) };
    let others = create_all(store, [bob, elsewhere]).await;
    for (n, subject, on_quota) in
        [(3, "alice", OnQuota::EvictOldest), (4, "carol", OnQuota::Refuse)]
    {
        let first = Session { subject: text(subject), ..session(n) };
        assert_eq!(
            store.create_session(limited(first, 1, on_quota)).await.unwrap(),
            Created::New { eviction: None }
        );
    }
    assert_unchanged(store, &others).await;
}

pub async fn a_limit_of_zero_means_no_limit(store: &dyn Store) {
    for n in 0..20 {
        let on_quota = if n % 2 == 0 { OnQuota::Refuse } else { OnQuota::EvictOldest };
        let created = store.create_session(limited(session(n), 0, on_quota)).await.unwrap();
        assert_eq!(created, Created::New { eviction: None });
    }
    assert_eq!(entries(store).await, []);
}

pub async fn a_repeated_request_evicts_nobody_and_is_not_refused(store: &dyn Store) {
    let request = |n| Session { request_id: Some(text("r")), ..session(n) };
    let first = request(1);
    assert_eq!(
        store.create_session(unlimited(first.clone())).await.unwrap(),
        Created::New { eviction: None }
    );
    for on_quota in [OnQuota::Refuse, OnQuota::EvictOldest] {
        let again = store.create_session(limited(request(2), 1, on_quota)).await.unwrap();
        assert_eq!(again, Created::Repeated(Box::new(first.clone())));
    }
    assert_unchanged(store, &[first]).await;
    assert_eq!(entries(store).await, []);
}

/// However far a limit was lowered, one creation evicts at most `MOST_EVICTED` sessions, the oldest
/// first.
pub async fn a_limit_that_was_lowered_far_is_reached_over_several_creations(store: &dyn Store) {
    let there = create_all(store, (1..=40).map(session)).await;
    let mut evicted = vec![];
    let mut sizes = vec![];
    for n in 41..=44 {
        let created =
            store.create_session(limited(session(n), 3, OnQuota::EvictOldest)).await.unwrap();
        sizes.push(evicted_for(&created).len());
        evicted.extend_from_slice(evicted_for(&created));
    }
    assert_eq!(sizes, [MOST_EVICTED, MOST_EVICTED, 8, 1]);
    assert_eq!(evicted[..40], there.iter().map(|session| session.id).collect::<Vec<_>>());
}

/// Returns the live sessions, the oldest first.
async fn live(store: &dyn Store) -> Vec<SessionId> {
    let live = SessionSearch { live: Some(true), ..SessionSearch::default() };
    let query = SessionQuery { now: after(400), ..query(live) };
    let mut live = list(store, query).await;
    live.reverse();
    live
}

/// Under a limit above `MOST_READ`, the engine keeps the number of live sessions, and does not read
/// all of them for each creation.
pub async fn a_limit_holds_even_if_it_is_too_large_to_read_all_sessions(store: &dyn Store) {
    let max = MOST_READ + 4;
    let there = create_all(store, (1..=MOST_READ).map(session)).await;
    let mut created = vec![];
    for n in 1..=6 {
        let session = session(MOST_READ + n);
        created
            .push(store.create_session(limited(session, max, OnQuota::EvictOldest)).await.unwrap());
    }
    for created in &created[..4] {
        assert_eq!(*created, Created::New { eviction: None });
    }
    assert_eq!(
        (evicted_for(&created[4]), evicted_for(&created[5])),
        (&[there[0].id][..], &[there[1].id][..])
    );
    assert_eq!(live(store).await.len(), usize::try_from(max).unwrap());

    // An ended session makes room only when the engine counts the sessions again.
    revoke_session(store, &there[9], after(300)).await;
    let next = |n| limited(session(n), max, OnQuota::Refuse);
    let at = MOST_READ + 8;
    assert_eq!(store.create_session(next(at)).await.unwrap(), Created::New { eviction: None });
    assert_eq!(store.create_session(next(at + 2)).await.unwrap(), Created::QuotaExceeded);
}

/// The engine may put the creations into one transaction or into several.
pub async fn concurrent_creations_of_one_subject_evict_all_sessions_over_the_limit(
    store: &dyn Store,
) {
    for max in [5, MOST_READ + 5] {
        let subject = |n: u32| Session {
            subject: text(format!("up to {max}")),
            ..session(n + 1000 * (max % 7))
        };
        create_all(store, (1..max - 2).map(subject)).await;
        let creations = (0..40)
            .map(|n| store.create_session(limited(subject(max + n), max, OnQuota::EvictOldest)));
        let evicted: usize = join_all(creations)
            .await
            .into_iter()
            .map(|created| match created.unwrap() {
                Created::New { eviction } => eviction.map_or(0, |eviction| eviction.sessions.len()),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(evicted, 40 - 3, "of {max}");
        let search = SessionSearch {
            subject: Some(subject(0).subject),
            live: Some(true),
            ..SessionSearch::default()
        };
        let query = SessionQuery { now: after(400), ..query(search) };
        assert_eq!(list(store, query).await.len(), usize::try_from(max).unwrap());
    }
}
