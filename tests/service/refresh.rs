//! Tests of refresh tokens: rotation, replay within the grace, reuse after it.

use countersign::proto::{
    CreateSessionRequest, Device, EndReason, InactiveReason, RefreshRequest, Replay, SessionState,
};
use countersign_test_support::{
    forge::claims,
    refusal::{Refusal, refused},
    server::{Home, Server, TICK, request, request_under, seconds, start_plus},
};
use futures_util::future::join_all;

/// The grace of every policy in these tests, in seconds.
const GRACE: u64 = 30;

pub async fn one_of_64_concurrent_refreshes_rotates_and_the_others_repeat_its_answer() {
    let server = Server::start().await;
    for policy in ["default", "strict"] {
        let first = server.create(request_under(policy, "alice")).await.unwrap();
        let answers = join_all((0..64).map(|_| server.refresh(&first.refresh))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();

        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1, "{policy}");
        let successor = &answers[0].now.refresh;
        assert!(
            answers.iter().all(|answer| answer.now.refresh == *successor),
            "{policy}: one lineage"
        );
        for answer in &answers {
            assert_eq!(server.verdict(&answer.now.access).await, Ok(()), "{policy}");
        }
        let next = server.refresh(successor).await.unwrap();
        assert!(!next.replayed, "{policy}");
        assert_eq!(next.now.session.state(), SessionState::Live);
    }
}

pub async fn a_replay_until_the_end_of_the_grace_repeats_the_refresh_token_and_changes_nothing() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    server.clock.advance(seconds(3));
    let next = server.refresh(&first.refresh).await.unwrap();
    assert!(!next.replayed);
    assert_eq!(next.now.session.refreshed_at, Some(start_plus(seconds(3))));

    for wait in [seconds(0), seconds(4), seconds(GRACE - 4)] {
        server.clock.advance(wait);
        let replay = server.refresh(&first.refresh).await.unwrap();
        assert!(replay.replayed);
        assert_eq!(replay.now.refresh, next.now.refresh);
        assert_eq!(
            replay.now.session, next.now.session,
            "the session is unchanged, and the grace is not extended"
        );
        assert_ne!(
            claims(&replay.now.access)["jti"],
            claims(&next.now.access)["jti"],
            "the access token is a new one"
        );
        for token in [&first.access, &next.now.access, &replay.now.access] {
            assert_eq!(server.verdict(token).await, Ok(()));
        }
    }
}

pub async fn a_replay_one_microsecond_past_the_grace_ends_the_session_and_revokes_its_tokens() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    let next = server.refresh(&first.refresh).await.unwrap().now;
    server.clock.advance(seconds(GRACE));
    let replay = server.refresh(&first.refresh).await.unwrap().now;
    server.clock.advance(TICK);

    assert_eq!(
        refused(server.refresh(&first.refresh).await),
        Refusal::unauthenticated("REFRESH_TOKEN_REUSED")
    );
    for token in [&first.access, &next.access, &replay.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
    }
    for token in [&next.refresh, &first.refresh] {
        assert_eq!(
            refused(server.refresh(token).await),
            Refusal::unauthenticated("SESSION_REVOKED")
        );
    }
    let session = server.session(&first.id()).await.unwrap();
    assert_eq!(session.state(), SessionState::Ended);
    assert_eq!(session.end_reason(), EndReason::RefreshTokenReused);
    assert_eq!(session.ended_at, Some(start_plus(seconds(GRACE) + TICK)));
    assert_eq!(server.rows().await.blacklist, 1);

    let server = server.restart().await;
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_refresh_by_a_token_two_generations_old_is_reuse_even_within_the_grace() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    let second = server.refresh(&first.refresh).await.unwrap().now;
    let third = server.refresh(&second.refresh).await.unwrap().now;
    assert_eq!(
        refused(server.refresh(&first.refresh).await),
        Refusal::unauthenticated("REFRESH_TOKEN_REUSED")
    );
    assert_eq!(server.verdict(&third.access).await, Err(InactiveReason::Revoked));
    assert_eq!(
        refused(server.refresh(&third.refresh).await),
        Refusal::unauthenticated("SESSION_REVOKED")
    );
}

pub async fn reuse_ends_only_the_session_of_the_reused_token() {
    let server = Server::start().await;
    let [victim, other] = [server.sign_in("alice").await, server.sign_in("alice").await];
    server.refresh(&victim.refresh).await.unwrap();
    server.clock.advance(seconds(GRACE) + TICK);
    assert_eq!(
        refused(server.refresh(&victim.refresh).await),
        Refusal::unauthenticated("REFRESH_TOKEN_REUSED")
    );
    assert_eq!(server.verdict(&other.access).await, Ok(()));
    assert!(server.refresh(&other.refresh).await.is_ok());
}

pub async fn only_one_access_token_is_active_if_a_refresh_revokes_the_former_one() {
    let server = Server::start().await;
    let first = server.create(request_under("strict", "alice")).await.unwrap();
    server.clock.advance(seconds(3));
    let next = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&first.access).await, Err(InactiveReason::Revoked));
    assert_eq!(server.verdict(&next.access).await, Ok(()));

    server.clock.advance(seconds(GRACE));
    let replay = server.refresh(&first.refresh).await.unwrap();
    assert!(replay.replayed);
    assert_eq!(replay.now.refresh, next.refresh);
    assert_eq!(claims(&replay.now.access)["jti"], claims(&next.access)["jti"]);
    assert_eq!(server.verdict(&replay.now.access).await, Ok(()));

    let last = server.refresh(&next.refresh).await.unwrap().now;
    for token in [&first.access, &next.access, &replay.now.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
    }
    assert_eq!(server.verdict(&last.access).await, Ok(()));
    let server = server.restart().await;
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Revoked));
    assert_eq!(server.verdict(&last.access).await, Ok(()));
}

pub async fn a_replay_always_yields_an_access_token_that_is_active() {
    let server = Server::start().await;
    for ttl in [2, 5, 30, 31] {
        let ttl = prost_types::Duration { seconds: ttl, nanos: 0 };
        let short = CreateSessionRequest {
            access_token_ttl: Some(ttl),
            ..request_under("strict", "alice")
        };
        let first = server.create(short).await.unwrap();
        let next = server.refresh(&first.refresh).await.unwrap().now;
        let grace = next.session.policy.unwrap().refresh_grace.unwrap().try_into().unwrap();
        server.clock.advance(grace);
        let replay = server.refresh(&first.refresh).await.unwrap();
        assert!(replay.replayed);
        assert_eq!(server.verdict(&replay.now.access).await, Ok(()), "{ttl:?}");
    }
}

pub async fn a_refresh_may_narrow_the_scopes_of_the_new_access_token_but_not_of_the_session() {
    let server = Server::start().await;
    let scopes = ["read", "write"].map(str::to_owned).to_vec();
    let first = server
        .create(CreateSessionRequest { scopes: scopes.clone(), ..request("alice") })
        .await
        .unwrap();
    let with = |token: &str, scopes: &[&str]| RefreshRequest {
        refresh_token: token.to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        device: None,
    };
    let narrow = server.exchange(with(&first.refresh, &["read"])).await.unwrap().now;
    assert_eq!(claims(&narrow.access)["scope"], "read");
    assert_eq!(narrow.session.scopes, scopes);
    let all = server.refresh(&narrow.refresh).await.unwrap().now;
    assert_eq!(claims(&all.access)["scope"], "read write");

    assert_eq!(
        refused(server.exchange(with(&all.refresh, &["read", "admin"])).await),
        Refusal::field("scopes")
    );
    assert_eq!(
        server.session(&first.id()).await.unwrap(),
        all.session,
        "a refusal changes nothing"
    );
    assert!(!server.refresh(&all.refresh).await.unwrap().replayed);
}

pub async fn a_refresh_replaces_the_device_only_if_the_request_has_one() {
    let server = Server::start().await;
    let device = |label: &str, id: &str, seen| Device {
        user_agent: "agent".to_owned(),
        ip_address: "2001:db8::1".to_owned(),
        label: label.to_owned(),
        device_id: id.to_owned(),
        last_seen_at: Some(start_plus(seconds(seen))),
        ..Default::default()
    };
    let first = server
        .create(CreateSessionRequest { device: Some(device("old", "1", 0)), ..request("alice") })
        .await
        .unwrap();
    server.clock.advance(seconds(1));
    let mut last = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(last.session.device, Some(device("old", "1", 1)));
    for (sent, kept) in [
        (device("new", "2", 0), device("new", "2", 2)),
        // Not every part of a client knows the identifier.
        (device("newer", "", 0), device("newer", "2", 3)),
    ] {
        server.clock.advance(seconds(1));
        let request = RefreshRequest {
            refresh_token: last.refresh,
            device: Some(sent),
            ..Default::default()
        };
        last = server.exchange(request).await.unwrap().now;
        assert_eq!(last.session.device, Some(kept));
        assert_eq!(server.session(&first.id()).await.unwrap(), last.session);
    }
}

/// A policy for phones, which may have no network for hours after a refresh.
const UNTIL_USED: &str = "[policies.default]\nreplay = 'until_used'\n[tenants]";
const DAY: u64 = 86_400;

pub async fn a_refresh_token_can_be_replayed_for_a_day_until_its_successor_is_used() {
    let server = Home::new(UNTIL_USED).await.start().await;
    let first = server.create(request_under("default", "alice")).await.unwrap();
    // The answer is lost on its way to the client.
    let lost = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(lost.session.policy.clone().unwrap().replay(), Replay::UntilUsed);
    let mut replays = vec![];
    let mut waited = 0;
    for until in [12, GRACE + 1, 3600, DAY] {
        server.clock.advance(seconds(until - waited));
        waited = until;
        let replay = server.refresh(&first.refresh).await.unwrap();
        assert!(replay.replayed, "after {until} s");
        assert_eq!(replay.now.refresh, lost.refresh, "after {until} s");
        assert_eq!(replay.now.session, lost.session, "the session is unchanged");
        assert_eq!(server.verdict(&replay.now.access).await, Ok(()), "after {until} s");
        replays.push(replay.now);
    }
    // The last answer has arrived, and the client uses the refresh token in it.
    let last = replays.pop().unwrap();
    let next = server.refresh(&last.refresh).await.unwrap();
    assert!(!next.replayed);
    assert_eq!(server.verdict(&last.access).await, Ok(()));
    assert_eq!(server.verdict(&next.now.access).await, Ok(()));

    let reused = Refusal::unauthenticated("REFRESH_TOKEN_REUSED");
    assert_eq!(refused(server.refresh(&first.refresh).await), reused, "its successor was used");
    for token in [&last.access, &next.now.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
    }
}

pub async fn a_replay_one_microsecond_past_the_replay_limit_ends_the_session_and_its_tokens() {
    let server = Home::new(UNTIL_USED).await.start().await;
    let first = server.create(request_under("default", "alice")).await.unwrap();
    server.refresh(&first.refresh).await.unwrap();
    server.clock.advance(seconds(DAY));
    let replay = server.refresh(&first.refresh).await.unwrap().now;
    server.clock.advance(TICK);
    let reused = Refusal::unauthenticated("REFRESH_TOKEN_REUSED");
    assert_eq!(refused(server.refresh(&first.refresh).await), reused);
    assert_eq!(server.verdict(&replay.access).await, Err(InactiveReason::Revoked));
    let session = server.session(&first.id()).await.unwrap();
    assert_eq!(session.end_reason(), EndReason::RefreshTokenReused);
}

pub async fn a_session_keeps_the_replay_policy_under_which_it_was_created() {
    let server = Home::new(UNTIL_USED).await.start().await;
    let phone = server.sign_in("alice").await;
    let home = server.stop().await;
    let server = home.with("").start().await;
    let lost = server.refresh(&phone.refresh).await.unwrap().now;
    let browser = server.sign_in("alice").await;
    server.refresh(&browser.refresh).await.unwrap();
    server.clock.advance(seconds(GRACE) + TICK);
    let replay = server.refresh(&phone.refresh).await.unwrap();
    assert_eq!((replay.replayed, &replay.now.refresh), (true, &lost.refresh));
    let reused = Refusal::unauthenticated("REFRESH_TOKEN_REUSED");
    assert_eq!(refused(server.refresh(&browser.refresh).await), reused);
}
