//! Tests of revocations of sessions, subjects and single tokens.

use countersign::{
    domain::{
        cut_off::{CutOff, CutOffKey, Scope},
        ids::TokenId,
        refresh::RefreshRefusal,
        revocation::{BlacklistEntry, RETENTION_MARGIN, Revocation, RevocationTarget, Revoked},
        search::{SessionQuery, SessionSearch},
        session::{EndReason, Ended, Session},
        text::Tenant,
        time::Timestamp,
    },
    store::{Created, FeedEntry, Refreshed, RevocationOutcome, Store},
};
use futures_util::future::join_all;

use crate::support::{
    LONGEST_TOKEN, after, assert_unchanged, attempt, create, create_all, end_covered, ended,
    entries, list, query, read, revoke, revoke_session, revoke_token, rich_session, rotate,
    seconds, session, text, unlimited,
};

/// Checks that a revocation wrote nothing, and returned the position of the last existing entry.
#[track_caller]
fn assert_nothing_new(outcome: &RevocationOutcome, entries: &[FeedEntry]) {
    assert_eq!((outcome.found, outcome.full, outcome.sessions), (true, false, 0), "{outcome:?}");
    assert_eq!((outcome.wrote, outcome.changed), (false, false), "{outcome:?}");
    assert_eq!(outcome.position.seq, entries.last().map(|entry| entry.seq).unwrap_or_default());
}

fn alice(except: Option<&Session>) -> RevocationTarget {
    RevocationTarget::Subject {
        tenant: Tenant::default(),
        subject: text("alice"),
        except: except.map(|session| session.id),
    }
}

pub async fn a_revoked_session_ends_and_its_tokens_are_stopped(store: &dyn Store) {
    let there = create_all(store, [rich_session(1), rich_session(2), session(3)]).await;
    let ended = ended(after(5));
    let target = RevocationTarget::Session(there[0].id);
    let outcome = store
        .revoke(Revocation {
            target,
            ended: ended.clone(),
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        })
        .await
        .unwrap();

    let entry = BlacklistEntry::for_session(&there[0], &ended);
    let position = outcome.position;
    let owner = Some((there[0].tenant.clone(), there[0].subject.clone()));
    let expected = RevocationOutcome {
        found: true,
        full: false,
        wrote: true,
        changed: true,
        sessions: 1,
        owner,
        position,
    };
    assert_eq!(outcome, expected);
    assert_eq!(
        entries(store).await,
        [FeedEntry {
            seq: position.seq,
            revoked: entry.revoked,
            tenant: Some(entry.tenant),
            expires_at: entry.expires_at
        }]
    );
    assert_unchanged(store, &[there[0].clone().end(ended), there[1].clone(), there[2].clone()])
        .await;
}

pub async fn a_second_revocation_does_not_change_an_ended_session(store: &dyn Store) {
    let before = create(store, session(1)).await;
    revoke_session(store, &before, after(2)).await;
    let first = read(store, &before).await;
    let entries_before = entries(store).await;

    let ended = Ended { at: after(3), reason: EndReason::Compromised, note: text("later") };
    let target = RevocationTarget::Session(before.id);
    let again = store
        .revoke(Revocation {
            target,
            ended,
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        })
        .await
        .unwrap();
    assert_nothing_new(&again, &entries_before);
    assert_unchanged(store, &[first]).await;
    assert_eq!(entries(store).await, entries_before);
}

pub async fn an_expired_session_is_not_changed_by_a_revocation(store: &dyn Store) {
    let expired = create(store, session(1)).await;
    assert_nothing_new(&revoke_session(store, &expired, expired.idle_expires_at).await, &[]);
    assert_unchanged(store, &[expired]).await;
    assert_eq!(entries(store).await, []);
}

pub async fn an_unknown_session_is_not_found(store: &dyn Store) {
    let there = create(store, session(1)).await;
    let outcome = revoke_session(store, &session(2), after(3)).await;
    assert_eq!((outcome.found, outcome.full, outcome.sessions), (false, false, 0));
    assert_unchanged(store, &[there]).await;
    assert_eq!(entries(store).await, []);
}

pub async fn all_sessions_of_a_subject_end_except_the_spared_one(store: &dyn Store) {
    let alices = create_all(store, (1..=4).map(session)).await;
    let bobs = Session { subject: text("bob"), ..session(5) };
    let elsewhere = Session { tenant: text("acme"), ..session(6) };
    let others = create_all(store, [bobs, elsewhere]).await;

    let outcome = revoke(store, alice(Some(&alices[2])), after(10)).await.unwrap();
    assert_eq!((outcome.found, outcome.sessions, outcome.changed), (true, 3, true));
    let entries = entries(store).await;
    let [entry] = &entries[..] else { panic!("expected one entry for all sessions: {entries:?}") };
    assert_eq!(
        (entry.seq, &entry.revoked),
        (outcome.position.seq, &alices_up_to(after(10), Some(&alices[2])))
    );
    for n in [0, 1, 3] {
        assert!(entry.expires_at >= BlacklistEntry::expiry_for(&alices[n], after(10)));
        assert_unchanged(store, &[alices[n].clone().end(ended(after(10)))]).await;
    }
    assert_unchanged(store, &[alices[2].clone()]).await;
    assert_unchanged(store, &others).await;
    assert_eq!(store.unfinished().await.unwrap(), [], "nothing is left to be ended");
}

/// Returns the target of an entry that covers all of alice's sessions up to an instant, except the
/// spared one.
fn alices_up_to(up_to: Timestamp, spared: Option<&Session>) -> Revoked {
    let cut_off = CutOff { up_to, spared: spared.map(|session| session.id) };
    let key = CutOffKey::created(Scope::Subject(Tenant::default(), text("alice")));
    Revoked::Sessions { key, cut_off }
}

pub async fn a_subject_revoked_twice_has_one_entry_and_no_more_sessions_end(store: &dyn Store) {
    let before = create_all(store, [session(1), session(2)]).await;
    let first = revoke(store, alice(None), after(3)).await.unwrap();
    assert_eq!((first.sessions, first.changed), (2, true));
    let ended = [read(store, &before[0]).await, read(store, &before[1]).await];

    let second = revoke(store, alice(None), after(4)).await.unwrap();
    assert_eq!((second.sessions, second.wrote, second.changed), (0, true, false));
    assert!(
        second.position.seq > first.position.seq,
        "a replica that waits for the second entry must see it in the feed"
    );
    assert_unchanged(store, &ended).await;
    assert_eq!(entries(store).await.len(), 1);
}

/// The database may have lost sessions whose access tokens are still valid, so a subject can be
/// revoked without any known session. A subject that never existed gets one entry, too, and a
/// repeated revocation adds none.
pub async fn a_subject_without_sessions_can_be_revoked(store: &dyn Store) {
    create(store, Session { subject: text("bob"), ..session(1) }).await;
    for changed in [true, false] {
        let outcome = revoke(store, alice(None), after(5)).await.unwrap();
        assert_eq!((outcome.found, outcome.sessions, outcome.changed), (true, 0, changed));
        let entries = entries(store).await;
        assert_eq!((entries.len(), &entries[0].revoked), (1, &alices_up_to(after(5), None)));
        assert!(
            entries[0].expires_at >= after(5).plus(LONGEST_TOKEN),
            "the entry lasts as long as the longest token"
        );
    }
}

/// A revocation cannot spare a session that an earlier revocation covered. It can spare a session
/// that was created since, or one that the earlier revocation spared, too.
pub async fn a_later_revocation_of_a_subject_cannot_spare_a_session_that_was_already_revoked(
    store: &dyn Store,
) {
    let there = create_all(store, [session(1), session(2)]).await;
    revoke(store, alice(Some(&there[0])), after(3)).await.unwrap();
    let third = create(store, session(4)).await;
    for (spared, at, sessions, left) in [(&there[1], 5, 2, None), (&third, 6, 0, None)] {
        let outcome = revoke(store, alice(Some(spared)), after(at)).await.unwrap();
        assert_eq!(outcome.sessions, sessions, "{at}");
        assert_eq!(entries(store).await[0].revoked, alices_up_to(after(at), left));
    }
    let fourth = create(store, session(7)).await;
    assert_eq!(revoke(store, alice(Some(&fourth)), after(8)).await.unwrap().sessions, 0);
    assert_eq!(entries(store).await[0].revoked, alices_up_to(after(8), Some(&fourth)));
    assert_eq!(revoke(store, alice(Some(&fourth)), after(9)).await.unwrap().sessions, 0);
    assert_eq!(
        entries(store).await[0].revoked,
        alices_up_to(after(9), Some(&fourth)),
        "a session that was spared can be spared again"
    );
    assert_unchanged(store, &[fourth]).await;
}

pub async fn no_session_is_created_or_refreshed_under_a_revocation_of_its_subject(
    store: &dyn Store,
) {
    // Without the spared session, these are 257 sessions: one more than a revocation ends at once.
    let there = create_all(store, (1..=258).map(session)).await;
    let outcome = revoke(store, alice(Some(&there[0])), after(300)).await.unwrap();
    assert_eq!((outcome.sessions, outcome.changed), (257, true));
    let unfinished = store.unfinished().await.unwrap();
    assert_eq!(unfinished.len(), 1);
    let again = revoke(store, alice(Some(&there[0])), after(300)).await.unwrap();
    assert_eq!(
        (again.sessions, again.changed),
        (0, false),
        "even while one session has yet to be ended"
    );
    let live = create(store, session(301)).await;

    let refreshed = store.refresh_session(attempt(&there[257], after(301))).await.unwrap();
    assert_eq!(
        refreshed,
        Refreshed::Refused(RefreshRefusal::Ended),
        "the session is refused although the job has not ended it yet"
    );
    let behind = Session { subject: there[0].subject.clone(), ..session(299) };
    let created = store.create_session(unlimited(behind)).await.unwrap();
    assert_eq!(created, Created::Revoked { up_to: after(300) });
    rotate(store, &there[0], after(301)).await;
    rotate(store, &live, after(302)).await;

    end_covered(store, &store.unfinished().await.unwrap()[0], 10).await;
    assert_eq!(store.unfinished().await.unwrap(), []);
    let live_ones = SessionSearch { live: Some(true), ..SessionSearch::default() };
    let query = SessionQuery { now: after(302), ..query(live_ones) };
    assert_eq!(list(store, query).await, [live.id, there[0].id]);
    assert_eq!(read(store, &there[257]).await.ended.unwrap(), ended(after(300)));
}

pub async fn expired_sessions_of_a_subject_are_not_counted(store: &dyn Store) {
    let expired = create(store, Session { idle_expires_at: after(10), ..session(1) }).await;
    let live = create(store, session(2)).await;
    let outcome = revoke(store, alice(None), after(10)).await.unwrap();
    assert_eq!(outcome.sessions, 1);
    assert_eq!(entries(store).await.len(), 1);
    assert_unchanged(store, &[expired, live.end(ended(after(10)))]).await;
}

pub async fn the_revocation_of_one_token_does_not_change_its_session(store: &dyn Store) {
    let before = create(store, session(1)).await;
    // The row does not have the identifier of this token, because a replay may have issued another
    // token.
    let token = TokenId::new([8; 16]);
    let outcome = revoke_token(store, &before, token, after(2)).await;

    let position = outcome.position;
    // The caller knows the owner from the token, so an engine may or may not look the owner up.
    let owner = outcome.owner.clone();
    assert!(
        owner.iter().all(|owner| *owner == (before.tenant.clone(), before.subject.clone())),
        "{owner:?}"
    );
    let expected = RevocationOutcome {
        found: true,
        full: false,
        wrote: true,
        changed: true,
        sessions: 0,
        owner,
        position,
    };
    assert_eq!(outcome, expected);
    let expires_at = after(2).plus(seconds(60)).plus(RETENTION_MARGIN);
    assert_eq!(
        entries(store).await,
        [FeedEntry {
            seq: position.seq,
            revoked: Revoked::Token(token),
            tenant: Some(Tenant::default()),
            expires_at
        }]
    );
    assert_unchanged(store, &[before]).await;
}

pub async fn a_token_revoked_twice_has_one_entry_at_a_new_feed_position(store: &dyn Store) {
    let before = create(store, session(1)).await;
    let token = before.access_token_id;
    let first = revoke_token(store, &before, token, after(2)).await;
    let second = revoke_token(store, &before, token, after(2)).await;
    assert!(
        second.position.seq > first.position.seq,
        "a replica that waits for the second entry must see it in the feed: {first:?} {second:?}"
    );

    assert_eq!(
        (first.changed, second.changed),
        (true, false),
        "the second revocation replaces an existing entry"
    );
    assert_eq!(
        entries(store).await.iter().map(|entry| entry.seq).collect::<Vec<_>>(),
        [second.position.seq]
    );

    let both =
        join_all((0..2).map(|_| revoke_token(store, &before, TokenId::new([8; 16]), after(3))))
            .await;
    assert_eq!(
        both.iter().filter(|outcome| outcome.changed).count(),
        1,
        "whether both are in one transaction or each in its own"
    );
    assert!(both.iter().all(|outcome| outcome.wrote));
}

pub async fn the_revocation_of_a_token_adds_no_entry_if_its_session_is_over_or_unknown(
    store: &dyn Store,
) {
    let ended = create(store, session(1)).await;
    revoke_session(store, &ended, after(2)).await;
    let expired = create(store, Session { idle_expires_at: after(10), ..session(3) }).await;
    let entries_before = entries(store).await;
    for over in [&ended, &expired, &session(4)] {
        let outcome = revoke_token(store, over, over.access_token_id, after(10)).await;
        let last = entries(store).await.last().unwrap().seq;
        assert_eq!((outcome.sessions, outcome.position.seq), (0, last));
    }
    assert_eq!(entries(store).await, entries_before);
}

/// In a database that was set back, the session of an authentic token may be missing, or may seem
/// to have expired.
pub async fn an_authentic_token_is_stopped_even_if_its_session_is_unknown_or_seems_expired(
    store: &dyn Store,
) {
    let unknown = session(1);
    let expired = create(store, session(2)).await;
    let over = create(store, session(3)).await;
    revoke_session(store, &over, after(1)).await;
    let at = expired.idle_expires_at;
    let before = entries(store).await;

    for (session, adds) in [(&unknown, true), (&expired, true), (&over, false)] {
        let fallback_entry = BlacklistEntry::for_session(session, &ended(at));
        let target = RevocationTarget::Session(session.id);
        let order = Revocation {
            target,
            ended: ended(at),
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: Some(fallback_entry.clone()),
        };
        let count = entries(store).await.len();
        let first = store.revoke(order.clone()).await.unwrap();
        assert_eq!((first.sessions, first.changed), (0, adds));
        assert_eq!(entries(store).await.len() - count, usize::from(adds));
        let again = store.revoke(order).await.unwrap();
        assert_eq!((again.sessions, again.wrote, again.changed), (0, adds, false));
        let stopped =
            entries(store).await.into_iter().any(|entry| entry.revoked == fallback_entry.revoked);
        assert!(stopped, "neither the session's own entry nor the fallback entry stops the token");
    }
    assert_eq!(entries(store).await.len(), before.len() + 2);
    assert_unchanged(store, &[expired]).await;
}

pub async fn a_revocation_that_would_add_an_entry_to_a_full_blacklist_does_nothing(
    store: &dyn Store,
) {
    let there = create_all(store, [session(1), session(2), session(3)]).await;
    revoke_session(store, &there[2], after(1)).await;
    let token = TokenId::new([8; 16]);
    revoke_token(store, &there[0], token, after(2)).await;
    let over = read(store, &there[2]).await;
    let before = entries(store).await;
    let full = |target| async {
        let order = Revocation {
            target,
            ended: ended(after(5)),
            room: 0,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        };
        store.revoke(order).await.unwrap().full
    };
    let of_token =
        |token| RevocationTarget::Token { token, session_id: there[0].id, expires_at: after(60) };

    assert!(full(RevocationTarget::Session(there[0].id)).await);
    assert!(full(alice(None)).await);
    assert!(full(of_token(TokenId::new([9; 16]))).await);
    assert!(full(RevocationTarget::Tenant(Tenant::default())).await);
    assert_eq!(entries(store).await, before);
    assert!(!full(RevocationTarget::Session(over.id)).await, "the session has ended already");
    assert!(!full(of_token(token)).await, "the new entry replaces the token's earlier entry");
    assert_eq!(entries(store).await.len(), before.len());
    assert_unchanged(store, &[there[0].clone(), there[1].clone(), over]).await;
}
