//! Tests of the lifetimes of sessions, which are exact to the microsecond, and of access tokens,
//! which are exact to the second.

use std::time::Duration;

use countersign::proto::{
    CreateSessionRequest, EndReason, InactiveReason, SessionState, SessionState::Live,
    ValidateRequest,
};
use countersign_test_support::{
    forge::claims,
    refusal::{Refusal, refused},
    server::{
        Home, START, Server, TICK, at, of_token, request, request_under, seconds, start_plus,
    },
};

/// The limits of policy `short`, in seconds.
const TTL: u64 = 60;
const IDLE: u64 = 300;
const ABSOLUTE: u64 = 600;

async fn state(
    server: &Server,
    id: &str,
) -> (SessionState, EndReason, Option<prost_types::Timestamp>) {
    let session = server.session(id).await.unwrap();
    (session.state(), session.end_reason(), session.ended_at)
}

pub async fn a_session_ends_at_its_idle_expiry_to_the_microsecond() {
    let server = Server::start().await;
    let [kept, lost] = [
        server.create(request_under("short", "alice")).await.unwrap(),
        server.create(request_under("short", "bob")).await.unwrap(),
    ];
    let edge = start_plus(seconds(IDLE));
    assert_eq!(lost.session.idle_expires_at, Some(edge));
    assert_eq!(lost.tokens.refresh_token_expires_at, Some(edge));

    server.clock.advance(seconds(IDLE) - TICK);
    assert_eq!(state(&server, &lost.id()).await, (Live, EndReason::Unspecified, None));
    let kept = server.refresh(&kept.refresh).await.unwrap().now;
    assert_eq!(
        kept.session.idle_expires_at,
        Some(start_plus(seconds(2 * IDLE) - TICK)),
        "a refresh moves the idle expiry"
    );

    server.clock.advance(TICK);
    assert_eq!(
        refused(server.refresh(&lost.refresh).await),
        Refusal::unauthenticated("SESSION_EXPIRED_IDLE")
    );
    assert_eq!(
        state(&server, &lost.id()).await,
        (SessionState::Ended, EndReason::ExpiredIdle, Some(edge))
    );
    assert_eq!(server.rows().await.blacklist, 0, "an expiry adds no blacklist entry");
}

pub async fn a_session_ends_at_its_absolute_expiry_to_the_microsecond_despite_refreshes() {
    let server = Server::start().await;
    let mut pair = vec![];
    for subject in ["alice", "bob"] {
        pair.push(server.create(request_under("short", subject)).await.unwrap());
    }
    for _ in 0..2 {
        server.clock.advance(seconds(250));
        for session in &mut pair {
            *session = server.refresh(&session.refresh).await.unwrap().now;
        }
    }
    let edge = start_plus(seconds(ABSOLUTE));
    assert_eq!(pair[0].session.idle_expires_at, Some(edge), "never past the absolute end");
    assert_eq!(pair[0].session.expires_at, Some(edge));

    server.clock.advance(seconds(ABSOLUTE - 500) - TICK);
    let last = server.refresh(&pair[0].refresh).await.unwrap().now;
    assert_eq!(last.session.state(), Live);
    server.clock.advance(TICK);
    for token in [&last.refresh, &pair[1].refresh] {
        assert_eq!(
            refused(server.refresh(token).await),
            Refusal::unauthenticated("SESSION_EXPIRED_ABSOLUTE")
        );
    }
    let ended = (SessionState::Ended, EndReason::ExpiredAbsolute, Some(edge));
    assert_eq!(state(&server, &last.id()).await, ended);
}

pub async fn an_access_token_is_active_until_the_second_of_its_expiry() {
    let server = Server::start().await;
    let created = server.create(request_under("short", "alice")).await.unwrap();
    let edge = START.floor_to_second().plus(seconds(TTL));
    assert_eq!(created.tokens.access_token_expires_at, Some(at(edge)));
    assert_eq!(claims(&created.access)["exp"], edge.seconds());
    assert_eq!(claims(&created.access)["iat"], START.seconds());

    server.clock.advance(edge.since(START) - TICK);
    assert_eq!(server.verdict(&created.access).await, Ok(()));
    server.clock.advance(TICK);
    assert_eq!(server.verdict(&created.access).await, Err(InactiveReason::Expired));
}

pub async fn an_access_token_never_outlives_the_absolute_expiry_of_its_session() {
    let server = Server::start().await;
    let lifetime = prost_types::Duration { seconds: 30, nanos: 0 };
    let created = server
        .create(CreateSessionRequest {
            max_lifetime: Some(lifetime),
            ..request_under("short", "alice")
        })
        .await
        .unwrap();
    assert_eq!(created.session.expires_at, Some(start_plus(seconds(30))));
    assert_eq!(
        created.tokens.access_token_expires_at,
        Some(at(START.plus(seconds(30)).floor_to_second()))
    );

    server.clock.advance(seconds(20));
    let next = server.refresh(&created.refresh).await.unwrap().now;
    assert_eq!(next.tokens.access_token_expires_at, created.tokens.access_token_expires_at);
    server.clock.advance(seconds(10));
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Expired));
}

pub async fn a_repeated_creation_returns_the_same_tokens_and_extends_no_lifetime() {
    let server = Server::start().await;
    let create =
        CreateSessionRequest { request_id: "once".to_owned(), ..request_under("short", "alice") };
    let first = server.create(create.clone()).await.unwrap();
    server.clock.advance(seconds(IDLE - 10));
    let late = server.create(create.clone()).await.unwrap();
    assert_eq!(
        (&late.access, &late.refresh, &late.session),
        (&first.access, &first.refresh, &first.session)
    );
    assert_eq!(server.verdict(&late.access).await, Err(InactiveReason::Expired));
    server.clock.advance(seconds(10));
    assert_eq!(
        refused(server.create(create).await),
        Refusal::unauthenticated("SESSION_EXPIRED_IDLE")
    );
}

pub async fn an_authentication_is_recent_enough_up_to_the_demanded_age() {
    let server = Server::start().await;
    let created = server
        .create(CreateSessionRequest {
            authenticated_at: Some(at(START.floor_to_second())),
            ..request("alice")
        })
        .await
        .unwrap();
    let within = |age: Duration| ValidateRequest {
        access_token: created.access.clone(),
        max_authentication_age: Some(age.try_into().unwrap()),
        ..Default::default()
    };
    server.clock.jump_to(START.floor_to_second().plus(seconds(100)));
    assert_eq!(server.demand(within(seconds(100))).await, Ok(()));
    assert_eq!(
        server.demand(within(seconds(100) - TICK)).await,
        Err(InactiveReason::StepUpRequired)
    );
}

pub async fn a_token_issued_within_the_last_second_of_a_session_is_already_expired() {
    let server = Server::start().await;
    let lifetime = prost_types::Duration { seconds: 30, nanos: 0 };
    let create =
        CreateSessionRequest { max_lifetime: Some(lifetime), ..request_under("short", "alice") };
    let created = server.create(create).await.unwrap();
    server.clock.advance(seconds(30) - TICK);
    let last = server.refresh(&created.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&last.access).await, Err(InactiveReason::Expired));
    server.revoke(of_token(&last.access)).await.expect("the token is authentic");
}

pub async fn a_session_may_live_for_a_hundred_years() {
    let century = seconds(36_500 * 86_400);
    let longest =
        "[policies.default]\nidle_timeout = '36500d'\nabsolute_lifetime = '36500d'\n[tenants]";
    let server = Home::new(longest).await.start().await;
    let first = server.sign_in("alice").await;
    assert_eq!(first.session.idle_expires_at, Some(start_plus(century)));
    server.clock.advance(century - TICK);
    let last = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(last.session.idle_expires_at, Some(start_plus(century)));
    server.clock.advance(TICK);
    assert_eq!(
        refused(server.refresh(&last.refresh).await),
        Refusal::unauthenticated("SESSION_EXPIRED_ABSOLUTE")
    );
}
