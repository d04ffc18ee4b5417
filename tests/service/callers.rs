//! Tests of the permissions of callers: which calls each role may make, and for whose sessions. The
//! expected outcomes are written down here a second time on purpose, independently of the code.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use countersign::{
    callers::api_key::ApiKey,
    proto::{
        self, BatchValidateRequest, CountSessionsRequest, CreateSessionRequest, GetJwksRequest,
        GetSessionRequest, ImportSessionsRequest, ImportStatus, InactiveReason, ListAuditRequest,
        ListKeysRequest, ListRevocationsRequest, ListSessionsRequest, RefreshRequest,
        RevokeKeyRequest, RevokeRequest, RotateKeyRequest, UpdateSessionRequest, ValidateRequest,
        audit_service_client::AuditServiceClient, key_service_client::KeyServiceClient,
        revoke_request::Target,
    },
    rng::SystemRng,
};
use prost_types::FieldMask;
use tonic::{Code, Request, Status, service::interceptor::InterceptedService};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use super::{changes::again, gateways, import::old, wide};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, ShowKey, SignedIn, request, revocation},
    watcher::Watcher,
};

const ROLES: [&str; 5] = ["issuer", "validator", "revoker", "viewer", "admin"];
/// The tenant to which a caller is limited. An empty text is no limit; the sessions of these tests
/// belong to `acme`.
const REACHES: [&str; 3] = ["", "acme", "other"];

const CALLS: [&str; 31] = [
    "CreateSession",
    "Refresh",
    "Reauthenticate",
    "UpdateSession",
    "ImportSessions",
    "Validate",
    "BatchValidate",
    "Check",
    "forward-auth",
    "introspection",
    "revocation over HTTP",
    "Revoke access token",
    "Revoke refresh token",
    "Revoke session",
    "Revoke subject",
    "Revoke tenant",
    "Revoke subjects",
    "Revoke client",
    "Revoke of all tenants",
    "GetSession",
    "ListSessions",
    "CountSessions",
    "ListAudit",
    "ListRevocations",
    "ListKeys",
    "RotateKey",
    "RevokeKey",
    "Watch",
    "GetJwks",
    "Health",
    "a call that does not exist",
];

/// Returns a new API key, and the configuration of a caller that has it.
pub fn caller(name: &str, lines: &str) -> (String, String) {
    let key = ApiKey::generate(&SystemRng::default()).unwrap();
    let stanza =
        format!("[[callers]]\nname = \"{name}\"\nkey_hashes = [\"{}\"]\n{lines}\n", key.hash());
    (key.reveal().to_owned(), stanza)
}

/// Returns "OK", or the reason of the error, or the status code of an error that has no reason.
fn outcome<T>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => "OK".to_owned(),
        Err(status) => status
            .get_details_error_info()
            .map_or_else(|| format!("{:?}", status.code()), |info| info.reason),
    }
}

/// Returns "OK" for an active token, or the reason why it is inactive.
fn verdict(answer: &proto::ValidateResponse) -> String {
    if answer.active { "OK".to_owned() } else { answer.inactive_reason().as_str_name().to_owned() }
}

/// Makes a call for a session of tenant acme, and returns its outcome as one word.
async fn make(server: &Server, key: &str, call: &str, session: &SignedIn) -> String {
    let mut sessions = server.client_with(key);
    let mut keys =
        KeyServiceClient::with_interceptor(server.channel.clone(), ShowKey(key.to_owned()));
    let (tenant, subject) = ("acme".to_owned(), session.session.subject.clone());
    let validate = ValidateRequest { access_token: session.access.clone(), ..Default::default() };
    let revoke = async |target| outcome(server.client_with(key).revoke(revocation(target)).await);
    match call {
        "CreateSession" => outcome(sessions.create_session(request("bob")).await),
        "Refresh" => {
            let request =
                RefreshRequest { refresh_token: session.refresh.clone(), ..Default::default() };
            outcome(sessions.refresh(request).await)
        }
        "Reauthenticate" => outcome(sessions.reauthenticate(again(session)).await),
        "UpdateSession" => {
            let request = UpdateSessionRequest {
                session_id: session.id(),
                update_mask: Some(FieldMask { paths: vec!["metadata".to_owned()] }),
                ..Default::default()
            };
            outcome(sessions.update_session(request).await)
        }
        "ImportSessions" => {
            // Each call imports a session of its own.
            static CALLS: AtomicUsize = AtomicUsize::new(0);
            let id = CALLS.fetch_add(1, Ordering::Relaxed).to_string();
            let request =
                ImportSessionsRequest { sessions: vec![old(&id, "alice")], ..Default::default() };
            match sessions.import_sessions(request).await {
                Ok(answer) => match answer.get_ref().results[0].status() {
                    ImportStatus::Imported => "OK".to_owned(),
                    other => other.as_str_name().to_owned(),
                },
                refused => outcome(refused),
            }
        }
        "Validate" => match sessions.validate(validate).await {
            Ok(answer) => verdict(answer.get_ref()),
            refused => outcome(refused),
        },
        "BatchValidate" => {
            match sessions.batch_validate(BatchValidateRequest { requests: vec![validate] }).await {
                Ok(answer) => verdict(&answer.get_ref().responses[0]),
                refused => outcome(refused),
            }
        }
        "Check" => match gateways::check_as(server, key, &session.access).await {
            Ok(true) => "OK".to_owned(),
            Ok(false) => "DENIED".to_owned(),
            Err(status) => outcome::<()>(Err(status)),
        },
        "forward-auth" => gateways::forward_auth_as(server, key, &session.access).await,
        "introspection" => {
            gateways::oauth_as(server, key, "/oauth2/introspect", &session.access).await
        }
        "revocation over HTTP" => {
            gateways::oauth_as(server, key, "/oauth2/revoke", &session.access).await
        }
        "Revoke access token" => revoke(Target::Token(session.access.clone())).await,
        "Revoke refresh token" => revoke(Target::Token(session.refresh.clone())).await,
        "Revoke session" => revoke(Target::SessionId(session.id())).await,
        "Revoke subject" => {
            revoke(Target::Subject(proto::SubjectTarget { tenant, subject, ..Default::default() }))
                .await
        }
        "Revoke tenant" => revoke(Target::Tenant(tenant)).await,
        "Revoke subjects" => {
            let subjects = vec![subject];
            revoke(Target::Subjects(proto::SubjectsTarget { tenant, subjects })).await
        }
        "Revoke client" => revoke(wide::client(&tenant, "web").target.unwrap()).await,
        "Revoke of all tenants" => {
            let request =
                RevokeRequest { dry_run: true, ..revocation(wide::everywhere(None, None)) };
            outcome(sessions.revoke(request).await)
        }
        "ListRevocations" => {
            outcome(sessions.list_revocations(ListRevocationsRequest::default()).await)
        }
        "Watch" => outcome(Watcher::open_as(server.channel(), Some(key), vec![]).await),
        "GetSession" => {
            outcome(sessions.get_session(GetSessionRequest { session_id: session.id() }).await)
        }
        "ListSessions" => outcome(
            sessions.list_sessions(ListSessionsRequest { tenant, ..Default::default() }).await,
        ),
        "CountSessions" => outcome(
            sessions.count_sessions(CountSessionsRequest { tenant, ..Default::default() }).await,
        ),
        "ListAudit" => {
            let request = ListAuditRequest { tenant: Some(tenant), ..Default::default() };
            let channel = server.channel.clone();
            let mut audit = AuditServiceClient::with_interceptor(channel, ShowKey(key.to_owned()));
            outcome(audit.list_audit(request).await)
        }
        "ListKeys" => outcome(keys.list_keys(ListKeysRequest {}).await),
        "RotateKey" => {
            outcome(keys.rotate_key(RotateKeyRequest { force: true, ..Default::default() }).await)
        }
        "RevokeKey" => outcome(keys.revoke_key(RevokeKeyRequest { kid: "none".to_owned() }).await),
        "GetJwks" => outcome(keys.get_jwks(GetJwksRequest {}).await),
        "Health" => outcome(
            HealthClient::new(server.channel.clone()).check(HealthCheckRequest::default()).await,
        ),
        "a call that does not exist" => unknown_call(server, key).await,
        other => panic!("{other}"),
    }
}

async fn unknown_call(server: &Server, key: &str) -> String {
    let channel = InterceptedService::new(server.channel.clone(), ShowKey(key.to_owned()));
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static("/countersign.v1.SessionService/Nothing");
    outcome(client.unary(Request::new(()), path, codec).await)
}

/// Returns the outcome that a call must have for a caller of this role, limited to this tenant.
fn expected(call: &str, role: &str, reach: &str) -> &'static str {
    let may: &[&str] = match role {
        "issuer" => &[
            "CreateSession",
            "Refresh",
            "Reauthenticate",
            "UpdateSession",
            "GetSession",
            "ListSessions",
            "CountSessions",
        ],
        "validator" => {
            &["Validate", "BatchValidate", "Check", "forward-auth", "introspection", "Watch"]
        }
        "revoker" => &[
            "revocation over HTTP",
            "Revoke access token",
            "Revoke refresh token",
            "Revoke session",
            "Revoke subject",
            "Revoke subjects",
            "ListRevocations",
        ],
        "viewer" => &["GetSession", "ListSessions", "CountSessions", "ListAudit"],
        "admin" => &CALLS,
        _ => panic!("{role}"),
    };
    let (is_known, is_limited, is_foreign) =
        (may.contains(&call), !reach.is_empty(), reach == "other");
    match call {
        "GetJwks" | "Health" => "OK",
        "a call that does not exist" => "UNIMPLEMENTED",
        _ if !is_known => "CALLER_NOT_ALLOWED",
        "ListKeys" | "RotateKey" | "RevokeKey" | "Revoke of all tenants" if is_limited => {
            "CALLER_NOT_ALLOWED"
        }
        "ListRevocations" | "Watch" => "OK",
        "RevokeKey" => "KEY_NOT_FOUND",
        "ImportSessions" if is_foreign => "IMPORT_STATUS_REJECTED",
        _ if !is_foreign => "OK",
        "Validate" | "BatchValidate" => "INACTIVE_REASON_FOREIGN_TENANT",
        "Check" | "forward-auth" | "introspection" => "DENIED",
        "Refresh" => "REFRESH_TOKEN_INVALID",
        "CreateSession" | "ListSessions" | "CountSessions" | "ListAudit" | "Revoke subject"
        | "Revoke tenant" | "Revoke subjects" | "Revoke client" => "CALLER_NOT_ALLOWED",
        _ => "SESSION_NOT_FOUND",
    }
}

pub async fn each_role_may_make_only_its_own_calls_and_only_for_sessions_of_its_tenants() {
    let (mut settings, mut keys) = (String::new(), vec![]);
    for role in ROLES {
        for reach in REACHES {
            let limit =
                if reach.is_empty() { String::new() } else { format!("tenants = [\"{reach}\"]") };
            let (key, stanza) =
                caller(&format!("{role}-{reach}-"), &format!("roles = [\"{role}\"]\n{limit}"));
            settings += &stanza;
            keys.push((role, reach, key));
        }
    }
    let server = Home::new(&settings).await.start().await;
    let admin =
        keys.iter().find(|(role, reach, _)| (*role, *reach) == ("admin", "")).unwrap().2.clone();
    let sign_in = async || -> SignedIn {
        let answer =
            server.client_with(&admin).create_session(request("alice")).await.unwrap().into_inner();
        (answer.session, answer.tokens).into()
    };
    let stranger = caller("stranger", "").0;
    let mut wrong = String::new();
    for call in CALLS {
        let mut session = sign_in().await;
        for nobody in ["", &stranger, "cs_ck_", "nonsense", &admin[1..]] {
            let is_open = ["GetJwks", "Health"].contains(&call);
            let (is, should_be) = (
                make(&server, nobody, call, &session).await,
                if is_open { "OK" } else { "CALLER_UNKNOWN" },
            );
            if is != should_be {
                writeln!(wrong, "{call} by an unknown caller: {is}, not {should_be}").unwrap();
            }
        }
        for (role, reach, key) in &keys {
            let rows = server.rows().await;
            let (is, should_be) =
                (make(&server, key, call, &session).await, expected(call, role, reach));
            if is != should_be {
                writeln!(wrong, "{call} by {role} of {reach:?}: {is}, not {should_be}").unwrap();
            }
            if is == "OK" {
                // The allowed call may have changed or ended the session, so the next one gets
                // another.
                session = sign_in().await;
            } else {
                assert_eq!(
                    server.rows().await,
                    rows,
                    "{call} by {role} of {reach:?} was refused and left a row"
                );
                assert_eq!(
                    make(&server, &admin, "Validate", &session).await,
                    "OK",
                    "{call} by {role} of {reach:?}"
                );
            }
        }
        assert_eq!(
            make(&server, &admin, "Refresh", &session).await,
            "OK",
            "{call}: the refused calls changed nothing"
        );
    }
    assert_eq!(wrong, "");
}

pub async fn an_unknown_caller_gets_the_same_answer_whatever_its_key_and_its_request() {
    let (key, settings) = caller("login", "roles = [\"issuer\"]");
    let server = Home::new(&settings).await.start().await;
    let mut answers = vec![];
    let other = caller("other", "").0;
    let nearly = format!("{}x", &key[..key.len() - 1]);
    for shown in ["", "x", &other, &nearly, &key.to_uppercase()] {
        answers.push(server.client_with(shown).create_session(request("alice")).await.unwrap_err());
        answers.push(
            server
                .client_with(shown)
                .create_session(CreateSessionRequest::default())
                .await
                .unwrap_err(),
        );
        answers.push(
            server.client_with(shown).get_session(GetSessionRequest::default()).await.unwrap_err(),
        );
    }
    for answer in &answers {
        assert_eq!(refused::<()>(Err(answer.clone())), Refusal::unauthenticated("CALLER_UNKNOWN"));
        assert_eq!(answer.message(), answers[0].message());
        assert!(!answer.message().contains("login"));
    }
    assert_eq!(server.rows().await.sessions, 0);
}

pub async fn a_caller_limited_to_audiences_creates_and_validates_tokens_for_those_alone() {
    let audiences = "audiences = [\"https://orders.test\", \"https://stock.test\"]";
    let (issuer, first) = caller("issuer", &format!("roles = [\"issuer\"]\n{audiences}"));
    let (validator, second) =
        caller("orders", "roles = [\"validator\"]\naudiences = [\"https://orders.test\"]");
    let (admin, third) = caller("admin", "roles = [\"admin\"]");
    let server = Home::new(&[first, second, third].concat()).await.start().await;
    let create = async |key: &str, audience: &[&str]| {
        let audience = audience.iter().map(ToString::to_string).collect();
        let answer = server
            .client_with(key)
            .create_session(CreateSessionRequest { audience, ..request("alice") })
            .await;
        answer
            .map(|answer| answer.into_inner())
            .map(|answer| SignedIn::from((answer.session, answer.tokens)))
    };
    let not_allowed = Refusal::of(Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    for (audience, field) in [
        (&["https://other.test"][..], "audience[0]"),
        (&["https://orders.test", "https://x.test"], "audience[1]"),
        (&[], "audience[0]"),
    ] {
        let answer = create(&issuer, audience).await.err().unwrap();
        assert!(answer.message().contains(field), "{}", answer.message());
        assert_eq!(refused::<()>(Err(answer)), not_allowed, "{audience:?}");
    }
    let validate = async |session: &SignedIn| {
        let request =
            ValidateRequest { access_token: session.access.clone(), ..Default::default() };
        let answer = server.client_with(&validator).validate(request).await.unwrap().into_inner();
        (answer.active, answer.inactive_reason())
    };
    let orders = create(&issuer, &["https://orders.test"]).await.unwrap();
    let both = create(&issuer, &["https://stock.test", "https://orders.test"]).await.unwrap();
    let stock = create(&issuer, &["https://stock.test"]).await.unwrap();
    assert_eq!(validate(&orders).await, (true, InactiveReason::Unspecified));
    assert_eq!(validate(&both).await, (true, InactiveReason::Unspecified));
    assert_eq!(validate(&stock).await, (false, InactiveReason::WrongAudience));

    // The issuer cannot refresh a session that has an audience outside the limit of the issuer.
    let beyond = create(&admin, &["https://orders.test", "https://x.test"]).await.unwrap();
    let exchange = |session: &SignedIn| RefreshRequest {
        refresh_token: session.refresh.clone(),
        ..Default::default()
    };
    let answer = server.client_with(&issuer).refresh(exchange(&beyond)).await;
    assert_eq!(refused(answer), Refusal::unauthenticated("REFRESH_TOKEN_INVALID"));
    assert!(server.client_with(&issuer).refresh(exchange(&both)).await.is_ok());
    assert!(
        server.client_with(&admin).refresh(exchange(&beyond)).await.is_ok(),
        "the refused call did not use up the token"
    );
}

/// The service finds a used request id whichever caller sends it, and answers a repeated request
/// with tokens. A caller must not get tokens for other audiences in this way.
pub async fn a_caller_that_sends_the_request_id_of_another_gets_no_tokens_for_other_audiences() {
    let (admin, first) = caller("admin", "roles = [\"admin\"]");
    let (limited, second) =
        caller("issuer", "roles = [\"issuer\"]\naudiences = [\"https://orders.test\"]");
    let server = Home::new(&(first + &second)).await.start().await;
    let ask = |audience: &str| CreateSessionRequest {
        request_id: "one".to_owned(),
        audience: vec![audience.to_owned()],
        ..request("alice")
    };
    server.client_with(&admin).create_session(ask("https://stock.test")).await.unwrap();
    let answer = server.client_with(&limited).create_session(ask("https://orders.test")).await;
    assert_eq!(refused(answer), Refusal::request_id_reused());
}

pub async fn a_caller_over_its_rate_limit_is_asked_to_retry_later_and_others_are_served() {
    let (flood, first) = caller("flood", "roles = [\"validator\"]\ncalls_per_second = 5");
    let (modest, second) = caller("modest", "roles = [\"validator\"]");
    let server = Home::new(&(first + &second)).await.start().await;
    let ask = async |key: &str| {
        let request = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
        server.client_with(key).validate(request).await
    };
    for _ in 0..5 {
        ask(&flood).await.unwrap();
    }
    for _ in 0..10 {
        assert_eq!(
            refused(ask(&flood).await),
            Refusal::retry(Code::ResourceExhausted, "CALLER_OVER_LIMIT")
        );
        ask(&modest).await.unwrap();
    }
    server.clock.advance(countersign_test_support::server::seconds(1));
    ask(&flood).await.unwrap();
    let metrics = countersign_test_support::http_client::get(server.http, "/metrics").await.body;
    assert!(
        metrics.contains("countersign_calls_refused_total{reason=\"over_limit\"} 10"),
        "{metrics}"
    );
}

pub async fn any_key_is_accepted_if_no_callers_are_configured() {
    let server = Server::start().await;
    assert!(server.client_with("cs_ck_whatever").create_session(request("alice")).await.is_ok());
}
