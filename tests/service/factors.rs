//! Tests of the times at which authentication methods were verified, and of demands for recent ones.

use std::{collections::BTreeMap, time::Duration};

use countersign::{
    domain::claims::AMR_VERIFIED_AT,
    proto::{
        CreateSessionRequest, FactorDemand, InactiveReason, ReauthenticateRequest, ValidateRequest,
        ValidateView, reauthenticate_request::Session::SessionId,
    },
};
use countersign_test_support::{
    forge::claims,
    refusal::{Refusal, refused},
    server::{START, Server, SignedIn, TICK, at, request, seconds, start_plus},
};
use prost_types::Timestamp;
use serde_json::json;

use super::gateways::post;

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn times(times: &[(&str, Timestamp)]) -> BTreeMap<String, Timestamp> {
    times.iter().map(|(method, at)| ((*method).to_owned(), *at)).collect()
}

/// Signs alice in with methods and their times.
async fn sign_in(server: &Server, amr: &[&str], verified: &[(&str, Timestamp)]) -> SignedIn {
    let request = CreateSessionRequest {
        amr: texts(amr),
        amr_verified_at: times(verified),
        ..request("alice")
    };
    server.create(request).await.unwrap()
}

fn within(age: Duration) -> Option<prost_types::Duration> {
    Some(age.try_into().unwrap())
}

/// Validates a token that must have been issued after these methods were verified.
async fn demand(
    server: &Server,
    access_token: &str,
    factors: &[(&str, Option<prost_types::Duration>)],
) -> Result<(), InactiveReason> {
    let factor = |&(method, max_age): &(&str, _)| FactorDemand { method: method.into(), max_age };
    let request = ValidateRequest {
        access_token: access_token.to_owned(),
        factors: factors.iter().map(factor).collect(),
        ..Default::default()
    };
    server.demand(request).await
}

pub async fn the_time_of_each_method_is_kept_to_the_microsecond_and_shown_in_whole_seconds() {
    let server = Server::start().await;
    let earlier = at(START.minus(seconds(90) + TICK));
    let created =
        sign_in(&server, &["pwd", "otp", "sms"], &[("otp", at(START)), ("pwd", earlier)]).await;
    let kept = times(&[("otp", at(START)), ("pwd", earlier)]);
    assert_eq!(created.session.amr_verified_at, kept);
    assert_eq!(server.session(&created.id()).await.unwrap().amr_verified_at, kept);
    let refreshed = server.refresh(&created.refresh).await.unwrap().now;
    assert_eq!(refreshed.session.amr_verified_at, kept);

    let whole = |at: Timestamp| Timestamp { nanos: 0, ..at };
    let claim = json!({ "otp": START.seconds(), "pwd": earlier.seconds });
    for access in [&created.access, &refreshed.access] {
        assert_eq!(claims(access)[AMR_VERIFIED_AT], claim);
        let asked = ValidateRequest { access_token: access.clone(), ..Default::default() };
        let full = ValidateRequest { view: ValidateView::Full.into(), ..asked.clone() };
        for asked in [asked, full] {
            let answer = server.validate(asked).await.unwrap();
            let shown = times(&[("otp", whole(at(START))), ("pwd", whole(earlier))]);
            assert_eq!(answer.amr_verified_at, shown);
        }
        let answer = post(server.http, "/oauth2/introspect", &[], &format!("token={access}")).await;
        let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer[AMR_VERIFIED_AT], claim);
    }

    let plain = sign_in(&server, &["pwd"], &[]).await;
    assert!(plain.session.amr_verified_at.is_empty());
    assert!(!claims(&plain.access).contains_key(AMR_VERIFIED_AT), "tokens do not grow");
}

pub async fn a_factor_is_recent_enough_up_to_the_demanded_age() {
    let server = Server::start().await;
    let verified = at(START.floor_to_second());
    let session = sign_in(&server, &["pwd", "hwk"], &[("hwk", verified)]).await;
    server.clock.jump_to(START.floor_to_second().plus(seconds(100)));
    let unmet = Err(InactiveReason::StepUpRequired);
    let (just, too_short) = (within(seconds(100)), within(seconds(100) - TICK));
    for (factors, expected) in [
        (&[("hwk", just)][..], Ok(())),
        (&[("hwk", too_short)], unmet),
        (&[("hwk", None)], Ok(())),
        (&[("pwd", None)], Ok(())),
        // No time is known for the password.
        (&[("pwd", within(seconds(1_000_000)))], unmet),
        (&[("otp", None)], unmet),
        (&[("HWK", None)], unmet),
        (&[("hwk", just), ("pwd", None)], Ok(())),
        (&[("hwk", just), ("otp", None)], unmet),
        (&[("hwk", just), ("hwk", too_short)], unmet),
    ] {
        assert_eq!(demand(&server, &session.access, factors).await, expected, "{factors:?}");
    }
}

pub async fn a_reauthentication_keeps_only_the_factors_that_the_caller_names_again() {
    let server = Server::start().await;
    let session =
        sign_in(&server, &["pwd", "otp"], &[("pwd", at(START)), ("otp", at(START))]).await;
    server.clock.advance(seconds(1000));
    let now = start_plus(seconds(1000));
    let again = async |amr: &[&str], verified: &[(&str, Timestamp)]| -> SignedIn {
        let request = ReauthenticateRequest {
            session: Some(SessionId(session.id())),
            amr: texts(amr),
            amr_verified_at: times(verified),
            ..Default::default()
        };
        let answer = server.client().reauthenticate(request).await.unwrap().into_inner();
        (answer.session, answer.tokens).into()
    };
    let both = again(&["pwd", "hwk"], &[("pwd", at(START)), ("hwk", now)]).await;
    let kept = times(&[("pwd", at(START)), ("hwk", now)]);
    assert_eq!(both.session.amr_verified_at, kept);
    assert_eq!(server.session(&session.id()).await.unwrap(), both.session);
    let recent = within(seconds(300));
    assert_eq!(demand(&server, &both.access, &[("hwk", recent), ("pwd", None)]).await, Ok(()));
    for factors in [&[("pwd", recent)][..], &[("otp", None)]] {
        let refused = demand(&server, &both.access, factors).await;
        assert_eq!(refused, Err(InactiveReason::StepUpRequired), "{factors:?}");
    }
    // A method keeps no earlier time unless the caller passes it.
    let one = again(&["pwd", "hwk"], &[("hwk", now)]).await;
    assert_eq!(one.session.amr_verified_at, times(&[("hwk", now)]));
    let none = again(&["pwd"], &[]).await;
    assert!(none.session.amr_verified_at.is_empty());
}

pub async fn a_time_in_the_future_or_after_the_authentication_is_refused() {
    let server = Server::start().await;
    let latest = START.plus(seconds(5));
    let (before, malformed) = (START.minus(seconds(10)), Timestamp { seconds: 0, nanos: -1 });
    for (authenticated_at, method, verified_at, is_allowed) in [
        (None, "otp", at(latest), true),
        (None, "otp", at(latest.plus(TICK)), false),
        (Some(before), "otp", at(before), true),
        (Some(before), "otp", at(before.plus(TICK)), false),
        (Some(latest), "otp", at(latest), true),
        (None, "pwd", at(START), false),
        (None, "ot", at(START), false),
        (None, "", at(START), false),
        (None, "otp", malformed, false),
    ] {
        let created = server
            .create(CreateSessionRequest {
                amr: texts(&["otp"]),
                amr_verified_at: times(&[(method, verified_at)]),
                authenticated_at: authenticated_at.map(at),
                ..request("alice")
            })
            .await;
        match is_allowed {
            true => assert!(created.is_ok(), "{method} {verified_at}"),
            false => assert_eq!(refused(created), Refusal::field("amr_verified_at")),
        }
    }
    let session = server.sign_in("alice").await;
    for (authenticated_at, method, verified_at) in [
        (None, "otp", at(latest.plus(TICK))),
        (Some(START), "otp", at(START.plus(TICK))),
        (None, "pwd", at(START)),
    ] {
        let again = ReauthenticateRequest {
            session: Some(SessionId(session.id())),
            amr: texts(&["otp"]),
            amr_verified_at: times(&[(method, verified_at)]),
            authenticated_at: authenticated_at.map(at),
            ..Default::default()
        };
        let refusal = refused(server.client().reauthenticate(again).await);
        assert_eq!(refusal, Refusal::field("amr_verified_at"));
    }
    assert_eq!(server.session(&session.id()).await.unwrap(), session.session);
}

pub async fn an_invalid_demand_for_a_factor_is_refused_with_its_field() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let factor = |method: &str, max_age| FactorDemand { method: method.to_owned(), max_age };
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    for (factors, field) in [
        (vec![factor("", None)], "factors[0].method"),
        (vec![factor("pwd", None), factor(&"x".repeat(65), None)], "factors[1].method"),
        (vec![factor("pwd", negative)], "factors[0].max_age"),
        (vec![factor("pwd", None); 17], "factors"),
    ] {
        let access_token = session.access.clone();
        let asked = ValidateRequest { access_token, factors, ..Default::default() };
        assert_eq!(refused(server.validate(asked).await), Refusal::field(field));
    }
    let most = vec![("x", None); 16];
    let refused = demand(&server, &session.access, &most).await;
    assert_eq!(refused, Err(InactiveReason::StepUpRequired), "16 demands are allowed");
}
