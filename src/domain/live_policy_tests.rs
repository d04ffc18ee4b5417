//! Tests of the limits that reach live sessions.

use std::{sync::Arc, time::Duration};

use super::{
    super::{
        ids::TokenId,
        key::RefreshKeyId,
        policy::{OnQuota, tests::policy},
        refresh::{RefreshAttempt, RefreshDecision, RefreshVerdict},
        revocation::RETENTION_MARGIN,
        session::{
            EndReason, State,
            tests::{START, session},
        },
    },
    *,
};

const TICK: Duration = Duration::from_micros(1);

fn after(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

/// A policy that limits [`session`] in nothing.
fn loose() -> Policy {
    let mut policy = policy(60, 600, 1000, 10);
    policy.session.name = session().policy.name;
    policy.session.replay = Replay::UntilUsed;
    policy.session.replay_limit = Duration::from_secs(300);
    policy.on_quota = OnQuota::EvictOldest;
    policy.apply_to_live = true;
    policy
}

fn live(change: impl FnOnce(&mut Policy)) -> LivePolicies {
    let mut policy = loose();
    change(&mut policy);
    LivePolicies::among([&policy])
}

fn attempt(session: &Session, live: &LivePolicies, now: Timestamp) -> RefreshAttempt {
    RefreshAttempt {
        session_id: session.id,
        generation: session.lineage.generation,
        secret: session.lineage.secret,
        scopes: vec![],
        device: None,
        reach: Arc::default(),
        now,
        next_access_token_id: TokenId::new([4; 16]),
        next_key: RefreshKeyId([2; 8]),
        live_policies: Arc::new(live.clone()),
    }
}

#[test]
fn a_policy_reaches_a_session_only_if_it_says_so_and_is_stricter() {
    let session = session();
    assert_eq!(session.tightened(&LivePolicies::default(), START), None);
    assert_eq!(session.tightened(&live(|_| {}), START), None);
    let shorter = |policy: &mut Policy| policy.session.idle_timeout = Duration::from_secs(100);
    assert!(session.tightened(&live(shorter), START).is_some());
    let silent = live(|policy| {
        shorter(policy);
        policy.apply_to_live = false;
    });
    assert_eq!(session.tightened(&silent, START), None);
    let other = live(|policy| {
        shorter(policy);
        policy.session.name = "other".to_owned().try_into().unwrap();
    });
    assert_eq!(session.tightened(&other, START), None);
    let longer = live(|policy| {
        policy.session.access_token_ttl = Duration::from_secs(900);
        policy.session.idle_timeout = Duration::from_secs(9000);
        policy.session.refresh_grace = Duration::from_secs(90);
        policy.absolute_lifetime = Duration::from_secs(90_000);
        policy.reauthentication_extends = true;
        policy.session.refresh = RefreshMode::Reuse;
    });
    assert_eq!(session.tightened(&longer, START), None, "limits never become looser");
}

#[test]
fn each_limit_becomes_the_stricter_one_of_the_two() {
    let mut session = session();
    session.policy.replay = Replay::UntilUsed;
    session.policy.reauthentication_lifetime = Some(Duration::from_secs(1000));
    let seconds = Duration::from_secs;
    let strict = live(|policy| {
        policy.session.access_token_ttl = seconds(6);
        policy.session.idle_timeout = seconds(100);
        policy.session.replay = Replay::Grace;
        policy.session.replay_limit = seconds(20);
        policy.session.on_refresh = OnRefresh::RevokeAccessToken;
        policy.absolute_lifetime = seconds(500);
    });
    let next = session.tightened(&strict, START).unwrap();
    let expected = SessionPolicy {
        access_token_ttl: seconds(6),
        idle_timeout: seconds(100),
        refresh_grace: seconds(5),
        replay: Replay::Grace,
        replay_limit: seconds(20),
        on_refresh: OnRefresh::RevokeAccessToken,
        reauthentication_lifetime: None,
        ..session.policy.clone()
    };
    assert_eq!(next.policy, expected, "the grace stays shorter than the lifetime of a token");
    assert_eq!((next.idle_expires_at, next.expires_at), (after(100), after(500)));
    assert_eq!(next.tightened(&strict, START), None, "it has them now");

    let shorter = live(|policy| {
        policy.reauthentication_extends = true;
        policy.absolute_lifetime = seconds(700);
    });
    let next = session.tightened(&shorter, START).unwrap();
    assert_eq!(next.policy.reauthentication_lifetime, Some(seconds(700)));
}

/// Revoking the access token at each refresh does not go with late replays.
#[test]
fn a_session_never_gets_limits_that_contradict_each_other() {
    let mut session = session();
    session.policy.replay = Replay::UntilUsed;
    let strict = live(|policy| {
        policy.session.refresh = RefreshMode::Reuse;
        policy.session.on_refresh = OnRefresh::RevokeAccessToken;
    });
    assert_eq!(session.tightened(&strict, START).unwrap().policy.replay, Replay::Grace);
}

#[test]
fn a_session_that_reused_its_refresh_token_rotates_it_under_the_configured_limits() {
    let mut session = session();
    session.policy.refresh = RefreshMode::Reuse;
    session.policy.refresh_grace = Duration::ZERO;
    assert_eq!(
        session.tightened(&live(|policy| policy.session.refresh = RefreshMode::Reuse), START),
        None
    );
    let next = session.tightened(&live(|_| {}), START).unwrap().policy;
    assert_eq!(next.refresh, RefreshMode::Rotate);
    assert_eq!(next.replay_window(), Duration::from_secs(300), "as configured");
}

#[test]
fn the_lifetime_is_counted_from_the_last_reauthentication_that_extended_it() {
    let mut session = session();
    session.extended_at = Some(after(400));
    session.expires_at = after(1400);
    let shorter = live(|policy| policy.absolute_lifetime = Duration::from_secs(600));
    assert_eq!(session.tightened(&shorter, START).unwrap().expires_at, after(1000));
    session.expires_at = after(900);
    assert_eq!(session.tightened(&shorter, START), None, "never later than it was");
}

#[test]
fn a_refresh_writes_the_stricter_limits_into_the_session() {
    let session = session();
    let strict = live(|policy| {
        policy.session.idle_timeout = Duration::from_secs(100);
        policy.absolute_lifetime = Duration::from_secs(150);
    });
    let now = after(99);
    let RefreshVerdict::Rotate(next) = session.judge_refresh(&attempt(&session, &strict, now))
    else {
        panic!("rotates")
    };
    assert_eq!(next.policy.idle_timeout, Duration::from_secs(100));
    assert_eq!((next.idle_expires_at, next.expires_at), (after(150), after(150)));
}

#[test]
fn a_session_that_has_expired_by_the_stricter_limits_ends_at_its_refresh_for_that_reason() {
    let session = session();
    let idle = live(|policy| policy.session.idle_timeout = Duration::from_secs(100));
    let absolute = live(|policy| {
        policy.absolute_lifetime = Duration::from_secs(100);
        policy.session.idle_timeout = Duration::from_secs(100);
    });
    for (strict, reason) in [(idle, EndReason::ExpiredIdle), (absolute, EndReason::ExpiredAbsolute)]
    {
        let judge = |now| session.judge_refresh(&attempt(&session, &strict, now));
        assert!(matches!(judge(after(100).minus(TICK)), RefreshVerdict::Rotate(_)));
        assert_eq!(judge(after(100)), RefreshVerdict::Expire(reason));

        let Ok::<_, std::convert::Infallible>(RefreshDecision::End { session: ended, entry }) =
            RefreshDecision::of(
                &attempt(&session, &strict, after(101)),
                Some(session.clone()),
                |_| Ok(false),
            )
        else {
            panic!("ends")
        };
        assert_eq!(ended.state(after(101)), State::Ended { at: after(101), reason });
        assert_eq!(entry.reason, reason);
        assert!(entry.expires_at >= after(161).plus(RETENTION_MARGIN), "its tokens are stopped");
    }
}

#[test]
fn the_previous_token_is_judged_by_the_limits_under_which_the_current_one_was_issued() {
    let mut session = session();
    session.lineage.generation = 2;
    let strict = live(|policy| policy.session.refresh_grace = Duration::from_secs(1));
    let mut previous = attempt(&session, &strict, after(10));
    previous.generation = 1;
    assert_eq!(session.judge_refresh(&previous), RefreshVerdict::Replay);
    previous.now = after(10).plus(TICK);
    assert_eq!(session.judge_refresh(&previous), RefreshVerdict::Reuse);
}

/// An entry that ends the session after the limits became stricter must also stop the tokens that
/// were issued under the longer ones.
#[test]
fn an_entry_outlives_the_tokens_that_were_issued_under_earlier_limits() {
    let session = session();
    let issued_at = after(20);
    let RefreshVerdict::Rotate(session) =
        session.judge_refresh(&attempt(&session, &LivePolicies::default(), issued_at))
    else {
        panic!("rotates")
    };
    let long_token = session.policy.access_token_expiry(issued_at, session.idle_expires_at);
    let strict = live(|policy| {
        policy.session.access_token_ttl = Duration::from_secs(5);
        policy.session.idle_timeout = Duration::from_secs(30);
        policy.session.refresh_grace = Duration::ZERO;
    });
    let now = after(21);
    let RefreshVerdict::Rotate(next) = session.judge_refresh(&attempt(&session, &strict, now))
    else {
        panic!("rotates")
    };
    assert!(next.policy.access_token_expiry(now, next.idle_expires_at) < long_token);
    assert!(next.last_token_expiry(now) >= long_token);
    // The limits may become stricter once more.
    let stricter = live(|policy| {
        policy.session.access_token_ttl = Duration::from_secs(2);
        policy.session.refresh_grace = Duration::ZERO;
    });
    let RefreshVerdict::Rotate(last) = next.judge_refresh(&attempt(&next, &stricter, now)) else {
        panic!("rotates")
    };
    assert!(last.last_token_expiry(now) >= long_token);
}
