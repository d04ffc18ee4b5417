//! Tests of the metrics of calls, requests, validations, and what stands behind them.

use std::collections::BTreeMap;

use countersign::proto::{
    BatchValidateRequest, CountSessionsRequest, CreateSessionRequest, GetSessionRequest,
    ImportSessionsRequest, ListAuditRequest, ListKeysRequest, ListRevocationsRequest,
    ListSessionsRequest, ReauthenticateRequest, RefreshRequest, RevokeKeyRequest, RotateKeyRequest,
    UpdateSessionRequest, ValidateRequest, audit_service_client::AuditServiceClient,
    key_service_client::KeyServiceClient, reauthenticate_request,
};
use countersign_test_support::{
    http_client::{Metrics, ask, get},
    server::{Home, Server, eventually, of_token, request, seconds},
    watcher::Watcher,
};
use envoy_types::pb::envoy::service::auth::v3::{
    CheckRequest, authorization_client::AuthorizationClient,
};
use futures_util::future::join_all;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;

use super::callers::caller;

const SESSIONS: &str = "countersign.v1.SessionService";
const KEYS: &str = "countersign.v1.KeyService";

/// Returns how many calls of a method ended with a code, and how many durations it has.
fn calls(metrics: &Metrics, service: &str, method: &str, code: &str) -> (f64, f64) {
    let labels = format!("service=\"{service}\",method=\"{method}\"");
    let ended = metrics.find(&format!("requests_total{{{labels},code=\"{code}\"}}"));
    let durations = format!("request_duration_seconds_count{{{labels}}}");
    (ended.unwrap_or_default(), metrics.get(&durations))
}

/// Returns the same of an HTTP route.
fn requests(metrics: &Metrics, route: &str, code: &str) -> (f64, f64) {
    let ended = metrics.find(&format!("http_requests_total{{route=\"{route}\",code=\"{code}\"}}"));
    let durations = format!("http_request_duration_seconds_count{{route=\"{route}\"}}");
    (ended.unwrap_or_default(), metrics.get(&durations))
}

/// Waits until a scrape satisfies `wanted`. A call is counted when its answer has been sent, which
/// may be a moment after its client has it.
async fn await_metrics(server: &Server, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
    eventually(what, async || Some(Metrics::of(server.http).await).filter(&wanted)).await
}

pub async fn every_method_is_counted_with_its_code_and_its_duration() {
    let server = Server::start().await;
    let mut sessions = server.client();
    let mut keys = KeyServiceClient::new(server.channel.clone());
    let session = server.sign_in("alice").await;
    let token = session.access.clone();
    let validate = ValidateRequest { access_token: token.clone(), ..Default::default() };
    sessions.validate(validate.clone()).await.unwrap();
    sessions.batch_validate(BatchValidateRequest { requests: vec![validate] }).await.unwrap();
    sessions.get_session(GetSessionRequest { session_id: session.id() }).await.unwrap();
    sessions.list_sessions(ListSessionsRequest::default()).await.unwrap();
    sessions.count_sessions(CountSessionsRequest::default()).await.unwrap();
    let mut audit = AuditServiceClient::new(server.channel.clone());
    audit.list_audit(ListAuditRequest::default()).await.unwrap();
    sessions.list_revocations(ListRevocationsRequest::default()).await.unwrap();
    let refresh = RefreshRequest { refresh_token: session.refresh, ..Default::default() };
    sessions.refresh(refresh).await.unwrap();
    let update = UpdateSessionRequest {
        session_id: session.session.session_id.clone(),
        revoke_access_tokens: true,
        ..Default::default()
    };
    sessions.update_session(update).await.unwrap();
    let again = ReauthenticateRequest {
        session: Some(reauthenticate_request::Session::SessionId("x".to_owned())),
        ..Default::default()
    };
    sessions.reauthenticate(again).await.unwrap_err();
    sessions.import_sessions(ImportSessionsRequest::default()).await.unwrap_err();
    sessions.revoke(of_token(&token)).await.unwrap();
    keys.get_jwks(countersign::proto::GetJwksRequest::default()).await.unwrap();
    keys.list_keys(ListKeysRequest::default()).await.unwrap();
    keys.rotate_key(RotateKeyRequest::default()).await.unwrap_err();
    keys.revoke_key(RevokeKeyRequest { kid: "none".to_owned() }).await.unwrap_err();
    Watcher::begin(server.channel()).await.0.end().await;
    let mut gateway = AuthorizationClient::new(server.channel.clone());
    gateway.check(CheckRequest::default()).await.unwrap_err();
    server.health().check(HealthCheckRequest::default()).await.unwrap();
    drop(server.watch_health("").await);
    let mut unknown = tonic::client::Grpc::new(server.channel.clone());
    unknown.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let path = "/nobody.Knows/This".parse().unwrap();
    unknown.unary(Request::new(HealthCheckRequest::default()), path, codec).await.unwrap_err();

    for (service, method, code) in [
        (SESSIONS, "Validate", "OK"),
        (SESSIONS, "BatchValidate", "OK"),
        (SESSIONS, "CreateSession", "OK"),
        (SESSIONS, "Refresh", "OK"),
        (SESSIONS, "Reauthenticate", "INVALID_ARGUMENT"),
        (SESSIONS, "UpdateSession", "OK"),
        (SESSIONS, "ImportSessions", "INVALID_ARGUMENT"),
        (SESSIONS, "Revoke", "OK"),
        (SESSIONS, "GetSession", "OK"),
        (SESSIONS, "ListSessions", "OK"),
        (SESSIONS, "CountSessions", "OK"),
        ("countersign.v1.AuditService", "ListAudit", "OK"),
        (SESSIONS, "ListRevocations", "OK"),
        ("countersign.v1.RevocationService", "Watch", "OK"),
        (KEYS, "GetJwks", "OK"),
        (KEYS, "ListKeys", "OK"),
        (KEYS, "RotateKey", "FAILED_PRECONDITION"),
        (KEYS, "RevokeKey", "NOT_FOUND"),
        ("envoy.service.auth.v3.Authorization", "Check", "INVALID_ARGUMENT"),
        ("grpc.health.v1.Health", "Check", "OK"),
        ("other", "other", "UNIMPLEMENTED"),
    ] {
        await_metrics(&server, &format!("{method} is counted"), |metrics| {
            calls(metrics, service, method, code) == (1.0, 1.0)
        })
        .await;
    }
    let metrics = await_metrics(&server, "the watch is counted", |metrics| {
        calls(metrics, "grpc.health.v1.Health", "Watch", "CANCELLED").0 >= 1.0
    })
    .await;
    assert!(metrics.get("validations_total{result=\"active\",reason=\"\"}") >= 2.0);
    for (metric, least) in [
        ("store_operations_total{operation=\"create_session\",result=\"ok\"}", 1.0),
        ("store_operation_duration_seconds_count{operation=\"revoke\"}", 1.0),
        ("write_batch_duration_seconds_count{queue=\"creations\"}", 1.0),
        ("write_batch_writes_sum{queue=\"refreshes\"}", 1.0),
        ("write_queue_wait_seconds_count{queue=\"revocations\"}", 1.0),
        ("keys{purpose=\"access_token\",state=\"active\"}", 1.0),
        ("token_cache_misses_total", 1.0),
    ] {
        assert!(metrics.get(metric) >= least, "{metric}");
    }
}

pub async fn calls_that_are_refused_time_out_or_are_cancelled_are_counted_with_their_codes() {
    let (key, login) = caller("login", "roles = [\"issuer\"]");
    let home = Home::new(&format!("{login}\n[limits]\nmax_calls_per_caller = 1\n")).await;
    let server = home.start().await;
    let validate = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
    server.validate(validate).await.unwrap_err();
    let mut client = server.client_with(&key);
    let validate = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
    client.validate(validate).await.unwrap_err();
    let bad = CreateSessionRequest::default();
    client.create_session(bad).await.unwrap_err();

    server.store.creations.shut();
    let mut leaving = client.clone();
    let left = tokio::spawn(async move { leaving.create_session(request("alice")).await });
    server.store.creations.held().await;
    client.create_session(request("bob")).await.unwrap_err();
    left.abort();
    eventually("the caller may call again", async || {
        let mut late = Request::new(request("alice"));
        late.set_timeout(seconds(1) / 20);
        let outcome = client.clone().create_session(late).await;
        outcome.err().filter(|status| status.code() != Code::ResourceExhausted)
    })
    .await;
    for (method, code) in [
        ("Validate", "UNAUTHENTICATED"),
        ("Validate", "PERMISSION_DENIED"),
        ("CreateSession", "INVALID_ARGUMENT"),
        ("CreateSession", "RESOURCE_EXHAUSTED"),
        ("CreateSession", "CANCELLED"),
    ] {
        await_metrics(&server, &format!("{method} is counted as {code}"), |metrics| {
            calls(metrics, SESSIONS, method, code).0 >= 1.0
        })
        .await;
    }
    // The client gives up when the deadline passes, perhaps before it has the server's answer.
    await_metrics(&server, "the late call is counted", |metrics| {
        let times = |code| calls(metrics, SESSIONS, "CreateSession", code).0;
        times("CANCELLED") + times("DEADLINE_EXCEEDED") >= 2.0
    })
    .await;
    server.store.creations.open();
}

pub async fn every_http_route_is_counted_with_its_status_and_its_duration() {
    let server = Server::start().await;
    for path in [
        "/livez",
        "/readyz",
        "/.well-known/jwks.json",
        "/.well-known/oauth-authorization-server",
        "/forward-auth",
        "/forward-auth-path/a/b",
        "/nothing/here",
    ] {
        get(server.http, path).await;
    }
    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\
             \r\ncontent-length: 7\r\nconnection: close\r\n\r\ntoken=x"
        );
        assert_eq!(ask(server.http, &request).await.status, 200, "{path}");
    }
    let refused = ask(server.http, "GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(refused.status, 400);
    let metrics = Metrics::of(server.http).await;
    for (route, code) in [
        ("/readyz", "200"),
        ("/.well-known/jwks.json", "200"),
        ("/.well-known/oauth-authorization-server", "200"),
        ("/forward-auth", "401"),
        ("/forward-auth-path", "401"),
        ("/oauth2/introspect", "200"),
        ("/oauth2/revoke", "200"),
        ("other", "404"),
    ] {
        assert_eq!(requests(&metrics, route, code), (1.0, 1.0), "{route}");
    }
    assert_eq!(requests(&metrics, "/livez", "200"), (1.0, 2.0));
    assert_eq!(requests(&metrics, "/livez", "400"), (1.0, 2.0));
}

pub async fn the_counts_agree_with_those_of_a_client_over_10_000_calls() {
    const CLIENTS: usize = 8;
    let server = Server::start().await;
    let signed_in = server.sign_in("alice").await;
    let one = async |number: usize| {
        let (mut client, mut seen) = (server.client(), BTreeMap::new());
        for call in 0..10_000 / CLIENTS {
            let access_token =
                if call % 3 == 0 { "forged".to_owned() } else { signed_in.access.clone() };
            let validate = ValidateRequest { access_token, ..Default::default() };
            let subject = if call % 400 == 0 { "" } else { "bob" };
            let (method, outcome) = match call % 40 {
                0 => ("CreateSession", client.create_session(request(subject)).await.map(drop)),
                1 => {
                    let session_id = if number.is_multiple_of(2) {
                        signed_in.id()
                    } else {
                        "nonsense".to_owned()
                    };
                    let asked = GetSessionRequest { session_id };
                    ("GetSession", client.get_session(asked).await.map(drop))
                }
                2 => {
                    let requests = vec![validate; call % 3];
                    let batch = BatchValidateRequest { requests };
                    ("BatchValidate", client.batch_validate(batch).await.map(drop))
                }
                _ => ("Validate", client.validate(validate).await.map(drop)),
            };
            let code = match outcome.map_err(|status| status.code()) {
                Ok(()) => "OK",
                Err(Code::InvalidArgument) => "INVALID_ARGUMENT",
                Err(other) => panic!("{other:?}"),
            };
            *seen.entry((method, code)).or_insert(0.0) += 1.0;
        }
        seen
    };
    let mut expected = BTreeMap::from([(("CreateSession", "OK"), 1.0)]);
    for seen in join_all((0..CLIENTS).map(one)).await {
        for (call, times) in seen {
            *expected.entry(call).or_insert(0.0) += times;
        }
    }
    await_metrics(&server, "the counts agree", |metrics| {
        expected
            .iter()
            .all(|((method, code), times)| calls(metrics, SESSIONS, method, code).0 == *times)
    })
    .await;
    let total: f64 = expected.values().sum();
    assert!((total - 10_001.0).abs() < f64::EPSILON, "{expected:?}");
    assert_eq!(expected.len(), 7, "{expected:?}");
}
