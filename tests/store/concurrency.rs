//! Tests of calls that are made at the same time.

use std::future::Future;

use countersign::{
    domain::{
        ids::TokenId,
        key::RingVersion,
        policy::OnQuota,
        refresh::RefreshAttempt,
        revocation::{RevocationTarget, Revoked},
        search::SessionSearch,
        session::{Device, RequestFingerprint, Session},
        text::Tenant,
    },
    store::{Created, Creation, Refreshed, Store, ring::RingChange},
};
use futures_util::{
    future::{join, join_all},
    poll,
};

use crate::support::{
    after, assert_unchanged, attempt, create, create_all, end_covered, ended, entries, list, query,
    read, revoke, revoke_session, revoke_tenant, rotate, session, text,
};

/// Returns the `n`th attempt to refresh a session. Each attempt has its own device and its own
/// identifier for the next access token.
fn attempt_of(n: u8, session: &Session) -> RefreshAttempt {
    let device = Device { label: text(format!("device {n}")), ..Device::default() };
    let next_access_token_id = TokenId::new([n; 16]);
    RefreshAttempt { device: Some(device), next_access_token_id, ..attempt(session, after(30)) }
}

pub async fn one_of_many_concurrent_refreshes_rotates_and_the_others_replay(store: &dyn Store) {
    let before = create(store, session(1)).await;
    let refreshes = (0..64).map(|n| store.refresh_session(attempt_of(n, &before)));
    let mut rotated = vec![];
    let mut replayed = vec![];
    for outcome in join_all(refreshes).await {
        match outcome.unwrap() {
            Refreshed::Rotated { session, .. } => rotated.push(session),
            Refreshed::Replayed { session, .. } => replayed.push(session),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((rotated.len(), replayed.len()), (1, 63));
    assert!(
        replayed.iter().all(|session| *session == rotated[0]),
        "all replays return the session of the one rotation"
    );
    assert_unchanged(store, &[(*rotated[0]).clone()]).await;
    assert_eq!(entries(store).await, []);
}

pub async fn concurrent_refreshes_of_different_sessions_do_not_mix(store: &dyn Store) {
    let there = create_all(store, (0..64).map(session)).await;
    let refreshes =
        (0..).zip(&there).map(|(n, before)| store.refresh_session(attempt_of(n, before)));
    for (n, outcome) in (0..).zip(join_all(refreshes).await) {
        let Refreshed::Rotated { session, .. } = outcome.unwrap() else {
            panic!("each attempt is the only one for its session")
        };
        assert_eq!(
            (session.id, session.access_token_id),
            (there[usize::from(n)].id, TokenId::new([n; 16]))
        );
        assert_unchanged(store, &[*session]).await;
    }
}

pub async fn only_one_of_many_concurrent_creations_for_one_request_is_new(store: &dyn Store) {
    let request = |n| Session { request_id: Some(text("r")), ..session(n) };
    let creations = (0..32).map(|n| Creation {
        session: request(n),
        max_sessions: 1,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    });
    let outcomes = join_all(creations.map(|creation| store.create_session(creation))).await;

    let listed = store.sessions(query(SessionSearch::default())).await.unwrap().found;
    assert_eq!(listed.len(), 1);
    let (new, repeated): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .map(Result::unwrap)
        .partition(|created| *created == Created::New { eviction: None });
    assert_eq!(new.len(), 1);
    assert!(
        repeated.iter().all(|created| *created == Created::Repeated(Box::new(listed[0].clone())))
    );
    assert_eq!(entries(store).await, [], "nobody was evicted for a repetition");
}

/// If several revocations of a session share a transaction, the first one writes the entry, and the
/// others find that the session has ended. They must not return a position before that entry.
pub async fn a_concurrent_revocation_returns_no_position_before_the_entry_of_the_session(
    store: &dyn Store,
) {
    // After this revocation the feed has an entry already, and so has moved on from its beginning.
    revoke_session(store, &create(store, session(1)).await, after(2)).await;
    let there = create(store, session(3)).await;
    let target = RevocationTarget::Session(there.id);
    let outcomes = join_all((0..64).map(|_| revoke(store, target.clone(), after(4)))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();

    let entry = entries(store)
        .await
        .into_iter()
        .find(|entry| entry.revoked == Revoked::Session(there.id))
        .unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.wrote).count(), 1);
    assert!(
        outcomes.iter().all(|outcome| outcome.position.seq >= entry.seq),
        "{entry:?} {outcomes:?}"
    );
}

pub async fn of_two_concurrent_requests_with_one_id_only_one_gets_the_session(store: &dyn Store) {
    let request = |n: u32| Session {
        request_id: Some(text("r")),
        request_fingerprint: Some(RequestFingerprint([u8::try_from(n % 2).unwrap(); 32])),
        ..session(n)
    };
    let creations = (0..32).map(|n| Creation {
        session: request(n),
        max_sessions: n % 3,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    });
    let outcomes = join_all(creations.map(|creation| store.create_session(creation))).await;

    let listed = store.sessions(query(SessionSearch::default())).await.unwrap().found;
    let [winner] = &listed[..] else { panic!("one session, not {listed:?}") };
    let mut new = 0;
    for (n, outcome) in (0..).zip(outcomes) {
        let is_winners = request(n).request_fingerprint == winner.request_fingerprint;
        match outcome.unwrap() {
            Created::New { eviction: None } => new += 1,
            Created::Repeated(session) => assert_eq!((is_winners, &*session), (true, winner)),
            Created::RequestIdReused => assert!(!is_winners),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(new, 1);
    assert_eq!(entries(store).await, [], "nobody was evicted");
}

pub async fn a_limit_holds_for_many_concurrent_creations(store: &dyn Store) {
    let creations = (0..32).map(|n| Creation {
        session: session(n),
        max_sessions: 4,
        on_quota: OnQuota::Refuse,
        legacy_token: None,
    });
    let outcomes = join_all(creations.map(|creation| store.create_session(creation))).await;
    let refused =
        outcomes.iter().filter(|outcome| matches!(outcome, Ok(Created::QuotaExceeded))).count();
    assert_eq!(refused, 28, "{outcomes:?}");
    assert_eq!(list(store, query(SessionSearch::default())).await.len(), 4);
}

pub async fn concurrent_evictions_leave_as_many_sessions_as_the_limit_allows(store: &dyn Store) {
    let creations = (0..32).map(|n| Creation {
        session: session(n),
        max_sessions: 4,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    });
    for outcome in join_all(creations.map(|creation| store.create_session(creation))).await {
        assert!(matches!(outcome.unwrap(), Created::New { .. }));
    }
    let live = SessionSearch { live: Some(true), ..SessionSearch::default() };
    assert_eq!(list(store, query(live)).await.len(), 4);
    assert_eq!(entries(store).await.len(), 28);
}

/// The number of rounds of a race. With fewer rounds, some order of events might never occur.
const ROUNDS: u32 = 100;

pub async fn a_refresh_racing_a_revocation_never_brings_the_session_back(store: &dyn Store) {
    for n in 0..ROUNDS {
        let before = create(store, session(n)).await;
        let refresh = store.refresh_session(attempt(&before, before.created_at));
        let revocation = revoke_session(store, &before, before.created_at);
        // The call that is sent first changes from round to round.
        let (refreshed, revoked) = if n % 2 == 0 {
            join(refresh, revocation).await
        } else {
            let (revoked, refreshed) = join(revocation, refresh).await;
            (refreshed, revoked)
        };
        assert_eq!(revoked.sessions, 1);
        let left = match refreshed.unwrap() {
            Refreshed::Rotated { session, .. } => *session,
            Refreshed::Refused(_) => before,
            other => panic!("{other:?}"),
        };
        let at = left.created_at;
        assert_unchanged(store, &[left.end(ended(at))]).await;
    }
}

pub async fn a_refresh_racing_the_revocation_of_its_tenant_never_brings_the_session_back(
    store: &dyn Store,
) {
    let acme: Tenant = text("acme");
    let there =
        create_all(store, (0..ROUNDS).map(|n| Session { tenant: acme.clone(), ..session(n) }))
            .await;
    revoke_tenant(store, &acme, after(200)).await;
    let tenant = store.unfinished().await.unwrap().remove(0);

    let refreshes = there.iter().map(|session| store.refresh_session(attempt(session, after(201))));
    let (refreshed, _) = join(join_all(refreshes), end_covered(store, &tenant, 3)).await;
    for (before, outcome) in there.into_iter().zip(refreshed) {
        let left = match outcome.unwrap() {
            Refreshed::Rotated { session, .. } => *session,
            Refreshed::Refused(_) => before,
            other => panic!("{other:?}"),
        };
        assert_unchanged(store, &[left.end(tenant.ended.clone())]).await;
    }
}

/// Polls a call once, and drops it.
async fn abandon(call: impl Future) {
    let mut call = Box::pin(call);
    drop(poll!(&mut call));
}

pub async fn abandoned_calls_do_not_affect_later_ones(store: &dyn Store) {
    let there = create(store, session(0)).await;
    for n in 1..=20 {
        let creation = Creation {
            session: session(n),
            max_sessions: 0,
            on_quota: OnQuota::Refuse,
            legacy_token: None,
        };
        abandon(store.create_session(creation)).await;
        abandon(store.refresh_session(attempt(&there, after(1)))).await;
        abandon(store.delete_expired_revocations(after(1), 10)).await;
        abandon(store.delete_old_sessions(after(1), 10)).await;
        abandon(store.session(there.id)).await;
        abandon(store.change_ring(RingChange {
            version: RingVersion(99),
            put: vec![],
            drop: vec![],
        }))
        .await;
    }
    // The abandoned calls may still be under way, so another session is checked.
    let next = create(store, session(100)).await;
    rotate(store, &next, after(101)).await;
    assert_eq!(revoke_session(store, &next, after(102)).await.sessions, 1);
    store.delete_expired_revocations(after(102), 10).await.unwrap();
    assert!(read(store, &next).await.ended.is_some());
    assert_eq!(entries(store).await.len(), 1);
}
