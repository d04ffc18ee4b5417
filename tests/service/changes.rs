//! Tests of Reauthenticate and UpdateSession: a session keeps its identifier, and the tokens that
//! it had before are invalid once the call has answered.

use std::time::Duration;

use countersign::proto::{
    Device, EncodedStruct, InactiveReason, Key, KeyPurpose, KeyState, ListKeysRequest,
    ReauthenticateRequest, RefreshRequest, RevokeKeyRequest, Session, Tokens, UpdateSessionRequest,
    ValidateRequest,
    key_service_client::KeyServiceClient,
    reauthenticate_request::Session::{RefreshToken, SessionId},
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, SignedIn, at, of_token, request, seconds, start_plus},
};
use futures_util::future::join_all;
use prost_types::FieldMask;
use serde_json::json;
use tonic::Code;

/// Converts a JSON object to a message.
fn to_struct(object: serde_json::Value) -> EncodedStruct {
    fn convert(value: serde_json::Value) -> prost_types::Value {
        use prost_types::value::Kind;

        let kind = match value {
            serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            serde_json::Value::String(text) => Kind::StringValue(text),
            other => panic!("{other}"),
        };
        prost_types::Value { kind: Some(kind) }
    }
    let fields = object.as_object().unwrap().clone().into_iter();
    let fields = fields.map(|(name, value)| (name, convert(value))).collect();
    EncodedStruct::from(prost_types::Struct { fields })
}

/// Returns the reauthentication of a session that a test has created.
pub fn again(session: &SignedIn) -> ReauthenticateRequest {
    ReauthenticateRequest {
        session: Some(SessionId(session.id())),
        acr: "mfa".to_owned(),
        amr: vec!["pwd".to_owned(), "hwk".to_owned()],
        ..Default::default()
    }
}

/// Reauthenticates, and returns the session and its tokens.
async fn reauthenticated(server: &Server, request: ReauthenticateRequest) -> (Session, Tokens) {
    let answer = server.client().reauthenticate(request).await.unwrap().into_inner();
    (answer.session.unwrap(), answer.tokens.unwrap())
}

fn update(session: &SignedIn, paths: &[&str], values: Session) -> UpdateSessionRequest {
    UpdateSessionRequest {
        session_id: session.id(),
        update_mask: Some(FieldMask { paths: paths.iter().map(|path| (*path).into()).collect() }),
        session: Some(values),
        ..Default::default()
    }
}

pub async fn a_step_up_satisfies_the_demand_and_makes_earlier_tokens_inactive_before_its_answer() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let second = server.refresh(&session.refresh).await.unwrap().now;
    let demand = |token: &str| ValidateRequest {
        access_token: token.to_owned(),
        acr_values: vec!["mfa".to_owned()],
        max_authentication_age: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let before = server.demand(demand(&second.access)).await;
    assert_eq!(before, Err(InactiveReason::StepUpRequired));

    server.clock.advance(seconds(100));
    let by_token = ReauthenticateRequest {
        session: Some(RefreshToken(second.refresh.clone())),
        ..again(&session)
    };
    let (shown, tokens) = reauthenticated(&server, by_token).await;
    for earlier in [&session.access, &second.access] {
        assert_eq!(server.verdict(earlier).await, Err(InactiveReason::Revoked));
    }
    assert_eq!(server.demand(demand(&tokens.access_token)).await, Ok(()));
    assert_eq!((&shown.session_id, &*shown.acr), (&session.id(), "mfa"));
    assert_eq!(shown.authenticated_at, Some(start_plus(seconds(100))));
    for earlier in [&session.refresh, &second.refresh] {
        let refused = refused(server.refresh(earlier).await);
        assert_eq!(refused, Refusal::of(Code::Unauthenticated, "REFRESH_TOKEN_INVALID"));
    }
    // The session goes on with the new lineage.
    let next = server.refresh(&tokens.refresh_token).await.unwrap().now;
    assert_eq!(server.demand(demand(&next.access)).await, Ok(()));
    assert_eq!(server.demand(demand(&tokens.access_token)).await, Ok(()), "it is kept");
    server.revoke(of_token(&next.access)).await.unwrap();
    for token in [&tokens.access_token, &next.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
    }
}

pub async fn tokens_of_all_earlier_authentications_stay_inactive() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let mut earlier = vec![session.access.clone()];
    for _ in 0..4 {
        let (_, tokens) = reauthenticated(&server, again(&session)).await;
        for token in &earlier {
            assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
        }
        assert_eq!(server.verdict(&tokens.access_token).await, Ok(()));
        earlier.push(tokens.access_token);
    }
}

pub async fn a_reauthentication_renews_the_idle_time_and_the_lifetime_if_the_policy_says_so() {
    let policy = "[policies.default]
        absolute_lifetime = '1h'
        idle_timeout = '10m'
        access_token_ttl = '1m'
        [policies.aal]
        reauthentication_extends = true
        [policies.short]
        ";
    let server = Home::new(policy).await.start().await;
    for (policy, end) in [("default", seconds(3600)), ("aal", seconds(300 + 3600))] {
        let new = countersign::proto::CreateSessionRequest {
            policy: policy.to_owned(),
            ..request("alice")
        };
        let session = server.create(new).await.unwrap();
        let created = session.session.created_at.unwrap();
        server.clock.advance(seconds(300));
        let (shown, _) = reauthenticated(&server, again(&session)).await;
        let after = |span: Duration| prost_types::Timestamp {
            seconds: created.seconds + i64::try_from(span.as_secs()).unwrap(),
            ..created
        };
        assert_eq!(shown.idle_expires_at, Some(after(seconds(900))), "{policy}");
        assert_eq!(shown.expires_at, Some(after(end)), "{policy}");
    }
}

pub async fn a_repeated_reauthentication_yields_the_same_tokens_until_the_session_is_refreshed() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let once = ReauthenticateRequest { request_id: "once".to_owned(), ..again(&session) };
    let (shown, first) = reauthenticated(&server, once.clone()).await;
    assert_eq!(reauthenticated(&server, once.clone()).await, (shown, first.clone()));
    let other = ReauthenticateRequest { acr: "other".to_owned(), ..once.clone() };
    let reused = refused(server.client().reauthenticate(other).await);
    assert_eq!(reused, Refusal::request_id_reused());
    server.refresh(&first.refresh_token).await.unwrap();
    let late = server.client().reauthenticate(once).await;
    assert_eq!(refused(late), Refusal::field("request_id"));
}

pub async fn a_request_for_a_session_is_not_repeated_after_its_reauthentication() {
    let server = Server::start().await;
    let once = || countersign::proto::CreateSessionRequest {
        request_id: "once".to_owned(),
        ..request("alice")
    };
    let session = server.create(once()).await.unwrap();
    assert_eq!(server.create(once()).await.unwrap().refresh, session.refresh);
    reauthenticated(&server, again(&session)).await;
    assert_eq!(refused(server.create(once()).await), Refusal::field("request_id"));
}

pub async fn a_wrong_reauthentication_names_the_field_and_changes_nothing() {
    let server = Home::new("[tokens]\nacr_order = ['pwd', 'mfa']\n").await.start().await;
    let session = server.sign_in("alice").await;
    let (before, tokens) = reauthenticated(&server, again(&session)).await;
    let good = again(&session);
    let claims = |value| Some(to_struct(value));
    for (request, field) in [
        (ReauthenticateRequest { session: None, ..good.clone() }, "session"),
        (
            ReauthenticateRequest { session: Some(SessionId("x".to_owned())), ..good.clone() },
            "session_id",
        ),
        (
            ReauthenticateRequest { session: Some(RefreshToken(String::new())), ..good.clone() },
            "refresh_token",
        ),
        (ReauthenticateRequest { acr: "x".repeat(257), ..good.clone() }, "acr"),
        (ReauthenticateRequest { acr: "pwd".to_owned(), ..good.clone() }, "acr"),
        (ReauthenticateRequest { acr: String::new(), ..good.clone() }, "acr"),
        (ReauthenticateRequest { amr: vec!["x".to_owned(); 17], ..good.clone() }, "amr"),
        (
            ReauthenticateRequest {
                authenticated_at: Some(start_plus(seconds(60))),
                ..good.clone()
            },
            "authenticated_at",
        ),
        (
            ReauthenticateRequest {
                authenticated_at: Some(at(
                    countersign_test_support::server::START.minus(seconds(1))
                )),
                ..good.clone()
            },
            "authenticated_at",
        ),
        (ReauthenticateRequest { claims: claims(json!({ "sub": 1 })), ..good.clone() }, "claims"),
        (ReauthenticateRequest { scopes: vec![String::new()], ..good.clone() }, "scopes[0]"),
        (ReauthenticateRequest { request_id: "x".repeat(129), ..good.clone() }, "request_id"),
    ] {
        let refused = refused(server.client().reauthenticate(request).await);
        assert_eq!(refused, Refusal::field(field));
    }
    let unknown = "01a22c61-fc08-7000-8001-d51d14a90240".to_owned();
    let unknown = ReauthenticateRequest { session: Some(SessionId(unknown)), ..good.clone() };
    let not_found = Refusal::of(Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(refused(server.client().reauthenticate(unknown).await), not_found);
    // Claims that make the token too long are refused before anything is revoked.
    let long = countersign::proto::CreateSessionRequest {
        audience: (0..14).map(|n| format!("{n}{}", "a".repeat(250))).collect(),
        ..request("bob")
    };
    let crowded = server.create(long).await.unwrap();
    let large = ReauthenticateRequest {
        claims: claims(json!({ "k": "x".repeat(4000) })),
        ..again(&crowded)
    };
    assert_eq!(refused(server.client().reauthenticate(large).await), Refusal::field("claims"));
    let large = update(
        &crowded,
        &["claims"],
        Session { claims: claims(json!({ "k": "x".repeat(4000) })), ..Default::default() },
    );
    assert_eq!(refused(server.client().update_session(large).await), Refusal::field("claims"));
    assert_eq!(server.verdict(&crowded.access).await, Ok(()));
    server.refresh(&crowded.refresh).await.unwrap();

    assert_eq!(server.session(&session.id()).await.unwrap(), before);
    assert_eq!(server.verdict(&tokens.access_token).await, Ok(()));
    let allowed = ReauthenticateRequest { acr: "pwd".to_owned(), allow_weaker: true, ..good };
    assert_eq!(&*reauthenticated(&server, allowed).await.0.acr, "pwd");
}

/// A repeated request presents such a token too, and may learn how the session has ended.
pub async fn a_refresh_token_of_an_earlier_authentication_does_not_tell_how_its_session_ended() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let by_token = ReauthenticateRequest {
        session: Some(RefreshToken(session.refresh.clone())),
        request_id: "once".to_owned(),
        ..again(&session)
    };
    let (_, tokens) = reauthenticated(&server, by_token.clone()).await;
    server.revoke(of_token(&tokens.access_token)).await.unwrap();
    for (request_id, reason) in [
        ("", "REFRESH_TOKEN_INVALID"),
        ("twice", "REFRESH_TOKEN_INVALID"),
        ("once", "SESSION_REVOKED"),
    ] {
        let request =
            ReauthenticateRequest { request_id: request_id.to_owned(), ..by_token.clone() };
        let refused = refused(server.client().reauthenticate(request).await);
        assert_eq!(refused, Refusal::of(Code::Unauthenticated, reason), "{request_id}");
    }
}

pub async fn a_used_refresh_token_ends_the_session_also_at_a_reauthentication() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let next = server.refresh(&session.refresh).await.unwrap().now;
    server.clock.advance(seconds(60));
    let with_old = ReauthenticateRequest {
        session: Some(RefreshToken(session.refresh.clone())),
        ..again(&session)
    };
    let reused = refused(server.client().reauthenticate(with_old).await);
    assert_eq!(reused, Refusal::of(Code::Unauthenticated, "REFRESH_TOKEN_REUSED"));
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Revoked));
    let record = "audit WHERE action = 'refresh_reused' AND reason = 'refresh_token_reused'";
    assert_eq!(server.stop().await.database.count(record).await, 1);
}

/// Whatever the order, no token that was issued is accepted after the revocation.
pub async fn no_token_of_a_race_with_a_revocation_is_accepted_after_it() {
    let server = Server::start().await;
    for _ in 0..4 {
        let session = server.sign_in("alice").await;
        let calls = join_all((0..6).map(async |n| {
            let mut client = server.client();
            if n % 2 == 0 {
                let request = again(&session);
                client.reauthenticate(request).await.ok().map(|one| one.into_inner().tokens)
            } else {
                let refresh_token = session.refresh.clone();
                let request = RefreshRequest { refresh_token, ..Default::default() };
                client.refresh(request).await.ok().map(|one| one.into_inner().tokens)
            }
        }));
        let (outcomes, revoked) = tokio::join!(calls, async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            server.revoke(of_token(&session.access)).await
        });
        revoked.unwrap();
        let tokens: Vec<Tokens> = outcomes.into_iter().flatten().flatten().collect();
        for token in tokens.iter().map(|tokens| &tokens.access_token) {
            assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
        }
        for token in tokens.iter().map(|tokens| &tokens.refresh_token) {
            assert!(server.refresh(token).await.is_err());
        }
    }
}

pub async fn an_update_changes_the_named_fields_and_takes_effect_at_the_next_refresh() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let values = Session {
        metadata: Some(to_struct(json!({ "ticket": "T-7" }))),
        claims: Some(to_struct(json!({ "role": "ops" }))),
        device: Some(Device { label: "Work laptop".to_owned(), ..Default::default() }),
        subject: "ignored".to_owned(),
        ..Default::default()
    };
    let request = update(&session, &["metadata", "claims", "device.label"], values.clone());
    let changed = server.client().update_session(request).await.unwrap().into_inner();
    let changed = changed.session.unwrap();
    assert_eq!((&changed.metadata, &changed.claims), (&values.metadata, &values.claims));
    assert_eq!(changed.device.as_ref().unwrap().label, "Work laptop");
    assert_eq!((&*changed.subject, &changed.scopes), ("alice", &session.session.scopes));
    assert_ne!(changed.etag, session.session.etag);
    assert_eq!(server.session(&session.id()).await.unwrap(), changed);

    let claims = async |access_token: &str| {
        let request = ValidateRequest {
            access_token: access_token.to_owned(),
            view: countersign::proto::ValidateView::Full.into(),
            ..Default::default()
        };
        server.client().validate(request).await.unwrap().into_inner().claims.unwrap()
    };
    assert_eq!(claims(&session.access).await, to_struct(json!({})), "its token is unchanged");
    let next = server.refresh(&session.refresh).await.unwrap().now;
    assert_eq!(claims(&next.access).await, values.claims.unwrap(), "no metadata is in a token");

    let cleared = update(&session, &["metadata"], Session::default());
    let cleared = server.client().update_session(cleared).await.unwrap().into_inner();
    assert_eq!(cleared.session.unwrap().metadata, Some(to_struct(json!({}))));
}

pub async fn an_update_can_make_the_access_tokens_inactive_and_leaves_the_refresh_token() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let request = UpdateSessionRequest {
        session_id: session.id(),
        revoke_access_tokens: true,
        ..Default::default()
    };
    server.client().update_session(request.clone()).await.unwrap();
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    let next = server.refresh(&session.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&next.access).await, Ok(()));

    // The access tokens of a session that cannot be refreshed any more can be stopped, too.
    let mut keys = KeyServiceClient::new(server.channel.clone());
    let listed = keys.list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys;
    let active =
        |key: &&Key| key.purpose() == KeyPurpose::RefreshToken && key.state() == KeyState::Active;
    let kid = listed.iter().find(active).unwrap().kid.clone();
    keys.revoke_key(RevokeKeyRequest { kid }).await.unwrap();
    assert!(server.refresh(&next.refresh).await.is_err());
    server.client().update_session(request).await.unwrap();
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_wrong_update_names_the_field_and_changes_nothing() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let large = to_struct(json!({ "k": "x".repeat(5000) }));
    let all = Session {
        scopes: vec!["admin".to_owned()],
        metadata: Some(large),
        claims: Some(to_struct(json!({ "iss": 1 }))),
        ..Default::default()
    };
    let with = |paths: &[&str]| update(&session, paths, all.clone());
    for (request, field) in [
        (UpdateSessionRequest { session_id: "x".to_owned(), ..with(&["scopes"]) }, "session_id"),
        (UpdateSessionRequest { etag: "x".to_owned(), ..with(&["scopes"]) }, "etag"),
        (with(&[]), "update_mask"),
        (with(&["subject"]), "update_mask.paths[0]"),
        (with(&["device.label", "device.label"]), "update_mask.paths[1]"),
        (with(&["scopes"]), "scopes"),
        (with(&["metadata"]), "metadata"),
        (with(&["claims"]), "claims"),
    ] {
        let refused = refused(server.client().update_session(request).await);
        assert_eq!(refused, Refusal::field(field));
    }
    let stale = UpdateSessionRequest { etag: "7".to_owned(), ..with(&["device.label"]) };
    let aborted = refused(server.client().update_session(stale).await);
    assert_eq!(aborted, Refusal::of(Code::Aborted, "ETAG_MISMATCH"));
    assert_eq!(server.session(&session.id()).await.unwrap(), session.session);

    server.revoke(of_token(&session.access)).await.unwrap();
    let ended = refused(server.client().update_session(with(&["device.label"])).await);
    assert_eq!(ended, Refusal::of(Code::Unauthenticated, "SESSION_REVOKED"));
}
