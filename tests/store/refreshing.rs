//! Tests of refreshes: the store writes what [`Session::judge_refresh`] decides, and nothing else.

use std::sync::Arc;

use countersign::{
    domain::{
        ids::TokenId,
        live_policy::LivePolicies,
        policy::{OnRefresh, RefreshMode, Replay},
        refresh::{RefreshAttempt, RefreshRefusal, RefreshVerdict},
        revocation::{BlacklistEntry, RETENTION_MARGIN, Revoked},
        session::{Device, EndReason, LineageSecret, Session},
        time::Timestamp,
    },
    store::{FeedEntry, Refreshed, Store},
};

use futures_util::future::join_all;

use crate::support::{
    after, assert_unchanged, attempt, create, create_all, ended_without_note, entries, live_policy,
    read, revoke_session, rich_session, rotate, seconds, session, text,
};

/// Returns the session as the domain rotates it.
fn rotated(session: &Session, attempt: &RefreshAttempt) -> Session {
    match session.judge_refresh(attempt) {
        RefreshVerdict::Rotate(next) => *next,
        other => panic!("the current token rotates: {other:?}"),
    }
}

fn device() -> Device {
    Device {
        user_agent: text("curl/8"),
        ip_address: text("192.0.2.1"),
        label: text(""),
        id: text("device 2"),
    }
}

/// Returns an attempt with the token before the current one.
fn with_previous_token(session: &Session, now: Timestamp) -> RefreshAttempt {
    RefreshAttempt { generation: session.lineage.generation - 1, ..attempt(session, now) }
}

pub async fn a_rotation_writes_what_the_domain_decides_and_nothing_else(store: &dyn Store) {
    let others = create_all(store, [session(1), rich_session(2)]).await;
    let before = create(store, rich_session(3)).await;
    let attempt = RefreshAttempt { device: Some(device()), ..attempt(&before, after(100)) };
    let expected = rotated(&before, &attempt);

    match store.refresh_session(attempt).await.unwrap() {
        Refreshed::Rotated { session, .. } => assert_eq!(*session, expected),
        other => panic!("{other:?}"),
    }
    assert_unchanged(store, &[expected]).await;
    assert_unchanged(store, &others).await;
}

pub async fn a_refresh_updates_the_device_if_one_is_given_and_keeps_it_otherwise(
    store: &dyn Store,
) {
    // PostgreSQL writes the rotations of these two sessions in different ways.
    let known = Session { device: rich_session(1).device, ..session(2) };
    for before in [create(store, rich_session(1)).await, create(store, known).await] {
        let kept = rotate(store, &before, after(2)).await;
        assert_eq!(read(store, &before).await.device, before.device);

        let unnamed = Device { id: text(""), ..device() };
        let with_device = RefreshAttempt { device: Some(unnamed), ..attempt(&kept, after(3)) };
        store.refresh_session(with_device).await.unwrap();
        let now = read(store, &before).await;
        let expected = Device { id: before.device.id.clone(), ..device() };
        assert_eq!(now.device, expected, "an empty label replaces the old one, but no empty id");

        let with_device = RefreshAttempt { device: Some(device()), ..attempt(&now, after(4)) };
        store.refresh_session(with_device).await.unwrap();
        assert_eq!(read(store, &before).await.device, device());
    }
}

pub async fn a_replay_changes_nothing(store: &dyn Store) {
    let rich = create(store, rich_session(1)).await;
    let current = rotate(store, &rich, after(20)).await;
    let entries_before = entries(store).await;
    let replay =
        RefreshAttempt { device: Some(device()), ..with_previous_token(&current, after(22)) };

    match store.refresh_session(replay).await.unwrap() {
        Refreshed::Replayed { session, position: Some(position) } => {
            assert_eq!(*session, current);
            assert!(
                position.seq >= entries_before[0].seq,
                "a replay waits for the entry of the rotation that it repeats"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_unchanged(store, &[current]).await;
    assert_eq!(entries(store).await, entries_before);
}

pub async fn replays_until_used_remain_possible_after_the_grace_until_the_next_rotation(
    store: &dyn Store,
) {
    let mut first = session(1);
    first.policy.replay = Replay::UntilUsed;
    first.policy.replay_limit = seconds(300);
    let first = create(store, first).await;
    let current = rotate(store, &first, after(20)).await;
    for now in [after(31), after(320)] {
        match store.refresh_session(with_previous_token(&current, now)).await.unwrap() {
            Refreshed::Replayed { session, .. } => assert_eq!(*session, current),
            other => panic!("{other:?}"),
        }
    }
    assert_unchanged(store, std::slice::from_ref(&current)).await;

    let next = rotate(store, &current, after(320)).await;
    let old = RefreshAttempt { generation: 1, ..attempt(&next, after(320)) };
    let reused = store.refresh_session(old).await.unwrap();
    let Refreshed::Ended { .. } = reused else {
        panic!("the next refresh token was used: {reused:?}")
    };
    let entry = entries(store).await.pop().unwrap();
    let ended = read(store, &next).await;
    assert_eq!(entry.expires_at, BlacklistEntry::expiry_for(&ended, after(320)));
    assert!(
        entry.expires_at >= after(620).plus(seconds(60)),
        "the last replay may have issued a token as late as this"
    );
}

pub async fn a_reuse_ends_the_session_and_stops_its_tokens(store: &dyn Store) {
    let there = create_all(store, [session(1), session(2)]).await;
    let current = rotate(store, &there[0], after(20)).await;
    let now = after(31);
    let ended = ended_without_note(now, EndReason::RefreshTokenReused);
    let expected = current.clone().end(ended.clone());

    let reused = store.refresh_session(with_previous_token(&current, now)).await.unwrap();
    let Refreshed::Ended { session, position } = reused else {
        panic!("the grace has passed: {reused:?}")
    };
    assert_eq!(*session, expected);
    let entry = BlacklistEntry::for_session(&current, &ended);
    assert_eq!(
        entries(store).await,
        [FeedEntry {
            seq: position.seq,
            revoked: entry.revoked,
            tenant: Some(entry.tenant),
            expires_at: entry.expires_at
        }]
    );
    assert_unchanged(store, &[expected, there[1].clone()]).await;
}

pub async fn a_refused_attempt_changes_nothing(store: &dyn Store) {
    let live = create(store, rich_session(1)).await;
    let ended = create(store, session(2)).await;
    revoke_session(store, &ended, after(3)).await;
    let ended = read(store, &ended).await;
    let ends_at_once =
        create(store, Session { idle_expires_at: after(90), expires_at: after(90), ..session(4) })
            .await;
    let entries_before = entries(store).await;

    let with_device =
        |session: &Session, now| RefreshAttempt { device: Some(device()), ..attempt(session, now) };
    let wrong_secret =
        RefreshAttempt { secret: LineageSecret([7; 16]), ..with_device(&live, after(5)) };
    let too_new =
        RefreshAttempt { generation: live.lineage.generation + 1, ..with_device(&live, after(5)) };
    let too_much = RefreshAttempt {
        scopes: vec![text("openid"), text("root")],
        ..with_device(&live, after(5))
    };
    let cases = [
        (wrong_secret, RefreshRefusal::Unknown),
        (too_new, RefreshRefusal::NeverIssued { current: live.lineage.generation }),
        (too_much, RefreshRefusal::ScopeNotGranted(text("root"))),
        (with_device(&ended, after(5)), RefreshRefusal::Ended),
        (with_device(&live, live.idle_expires_at), RefreshRefusal::ExpiredIdle),
        (with_device(&ends_at_once, after(90)), RefreshRefusal::ExpiredAbsolute),
    ];
    for (attempt, refusal) in cases {
        assert_eq!(store.refresh_session(attempt).await.unwrap(), Refreshed::Refused(refusal));
        assert_unchanged(store, &[live.clone(), ended.clone(), ends_at_once.clone()]).await;
        assert_eq!(entries(store).await, entries_before);
    }
}

pub async fn an_unknown_session_is_refused(store: &dyn Store) {
    let there = create(store, session(1)).await;
    let refreshed = store.refresh_session(attempt(&session(2), after(3))).await.unwrap();
    assert_eq!(refreshed, Refreshed::Refused(RefreshRefusal::Unknown));
    assert_unchanged(store, &[there]).await;
    assert_eq!(store.session(session(2).id).await.unwrap(), None);
}

pub async fn a_refresh_that_keeps_the_previous_access_token_adds_no_entry(store: &dyn Store) {
    let before = create(store, session(1)).await;
    let refreshed = store.refresh_session(attempt(&before, after(2))).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Rotated { position: None, .. }), "{refreshed:?}");
    assert_eq!(entries(store).await, []);
}

pub async fn an_access_token_that_a_refresh_revokes_is_stopped_until_it_expires(store: &dyn Store) {
    let mut current = session(1);
    current.policy.on_refresh = OnRefresh::RevokeAccessToken;
    current = create(store, current).await;
    let mut expected = vec![];
    for now in [after(30), after(40)] {
        let next_access_token_id = TokenId::new([now.seconds().to_le_bytes()[0]; 16]);
        let attempt = RefreshAttempt { next_access_token_id, ..attempt(&current, now) };
        let refreshed = store.refresh_session(attempt).await.unwrap();
        let Refreshed::Rotated { session, position: Some(position) } = refreshed else {
            panic!("a rotation with an entry was expected: {refreshed:?}")
        };
        expected.push((position.seq, current));
        current = *session;
    }
    let entries = entries(store).await;
    assert_eq!(entries.len(), expected.len());
    for (entry, (seq, before)) in entries.iter().zip(expected) {
        assert_eq!((entry.seq, &entry.revoked), (seq, &Revoked::Token(before.access_token_id)));
        let token_expires_at =
            before.policy.access_token_expiry(before.refreshed_at, before.idle_expires_at);
        assert!(
            entry.expires_at >= token_expires_at.plus(RETENTION_MARGIN),
            "{:?} for {before:?}",
            entry.expires_at
        );
        assert!(entry.expires_at <= after(40).plus(seconds(120)), "the entry is kept for too long");
    }
    assert_eq!(read(store, &current).await.ended, None, "only the token is stopped");
}

pub async fn a_session_that_reuses_its_refresh_token_is_refreshed_by_any_number_of_callers(
    store: &dyn Store,
) {
    let mut reusing = session(1);
    reusing.policy.refresh = RefreshMode::Reuse;
    let reusing = create(store, reusing).await;
    let attempts = (0..16_u8).map(|n| RefreshAttempt {
        next_access_token_id: TokenId::new([n; 16]),
        ..attempt(&reusing, after(u64::from(n)))
    });
    for refreshed in join_all(attempts.map(|attempt| store.refresh_session(attempt))).await {
        let Refreshed::Rotated { session, position: None } = refreshed.unwrap() else {
            panic!("each caller gets an access token")
        };
        assert_eq!(session.lineage, reusing.lineage, "and the same refresh token");
    }
    let now = read(store, &reusing).await;
    assert_eq!((now.lineage, now.revision), (reusing.lineage, reusing.revision + 16));
    let late = rotate(store, &now, after(300)).await;
    assert_eq!(late.idle_expires_at, after(900));
    assert_unchanged(store, &[late]).await;
}

pub async fn stricter_limits_are_written_at_a_refresh_and_end_a_session_that_exceeds_them(
    store: &dyn Store,
) {
    let there = create_all(store, [session(1), rich_session(2)]).await;
    for before in &there {
        let mut strict = live_policy(before);
        strict.session.idle_timeout = seconds(100);
        strict.session.access_token_ttl = seconds(20);
        strict.session.refresh_grace = seconds(1);
        strict.session.replay = Replay::Grace;
        strict.session.replay_limit = seconds(2);
        strict.absolute_lifetime = seconds(130);
        strict.reauthentication_extends = false;
        let live_policies = Arc::new(LivePolicies::among([&strict]));
        let under = |session: &Session, now| RefreshAttempt {
            live_policies: live_policies.clone(),
            ..attempt(session, now)
        };
        let Refreshed::Rotated { session: next, .. } =
            store.refresh_session(under(before, after(90))).await.unwrap()
        else {
            panic!("it is live by the stricter limits too")
        };
        assert_eq!(next.policy.idle_timeout, seconds(100));
        assert_eq!(next.expires_at, before.created_at.plus(seconds(130)));
        assert_eq!(next.earlier_tokens_expire_at, Some(before.last_token_expiry(after(90))));
        assert_eq!(read(store, before).await, *next);

        let refreshed = store.refresh_session(under(&next, after(100))).await.unwrap();
        let Refreshed::Rotated { session: last, .. } = refreshed else { panic!("{refreshed:?}") };
        assert_eq!(last.policy, next.policy, "nothing is left to limit");

        strict.absolute_lifetime = seconds(100);
        let live_policies = Arc::new(LivePolicies::among([&strict]));
        let late = RefreshAttempt { live_policies, ..attempt(&last, after(110)) };
        let Refreshed::Ended { session: ended, position } =
            store.refresh_session(late).await.unwrap()
        else {
            panic!("it has expired by the stricter limits")
        };
        let reason = EndReason::ExpiredAbsolute;
        assert_eq!(*ended, last.clone().end(ended_without_note(after(110), reason)));
        assert_eq!(read(store, before).await, *ended);
        let entry = entries(store).await.pop().unwrap();
        assert_eq!((entry.seq, entry.revoked), (position.seq, Revoked::Session(before.id)));
        assert_eq!(entry.expires_at, BlacklistEntry::expiry_for(&last, after(110)));
    }
}
