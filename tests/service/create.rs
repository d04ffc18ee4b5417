//! Tests of CreateSession: defaults, the settings of tenants and policies, idempotency, quotas.

use countersign::{
    domain::claims::RESERVED,
    proto::{
        CreateSessionRequest, Device, EncodedStruct, EndReason, InactiveReason, OnRefresh, Replay,
        Session, SessionState, ValidateRequest, ValidateView,
    },
};
use countersign_test_support::{
    forge::claims,
    refusal::{Refusal, refused},
    server::{
        Home, START, Server, SignedIn, TICK, at, of_token, request, request_under, seconds,
        start_plus,
    },
};
use futures_util::future::join_all;
use prost_types::{Duration, ListValue, Struct, Value, value::Kind};
use tonic::Status;

use crate::callers::caller;

fn object(members: &[(&str, Value)]) -> Struct {
    Struct {
        fields: members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}

/// Changes one field of a request.
type Change = fn(&mut CreateSessionRequest);

fn span(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

pub async fn a_bare_request_gets_the_defaults() {
    let server = Server::start().await;
    let created = server
        .create(CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() })
        .await
        .unwrap();
    let session = &created.session;
    assert_eq!(session.audience, ["https://auth.test"]);
    assert_eq!((&*session.tenant, &*session.client_id, session.scopes.len()), ("", "", 0));
    assert_eq!(session.state(), SessionState::Live);
    for instant in [session.created_at, session.refreshed_at, session.authenticated_at] {
        assert_eq!(instant, Some(at(START)));
    }
    assert_eq!(session.idle_expires_at, Some(start_plus(seconds(14 * 86_400))));
    assert_eq!(session.expires_at, Some(start_plus(seconds(90 * 86_400))));
    let policy = session.policy.as_ref().unwrap();
    assert_eq!(
        (&*policy.name, policy.access_token_ttl, policy.refresh_grace),
        ("default", span(600), span(30))
    );
    assert_eq!((policy.replay(), policy.replay_limit), (Replay::Grace, span(86_400)));
    assert_eq!(policy.on_refresh(), OnRefresh::KeepAccessToken);
    assert_eq!(created.tokens.token_type, "Bearer");
    assert_eq!(server.session(&created.id()).await.unwrap(), *session);
    let token = claims(&created.access);
    assert_eq!(token["sid"], created.id());
    assert!(
        !token.contains_key("tenant") && !token.contains_key("scope") && !token.contains_key("nbf")
    );
}

pub async fn a_session_identifier_contains_the_time_of_its_creation() {
    let server = Server::start().await;
    let id: countersign::domain::ids::SessionId =
        server.sign_in("alice").await.id().parse().unwrap();
    assert_eq!(id.created_millis(), START.millis());
}

pub async fn a_tenant_has_the_policy_and_the_audiences_that_the_configuration_gives_it() {
    let server = Server::start().await;
    let limited = |audience: &[&str]| CreateSessionRequest {
        tenant: "limited".to_owned(),
        audience: audience.iter().map(ToString::to_string).collect(),
        ..request("alice")
    };
    let all = server.create(limited(&[])).await.unwrap().session;
    assert_eq!(all.audience, ["https://orders.test", "https://stock.test"]);
    assert_eq!(all.policy.unwrap().name, "short");
    let one = server.create(limited(&["https://stock.test"])).await.unwrap();
    assert_eq!(claims(&one.access)["aud"], serde_json::json!(["https://stock.test"]));
    let named = CreateSessionRequest { policy: "strict".to_owned(), ..limited(&[]) };
    assert_eq!(server.create(named).await.unwrap().session.policy.unwrap().name, "strict");
    let foreign = limited(&["https://stock.test", "https://auth.test"]);
    assert_eq!(refused(server.create(foreign).await), Refusal::field("audience[1]"));
    assert_eq!(
        refused(server.create(request_under("none", "alice")).await),
        Refusal::field("policy")
    );
    assert_eq!(server.rows().await.sessions, 3);
}

pub async fn a_request_may_only_shorten_the_limits_of_the_policy() {
    let server = Server::start().await;
    let short = |ttl: Option<Duration>, lifetime: Option<Duration>| CreateSessionRequest {
        access_token_ttl: ttl,
        max_lifetime: lifetime,
        ..request_under("short", "alice")
    };
    let shorter = server.create(short(span(20), span(100))).await.unwrap();
    assert_eq!(
        shorter.tokens.access_token_expires_at,
        Some(at(START.floor_to_second().plus(seconds(20))))
    );
    assert_eq!(shorter.session.expires_at, Some(start_plus(seconds(100))));
    assert_eq!(
        shorter.session.idle_expires_at, shorter.session.expires_at,
        "never past the absolute end"
    );
    assert!(server.create(short(span(60), span(600))).await.is_ok(), "the limits themselves");
    assert!(server.create(short(span(1), span(1))).await.is_ok());
    for (request, field) in [
        (short(span(61), None), "access_token_ttl"),
        (short(span(0), None), "access_token_ttl"),
        (short(span(-1), None), "access_token_ttl"),
        (short(span(i64::MAX), None), "access_token_ttl"),
        (short(None, span(601)), "max_lifetime"),
        (short(None, Some(Duration { seconds: 0, nanos: 999_999_999 })), "max_lifetime"),
    ] {
        assert_eq!(refused(server.create(request).await), Refusal::field(field));
    }
}

pub async fn an_authentication_further_in_the_future_than_the_leeway_is_refused() {
    let server = Server::start().await;
    let with =
        |instant| CreateSessionRequest { authenticated_at: Some(instant), ..request("alice") };
    let earlier = server.create(with(at(START.minus(seconds(3600))))).await.unwrap();
    assert_eq!(claims(&earlier.access)["auth_time"], START.seconds() - 3600);
    assert!(server.create(with(start_plus(seconds(5)))).await.is_ok());
    for instant in [start_plus(seconds(5) + TICK), prost_types::Timestamp { seconds: 0, nanos: -1 }]
    {
        assert_eq!(refused(server.create(with(instant)).await), Refusal::field("authenticated_at"));
    }
}

pub async fn validate_returns_claims_only_in_the_full_view() {
    let server = Server::start().await;
    let list = ListValue {
        values: vec![1.0.into(), "two".to_owned().into(), Value { kind: Some(Kind::NullValue(0)) }],
    };
    let own = object(&[
        ("role", "admin".to_owned().into()),
        ("level", 7.0.into()),
        ("ratio", 0.5.into()),
        ("nested", Value { kind: Some(Kind::StructValue(object(&[("sub", true.into())]))) }),
        ("list", Value { kind: Some(Kind::ListValue(list)) }),
    ]);
    let own = EncodedStruct::from(own);
    let created = server
        .create(CreateSessionRequest { claims: Some(own.clone()), ..request("alice") })
        .await
        .unwrap();
    assert_eq!(created.session.claims, Some(own.clone()));
    assert_eq!(claims(&created.access)["level"], 7, "a whole number stays whole");
    let view = |view: ValidateView| ValidateRequest {
        access_token: created.access.clone(),
        view: view.into(),
        ..Default::default()
    };
    assert_eq!(server.validate(view(ValidateView::Full)).await.unwrap().claims, Some(own));
    for basic in [ValidateView::Basic, ValidateView::Unspecified] {
        let answer = server.validate(view(basic)).await.unwrap();
        assert_eq!(answer.claims, None);
        assert_eq!((answer.active, &*answer.subject, &*answer.tenant), (true, "alice", "acme"));
        assert_eq!(answer.issued_at, Some(at(START.floor_to_second())));
        assert_eq!(answer.checked_at, Some(at(START)));
    }
}

pub async fn every_access_token_of_a_session_has_exactly_the_claims_of_its_creation() {
    let server = Server::start().await;
    let numbers = [0.1, -0.0, 1e15, 9_007_199_254_740_991.0, -9_007_199_254_740_991.0, 1e-300]
        .into_iter()
        .chain([4_503_599_627_370_495.5, f64::MIN_POSITIVE, 5e-324, 1.0 / 3.0]);
    let texts = ["\"\\\n", "\u{1}\u{7f}\u{fffd}\u{10ffff}", "é e\u{301}", "{\"a\":1}", "'; --"];
    let list = numbers.map(Value::from).chain(texts.map(|text| text.to_owned().into()));
    let list = Value { kind: Some(Kind::ListValue(ListValue { values: list.collect() })) };
    let created = CreateSessionRequest {
        claims: Some(
            object(&[("list", list), ("", true.into()), ("\u{1f980}\"", 1.5.into())]).into(),
        ),
        acr: "'; DROP TABLE sessions; --".to_owned(),
        amr: vec!["{}".to_owned(), "a,b".to_owned(), "NULL".to_owned(), "\"\\".to_owned()],
        client_id: "%_".to_owned(),
        // The earliest instant that a protobuf `Timestamp` can hold.
        authenticated_at: Some(prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 }),
        ..request("alice")
    };
    let first = server.create(created).await.unwrap();
    let next = server.refresh(&first.refresh).await.unwrap().now;
    let lasting = |access: &str| {
        let mut claims = claims(access);
        for passing in ["jti", "iat", "exp"] {
            claims.remove(passing);
        }
        serde_json::Value::from(claims).to_string()
    };
    assert_eq!(lasting(&next.access), lasting(&first.access));
    let shown = server.session(&first.id()).await.unwrap();
    assert_eq!(shown, next.session);
    let etag = first.session.etag.clone();
    assert_eq!(Session { etag, ..shown }, first.session, "the clock has stood still");
}

pub async fn an_integer_that_a_double_cannot_represent_exactly_is_refused_at_any_depth() {
    let server = Server::start().await;
    for number in [9_007_199_254_740_992.0, -9_007_199_254_740_992.0, 1e16, 1e300, f64::MAX] {
        let number = Value::from(number);
        let list =
            Value { kind: Some(Kind::ListValue(ListValue { values: vec![number.clone()] })) };
        let deep = Value { kind: Some(Kind::StructValue(object(&[("b", list.clone())]))) };
        for (value, path) in [(number, "a"), (list, "a[0]"), (deep, "a.b[0]")] {
            let own = CreateSessionRequest {
                claims: Some(object(&[("a", value)]).into()),
                ..request("alice")
            };
            let refusal = server.create(own).await.err().unwrap();
            let advice = format!("beyond 2^53 at {path}, ");
            assert!(refusal.message().contains(&advice), "{}", refusal.message());
            assert!(refusal.message().contains("send it as a string"), "{}", refusal.message());
            assert_eq!(refused(Err::<(), _>(refusal)), Refusal::field("claims"));
        }
    }
    let exact = object(&[
        ("a", 9_007_199_254_740_991.0.into()),
        ("b", "9007199254740993".to_owned().into()),
    ]);
    let own = CreateSessionRequest { claims: Some(exact.into()), ..request("alice") };
    let created = server.create(own).await.unwrap();
    assert_eq!(claims(&created.access)["a"], 9_007_199_254_740_991_i64);
    assert_eq!(claims(&created.access)["b"], "9007199254740993");
}

pub async fn claims_have_4096_bytes_at_most_and_no_reserved_name() {
    let server = Server::start().await;
    let with = |name: &str, bytes: usize| CreateSessionRequest {
        claims: Some(object(&[(name, "x".repeat(bytes).into())]).into()),
        ..request("alice")
    };
    let overhead = r#"{"k":""}"#.len();
    assert!(server.create(with("k", 4096 - overhead)).await.is_ok());
    assert_eq!(refused(server.create(with("k", 4097 - overhead)).await), Refusal::field("claims"));
    for name in RESERVED {
        assert_eq!(refused(server.create(with(name, 1)).await), Refusal::field("claims"), "{name}");
    }
    let not_a_number = CreateSessionRequest {
        claims: Some(object(&[("n", f64::NAN.into())]).into()),
        ..request("alice")
    };
    assert_eq!(refused(server.create(not_a_number).await), Refusal::field("claims"));
    assert_eq!(server.rows().await.sessions, 1);
}

pub async fn a_token_too_long_for_validate_is_not_issued() {
    let server = Server::start().await;
    let texts = |length: usize, count: usize| vec!["x".repeat(length); count];
    let huge = CreateSessionRequest {
        scopes: texts(128, 64),
        audience: texts(256, 16),
        ..request("alice")
    };
    assert_eq!(refused(server.create(huge).await), Refusal::field("claims"));
    assert_eq!(server.rows().await.sessions, 0);
}

pub async fn repeated_requests_with_one_id_yield_the_same_session_even_if_concurrent() {
    let server = Server::start().await;
    let once = CreateSessionRequest { request_id: "once".to_owned(), ..request("alice") };
    let answers = join_all((0..16).map(|_| server.create(once.clone()))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    for answer in &answers {
        assert_eq!(answer.session, answers[0].session);
        assert_eq!((&answer.refresh, &answer.access), (&answers[0].refresh, &answers[0].access));
        assert_eq!(server.verdict(&answer.access).await, Ok(()));
    }
    assert_eq!(server.rows().await.sessions, 1);

    for other in [
        CreateSessionRequest { subject: "bob".to_owned(), ..once.clone() },
        CreateSessionRequest { client_id: "app".to_owned(), ..once.clone() },
    ] {
        assert_eq!(refused(server.create(other).await), Refusal::request_id_reused());
    }
    let elsewhere = server
        .create(CreateSessionRequest { tenant: "other".to_owned(), ..once.clone() })
        .await
        .unwrap();
    assert_ne!(elsewhere.id(), answers[0].id());

    let next = server.refresh(&answers[0].refresh).await.unwrap().now;
    assert_eq!(
        refused(server.create(once.clone()).await),
        Refusal::field("request_id"),
        "the client used its tokens, so it received them"
    );
    server.revoke(countersign_test_support::server::of_token(&next.access)).await.unwrap();
    assert_eq!(refused(server.create(once).await), Refusal::unauthenticated("SESSION_REVOKED"));
}

pub async fn a_request_id_used_by_another_request_or_caller_is_refused_and_changes_nothing() {
    let (login, first) = caller("login", "roles = [\"issuer\"]");
    let (other, second) = caller("other", "roles = [\"issuer\"]");
    let (admin, third) = caller("admin", "roles = [\"admin\"]");
    let server = Home::new(&[first, second, third].concat()).await.start().await;
    let create = async |key: &str, request: &CreateSessionRequest| -> Result<SignedIn, Status> {
        let answer = server.client_with(key).create_session(request.clone()).await?.into_inner();
        Ok((answer.session, answer.tokens).into())
    };
    let once = CreateSessionRequest {
        scopes: vec!["read".to_owned(), "write".to_owned()],
        claims: Some(object(&[("role", "user".to_owned().into())]).into()),
        amr: vec!["pwd".to_owned()],
        request_id: "once".to_owned(),
        ..request("alice")
    };
    let created = create(&login, &once).await.unwrap();
    let changes: [(&str, Change); 19] = [
        ("subject", |new| new.subject = "bob".to_owned()),
        ("client_id", |new| new.client_id = "app".to_owned()),
        ("audience", |new| new.audience.push("https://orders.test".to_owned())),
        ("the default audience by its name", |new| {
            new.audience.push("https://auth.test".to_owned())
        }),
        ("scopes", |new| new.scopes.push("admin".to_owned())),
        ("order of scopes", |new| new.scopes.reverse()),
        ("claims", |new| new.claims = Some(object(&[("role", "admin".to_owned().into())]).into())),
        ("acr", |new| new.acr = "gold".to_owned()),
        ("amr", |new| new.amr.push("otp".to_owned())),
        ("authenticated_at", |new| new.authenticated_at = Some(at(START))),
        ("user agent", |new| {
            new.device = Some(Device { user_agent: "curl".to_owned(), ..Default::default() })
        }),
        ("address", |new| {
            new.device = Some(Device { ip_address: "192.0.2.7".to_owned(), ..Default::default() })
        }),
        ("label", |new| {
            new.device = Some(Device { label: "laptop".to_owned(), ..Default::default() })
        }),
        ("device_id", |new| {
            new.device = Some(Device { device_id: "7".to_owned(), ..Default::default() })
        }),
        ("amr_verified_at", |new| {
            new.amr_verified_at = [("pwd".to_owned(), at(START))].into();
        }),
        ("policy", |new| new.policy = "strict".to_owned()),
        ("the default policy by its name", |new| new.policy = "default".to_owned()),
        ("access_token_ttl", |new| new.access_token_ttl = span(60)),
        ("max_lifetime", |new| new.max_lifetime = span(3600)),
    ];
    let refuses = async || {
        for (what, change) in changes {
            let mut changed = once.clone();
            change(&mut changed);
            assert_eq!(
                refused(create(&login, &changed).await),
                Refusal::request_id_reused(),
                "{what}"
            );
        }
        for key in [&other, &admin] {
            assert_eq!(
                refused(create(key, &once).await),
                Refusal::request_id_reused(),
                "another caller"
            );
        }
    };
    refuses().await;
    assert_eq!(server.rows().await.sessions, 1);
    let repeats = async |request: &CreateSessionRequest| {
        let again = create(&login, request).await.unwrap();
        assert_eq!((&again.session, &again.tokens), (&created.session, &created.tokens));
    };
    repeats(&once).await;
    repeats(&CreateSessionRequest { device: Some(Device::default()), ..once.clone() }).await;

    // Earlier versions stored no fingerprint of the request. For a row of theirs, only subject and
    // client are compared.
    server.home.database.execute("UPDATE sessions SET request_fingerprint = NULL").await;
    repeats(&CreateSessionRequest { scopes: vec![], ..once.clone() }).await;
    let bobs = CreateSessionRequest { subject: "bob".to_owned(), ..once.clone() };
    assert_eq!(refused(create(&login, &bobs).await), Refusal::request_id_reused());

    let twice = CreateSessionRequest { request_id: "twice".to_owned(), ..once.clone() };
    let second = create(&login, &twice).await.unwrap();
    server.client_with(&admin).revoke(of_token(&second.access)).await.unwrap();
    assert_eq!(refused(create(&login, &twice).await), Refusal::unauthenticated("SESSION_REVOKED"));
    assert_eq!(
        refused(create(&other, &twice).await),
        Refusal::request_id_reused(),
        "also after the end of the session"
    );

    let home = server.stop().await;
    assert_eq!(home.database.count("audit WHERE action = 'session_created'").await, 2);
}

pub async fn of_two_different_concurrent_requests_with_one_id_only_one_succeeds() {
    let server = Server::start().await;
    for round in 0..4 {
        let ask = |n: usize| CreateSessionRequest {
            scopes: vec![["read", "write"][n % 2].to_owned()],
            request_id: format!("round {round}"),
            ..request("alice")
        };
        let answers = join_all((0..32).map(|n| server.create(ask(n)))).await;
        let (good, refusals): (Vec<_>, Vec<_>) =
            (0..).zip(answers).partition(|(_, answer)| answer.is_ok());
        assert_eq!(
            (good.len(), refusals.len()),
            (16, 16),
            "all of one request, and none of the other"
        );
        let winner = good[0].0 % 2;
        let first = good[0].1.as_ref().unwrap().clone();
        for (n, answer) in good {
            let answer = answer.unwrap();
            assert_eq!(
                (n % 2, &answer.session, &answer.tokens),
                (winner, &first.session, &first.tokens)
            );
        }
        for (_, refusal) in refusals {
            assert_eq!(refused(refusal), Refusal::request_id_reused());
        }
        assert_eq!(server.rows().await.sessions, round + 1);
    }
}

pub async fn a_new_session_over_the_quota_evicts_the_oldest() {
    let server = Server::start().await;
    let bystander = server.create(request_under("two", "bob")).await.unwrap();
    let mut sessions = vec![];
    for _ in 0..3 {
        server.clock.advance(seconds(1));
        sessions.push(server.create(request_under("two", "alice")).await.unwrap());
    }
    assert_eq!(server.verdict(&sessions[0].access).await, Err(InactiveReason::Revoked));
    assert_eq!(
        refused(server.refresh(&sessions[0].refresh).await),
        Refusal::unauthenticated("SESSION_REVOKED")
    );
    let evicted = server.session(&sessions[0].id()).await.unwrap();
    assert_eq!(
        (evicted.state(), evicted.end_reason()),
        (SessionState::Ended, EndReason::QuotaEvicted)
    );
    for session in [&sessions[1], &sessions[2], &bystander] {
        assert_eq!(server.verdict(&session.access).await, Ok(()));
    }
}

pub async fn a_new_session_over_the_quota_is_refused_if_the_policy_says_so() {
    let server = Server::start().await;
    let create = || server.create(request_under("refusing", "alice"));
    let answers = join_all((0..8).map(|_| create())).await;
    let (good, refusals): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), server.rows().await.sessions), (2, 2), "also for concurrent requests");
    for refusal in refusals {
        assert_eq!(refused(refusal), Refusal::quota("SESSION_QUOTA_EXCEEDED", "policy:refusing"));
    }
    assert!(server.create(request_under("refusing", "bob")).await.is_ok());
    let first = good.into_iter().next().unwrap().unwrap();
    server.revoke(countersign_test_support::server::of_token(&first.access)).await.unwrap();
    assert!(create().await.is_ok(), "an ended session does not count");
}
