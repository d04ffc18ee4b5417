//! Tests of the identifiers, the spans and the slow-call lines of calls.

use countersign::{proto::CreateSessionRequest, store::StoreError};
use countersign_test_support::{
    http_client::ask,
    log::{capture, logged},
    server::{Home, Server, eventually, of_token, request, seconds},
};
use tonic::Request;

use crate::gateways::post;

const HEADER: &str = "x-request-id";

/// Returns a request with an identifier.
fn identified(id: &str, request: CreateSessionRequest) -> Request<CreateSessionRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert(HEADER, id.parse().unwrap());
    request
}

pub async fn a_call_returns_the_identifier_that_it_was_sent_with_or_gets_a_new_one() {
    let server = Server::start().await;
    let mut client = server.client();
    let mut id = async |request| {
        let metadata = match client.create_session(request).await {
            Ok(answer) => answer.metadata().clone(),
            Err(status) => status.metadata().clone(),
        };
        metadata.get(HEADER).unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(id(identified("edge-7f/1", request("alice"))).await, "edge-7f/1");
    assert_eq!(id(identified("edge-7f/2", request(""))).await, "edge-7f/2", "a refused call");
    let (first, second) =
        (id(Request::new(request("bob"))).await, id(Request::new(request("bob"))).await);
    let is_random = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_random(&first) && is_random(&second) && first != second, "{first} {second}");
    let long = "x".repeat(129);
    assert!(is_random(&id(identified(&long, request("carol"))).await));

    let http =
        "GET /livez HTTP/1.1\r\nhost: a\r\nx-request-id: edge-7f/3\r\nconnection: close\r\n\r\n";
    assert!(ask(server.http, http).await.head.contains("x-request-id: edge-7f/3"));
    let head = post(server.http, "/oauth2/revoke", &[], "token=x").await.head;
    let (_, new) = head.split_once("x-request-id: ").unwrap();
    assert!(is_random(new.split("\r\n").next().unwrap()), "{head}");
}

pub async fn the_audit_names_the_call_that_asked_for_an_action() {
    capture();
    let server = Home::new("").await.start().await;
    let session = server.client().create_session(identified("call-1", request("alice"))).await;
    let access = session.unwrap().into_inner().tokens.unwrap().access_token;
    let body = format!("token={access}");
    post(server.http, "/oauth2/revoke", &[(HEADER, "call-2")], &body).await;
    server.sign_in("bob").await;
    let database = &server.home.database;
    for (id, action) in [("call-1", "session_created"), ("call-2", "session_revoked")] {
        let rows = format!("audit WHERE x_request_id = '{id}' AND action = '{action}'");
        eventually("the row", async || (database.count(&rows).await == 1).then_some(())).await;
        let is_line =
            |line: &&str| line.contains("audit") && line.contains(action) && line.contains(id);
        assert!(logged().lines().any(|line| is_line(&line)), "{id}");
    }
    let random = "audit WHERE length(x_request_id) = 32 AND action = 'session_created'";
    eventually("bob's row", async || (database.count(random).await == 1).then_some(())).await;
}

pub async fn a_failed_call_is_logged_with_the_data_that_identify_its_cause() {
    capture();
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.store.fail_with(Some(StoreError::Unavailable("disk full: SQLSTATE 53100".to_owned())));
    // The tests of both engines share one log.
    let id = format!("failed-{}", session.id());
    let mut revocation = Request::new(of_token(&session.access));
    revocation.metadata_mut().insert(HEADER, id.parse().unwrap());
    server.client().revoke(revocation).await.unwrap_err();
    let line = eventually("the line of the call", async || {
        logged()
            .lines()
            .find(|line| line.contains(&id) && line.contains("SQLSTATE 53100"))
            .map(str::to_owned)
    })
    .await;
    for part in
        ["WARN", "method=\"Revoke\"", "caller=\"anybody\"", &session.id(), "operation=\"revoke\""]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }

    let id = format!("http-{}", session.id());
    let body = format!("token={}", session.access);
    let answer = post(server.http, "/oauth2/revoke", &[(HEADER, &id)], &body).await;
    assert_eq!(answer.status, 503);
    let line = eventually("the line of the request", async || {
        logged()
            .lines()
            .find(|line| line.contains(&id) && line.contains("SQLSTATE 53100"))
            .map(str::to_owned)
    })
    .await;
    for part in ["route=\"/oauth2/revoke\"", "caller=\"anybody\"", &session.id()] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

pub async fn a_slow_call_is_logged_with_the_times_of_its_parts() {
    capture();
    let home = Home::new("[log]\nslow_calls = \"50ms\"\n").await;
    let server = home.start().await;
    let id = format!("slow-{}", server.sign_in("bob").await.id());
    server.store.creations.shut();
    let mut client = server.client();
    let call = identified(&id, request("alice"));
    let call = tokio::spawn(async move { client.create_session(call).await });
    server.store.creations.held().await;
    tokio::time::sleep(seconds(1) / 20).await;
    server.store.creations.open();
    call.await.unwrap().unwrap();
    let line = eventually("the line of the slow call", async || {
        let logged = logged();
        let mut lines = logged.lines();
        lines.find(|line| line.contains("a call was slow") && line.contains(&id)).map(str::to_owned)
    })
    .await;
    let time = |part: &str| {
        let (_, rest) = line.split_once(&format!(" {part}_ms=")).unwrap();
        rest.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(line.contains("method=\"CreateSession\"") && line.contains("code=\"OK\""), "{line}");
    assert!(time("took") >= 50 && time("store") >= 50 && time("store") <= time("took"), "{line}");
    assert_eq!(time("acknowledgement"), 0, "{line}");
}

pub async fn a_slow_request_over_http_is_logged_with_its_route() {
    capture();
    let home = Home::new("[log]\nslow_calls = \"50ms\"\n").await;
    let server = home.start().await;
    let session = server.sign_in("bob").await;
    let id = format!("slow-http-{}", session.id());
    server.store.committed_revocations.shut();
    let (address, body, header) = (server.http, format!("token={}", session.access), id.clone());
    let call =
        tokio::spawn(
            async move { post(address, "/oauth2/revoke", &[(HEADER, &header)], &body).await },
        );
    server.store.committed_revocations.held().await;
    tokio::time::sleep(seconds(1) / 20).await;
    server.store.committed_revocations.open();
    assert_eq!(call.await.unwrap().status, 200);
    let line = eventually("the line of the slow request", async || {
        let logged = logged();
        let mut lines = logged.lines();
        lines.find(|line| line.contains("a call was slow") && line.contains(&id)).map(str::to_owned)
    })
    .await;
    for part in ["route=\"/oauth2/revoke\"", "caller=\"anybody\"", "code=\"200\"", "store_ms="] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}
