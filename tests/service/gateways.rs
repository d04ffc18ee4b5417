//! Tests of the answers to gateways, over Envoy's protocol and over HTTP, and to callers that use
//! OAuth.

use std::{collections::HashMap, net::SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use countersign::{
    proto::{CreateSessionRequest, InactiveReason, ValidateRequest, revoke_request::Target},
    store::StoreError,
};
use envoy_types::pb::envoy::{
    config::core::v3::{
        HeaderMap, HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
    },
    service::auth::v3::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Request},
        authorization_client::AuthorizationClient,
        check_response::HttpResponse,
    },
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::callers::caller;
use countersign_test_support::{
    http_client::{Answer, Metrics, ask, get},
    log,
    server::{
        Home, Server, ShowKey, SignedIn, eventually, request, revocation, seconds, start_plus,
    },
};

/// The answer to a gateway, over either protocol.
#[derive(Debug, PartialEq)]
struct GatewayAnswer {
    status: u16,
    /// The headers for the application or the client, without those of HTTP itself.
    headers: Vec<(String, String)>,
    /// The headers that the gateway must remove from the request.
    removed: Vec<String>,
    body: String,
}

impl GatewayAnswer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found =
            self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "{name} is there more than once: {self:?}");
        first
    }
}

fn bearer(token: &str) -> HttpRequest {
    texts(&[("authorization", &format!("Bearer {token}"))])
}

fn texts(headers: &[(&str, &str)]) -> HttpRequest {
    let headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    HttpRequest { headers, ..HttpRequest::default() }
}

/// Returns a request with its headers as bytes, as Envoy sends them with `encode_raw_headers`.
fn raw(headers: &[(&str, &[u8])]) -> HttpRequest {
    let header = |(name, value): &(&str, &[u8])| HeaderValue {
        key: (*name).to_owned(),
        raw_value: value.to_vec(),
        ..HeaderValue::default()
    };
    let header_map = Some(HeaderMap { headers: headers.iter().map(header).collect() });
    HttpRequest { header_map, ..HttpRequest::default() }
}

fn asking(http: HttpRequest, extensions: &[(&str, &str)]) -> CheckRequest {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(Request { http: Some(http), ..Request::default() }),
            context_extensions: extensions.iter().map(pair).collect(),
            ..AttributeContext::default()
        }),
    }
}

async fn try_check(server: &Server, request: CheckRequest) -> Result<GatewayAnswer, Status> {
    let mut client =
        AuthorizationClient::new(server.channel.clone()).max_encoding_message_size(4 << 20);
    let answer = client.check(request).await?.into_inner();
    let code = Code::from_i32(answer.status.unwrap().code);
    let plain = |headers: Vec<HeaderValueOption>| {
        let mut plain: Vec<_> = headers
            .into_iter()
            .map(|option| {
                assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd);
                let header = option.header.unwrap();
                (header.key, header.value)
            })
            .collect();
        plain.sort();
        plain
    };
    Ok(match answer.http_response.unwrap() {
        HttpResponse::OkResponse(ok) => {
            assert_eq!(code, Code::Ok);
            let mut removed = ok.headers_to_remove;
            removed.sort();
            GatewayAnswer { status: 200, headers: plain(ok.headers), removed, body: String::new() }
        }
        HttpResponse::DeniedResponse(denied) => {
            let status = u16::try_from(denied.status.unwrap().code).unwrap();
            assert_eq!(
                code,
                if status == 401 { Code::Unauthenticated } else { Code::PermissionDenied }
            );
            GatewayAnswer {
                status,
                headers: plain(denied.headers),
                removed: vec![],
                body: denied.body,
            }
        }
        HttpResponse::ErrorResponse(error) => panic!("{error:?}"),
    })
}

async fn check(server: &Server, http: HttpRequest, extensions: &[(&str, &str)]) -> GatewayAnswer {
    try_check(server, asking(http, extensions)).await.unwrap()
}

fn gateway_answer(answer: Answer) -> GatewayAnswer {
    let of_protocol = ["content-length", "date", "connection", "transfer-encoding"];
    let mut headers: Vec<_> = answer
        .head
        .lines()
        .skip(1)
        .map(|line| {
            line.split_once(':')
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .unwrap()
        })
        .filter(|(name, _)| !of_protocol.contains(&name.as_str()))
        .collect();
    headers.sort();
    GatewayAnswer { status: answer.status, headers, removed: vec![], body: answer.body }
}

/// Asks over Envoy's protocol whether a request with this token may pass.
pub async fn check_as(server: &Server, key: &str, token: &str) -> Result<bool, Status> {
    let mut client =
        AuthorizationClient::with_interceptor(server.channel.clone(), ShowKey(key.to_owned()));
    let answer = client.check(asking(bearer(token), &[])).await?.into_inner();
    Ok(matches!(answer.http_response, Some(HttpResponse::OkResponse(_))))
}

/// Asks over HTTP whether a request with this token may pass, and returns the outcome as
/// [`in_words_of_grpc`] words it.
pub async fn forward_auth_as(server: &Server, key: &str, token: &str) -> String {
    let authorization = format!("Bearer {token}");
    let mut headers = vec![("authorization", &*authorization)];
    headers.extend((!key.is_empty()).then_some(("x-countersign-key", key)));
    let answer = forward_auth(server, "", &headers).await;
    in_words_of_grpc(answer.status, &answer.body)
}

/// Posts a form with a token, and returns the outcome as [`in_words_of_grpc`] words it.
pub async fn oauth_as(server: &Server, key: &str, path: &str, token: &str) -> String {
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", &*authorization)];
    let headers = if key.is_empty() { &[][..] } else { &headers };
    let answer = post(server.http, path, headers, &format!("token={token}")).await;
    in_words_of_grpc(answer.status, &answer.body)
}

/// Translates an answer over HTTP to the word that the tests in `callers` expect for this outcome.
fn in_words_of_grpc(status: u16, body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let no_session =
        body["error_description"].as_str().is_some_and(|text| text.contains("no such session"));
    let words = match (status, body["error"].as_str()) {
        (200, _) if body["active"] == json!(false) => "DENIED",
        (200, _) => "OK",
        (_, Some("invalid_token")) => "DENIED",
        (_, Some("invalid_client")) => "CALLER_UNKNOWN",
        (403, Some("unauthorized_client")) if no_session => "SESSION_NOT_FOUND",
        (403, Some("unauthorized_client")) => "CALLER_NOT_ALLOWED",
        _ => panic!("{status} {body}"),
    };
    words.to_owned()
}

async fn forward_auth(server: &Server, query: &str, headers: &[(&str, &str)]) -> GatewayAnswer {
    let mut request =
        format!("GET /forward-auth{query} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    gateway_answer(ask(server.http, &(request + "\r\n")).await)
}

pub async fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    let is_typed = headers.iter().any(|(name, _)| *name == "content-type");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for (name, value) in headers.iter().chain(if is_typed { &[][..] } else { &form }) {
        request += &format!("{name}: {value}\r\n");
    }
    ask(address, &(request + "\r\n" + body)).await
}

async fn sign_in(server: &Server, change: impl FnOnce(&mut CreateSessionRequest)) -> SignedIn {
    let mut asked = CreateSessionRequest {
        client_id: "web".to_owned(),
        audience: vec!["https://api.test".to_owned()],
        scopes: vec!["read".to_owned(), "write".to_owned()],
        ..request("alice")
    };
    change(&mut asked);
    server.create(asked).await.unwrap()
}

pub async fn both_kinds_of_gateways_get_the_same_answers() {
    let server = Server::start().await;
    let good = sign_in(&server, |asked| {
        asked.amr = vec!["pwd".to_owned()];
        asked.amr_verified_at = [("pwd".to_owned(), start_plus(seconds(0)))].into();
    })
    .await;
    let gone = sign_in(&server, |_| ()).await;
    server.revoke(revocation(Target::SessionId(gone.id()))).await.unwrap();
    let brief = sign_in(&server, |asked| asked.policy = "short".to_owned()).await;
    server.clock.advance(seconds(61));

    let realm = "bearer realm=\"https://auth.test\"";
    let invalid = |what: &str| {
        format!("{realm}, error=\"invalid_token\", error_description=\"the access token {what}\"")
    };
    let is_invalid = invalid("is not valid");
    for (token, demands, status, challenge) in [
        ("", "", 401, is_invalid.clone()),
        ("garbage", "", 401, is_invalid.clone()),
        (&*good.refresh, "", 401, is_invalid),
        (&*gone.access, "", 401, invalid("has been revoked")),
        (&*brief.access, "", 401, invalid("has expired")),
        (&*good.access, "audience=https://b.test", 401, invalid("is not meant for this resource")),
        (
            &*good.access,
            "scope=read delete",
            403,
            format!(
                "{realm}, error=\"insufficient_scope\", error_description=\"the access token \
                 lacks a scope\", scope=\"read delete\""
            ),
        ),
        (
            &*good.access,
            "acr_values=gold&max_age=30",
            401,
            format!(
                "{realm}, error=\"insufficient_user_authentication\", error_description=\"a \
                 stronger or more recent authentication is needed\", acr_values=\"gold\", \
                 max_age=\"30\""
            ),
        ),
        (
            &*good.access,
            "amr=pwd hwk@300&max_age=3600",
            401,
            format!(
                "{realm}, error=\"insufficient_user_authentication\", error_description=\"a \
                 stronger or more recent authentication is needed: the route demands pwd, hwk \
                 within 300 seconds\", max_age=\"300\""
            ),
        ),
        (&*good.access, "audience=https://api.test&scope=write&max_age=100", 200, String::new()),
        (&*good.access, "amr=pwd@100", 200, String::new()),
        (&*good.access, "amr=pwd@", 403, String::new()),
        (&*good.access, "scope=", 403, String::new()),
        (&*good.access, "scopes=read", 403, String::new()),
        (&*good.access, "max_age=5m", 403, String::new()),
    ] {
        let pairs: Vec<_> = demands.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let mut by_envoy = check(&server, bearer(token), &pairs).await;
        let authorization = format!("Bearer {token}");
        let query = format!("?{}", demands.replace(' ', "+"));
        let by_query = forward_auth(&server, &query, &[("authorization", &authorization)]).await;
        let names: Vec<_> = pairs
            .iter()
            .map(|(name, _)| format!("X-Countersign-{}", name.replace('_', "-")))
            .collect();
        let mut headers = vec![("authorization", &*authorization)];
        headers.extend(names.iter().zip(&pairs).map(|(name, (_, value))| (name.as_str(), *value)));
        let by_headers = forward_auth(&server, "", &headers).await;

        assert_eq!(by_envoy.status, status, "{demands}: {by_envoy:?}");
        assert_eq!(
            by_envoy.header("www-authenticate").unwrap_or_default().to_lowercase(),
            challenge
        );
        // `ask` converts the head of an answer over HTTP to lower case.
        by_envoy.headers.iter_mut().for_each(|(_, value)| *value = value.to_lowercase());
        by_envoy.removed.clear();
        if status == 200 {
            by_envoy.headers.push(("cache-control".to_owned(), "no-store".to_owned()));
            by_envoy.headers.sort();
        }
        assert_eq!(by_query, by_envoy, "{demands}");
        if demands != "scopes=read" {
            assert_eq!(by_headers, by_envoy, "{demands}");
        }
        if status != 200 {
            let body: Value = serde_json::from_str(&by_envoy.body).unwrap();
            assert!(body["error"].is_string() && body["error_description"].is_string(), "{body}");
        }
    }

    let nothing = check(&server, texts(&[]), &[("scope", "read")]).await;
    assert_eq!(
        (nothing.status, nothing.header("www-authenticate")),
        (401, Some("Bearer realm=\"https://auth.test\", scope=\"read\""))
    );
    assert_eq!(forward_auth(&server, "", &[]).await.status, 401);

    let metrics = Metrics::of(server.http).await;
    let count = |kind: &str, outcome: &str| {
        metrics.get(&format!("gateway_checks_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}"))
    };
    for (outcome, by_envoy, over_http) in [
        // The third request that passes over HTTP has an unknown header, `X-Countersign-scopes`,
        // which does not count as a demand.
        ("passed", 2.0, 5.0),
        ("no_credential", 1.0, 1.0),
        ("revoked", 1.0, 2.0),
        ("insufficient_scope", 1.0, 2.0),
        ("step_up_required", 2.0, 4.0),
        ("bad_demand", 4.0, 7.0),
        ("unavailable", 0.0, 0.0),
    ] {
        assert_eq!(
            (count("ext_authz", outcome), count("forward_auth", outcome)),
            (by_envoy, over_http),
            "{outcome}"
        );
    }
}

pub async fn the_settings_for_gateways_change_while_the_service_runs() {
    let server = Server::start().await;
    let session = sign_in(&server, |_| ()).await;
    let cookie = format!("session={}", session.access);
    let passed = async || {
        let over_http = forward_auth(&server, "", &[("cookie", &cookie)]).await.status;
        let by_envoy = check(&server, texts(&[("cookie", &cookie)]), &[]).await.status;
        ((over_http, by_envoy) == (200, 200)).then_some(())
    };
    assert_eq!(passed().await, None);
    server.reload("[gateway]\ncookie = 'session'");
    eventually("both read the cookie", passed).await;
}

pub async fn checks_are_answered_in_every_form_in_which_envoy_may_send_them() {
    let server = Home::new("[gateway]\ncookie = \"session\"").await.start().await;
    let session = sign_in(&server, |_| ()).await;
    let token = &*session.access;
    let value = format!("Bearer {token}");
    let cookie = format!("session={token}");
    let pseudo =
        [(":authority", "app.test"), (":path", "/x"), (":method", "GET"), (":scheme", "https")];
    let with_pseudo = texts(&[&pseudo[..], &[("authorization", &value)]].concat());
    let huge =
        HttpRequest { body: "x".repeat(900_000), raw_body: vec![0xff; 50_000], ..bearer(token) };
    let both = HttpRequest {
        headers: bearer(token).headers,
        ..raw(&[("authorization", value.as_bytes())])
    };
    let twice = [("authorization", value.as_bytes()), ("authorization", value.as_bytes())];
    let cookies = format!("a=b; {cookie}; c=\"d\"");
    let two_cookies = format!("{cookie}; session=other");
    let (equal_cookies, empty_cookie) =
        (format!("{cookie}; {cookie}"), format!("session=; {cookie}"));
    for (what, http, status) in [
        ("pseudo headers", with_pseudo, 200),
        ("a name in capitals", texts(&[("Authorization", &value)]), 200),
        ("bytes", raw(&[("authorization", value.as_bytes())]), 200),
        (
            "bytes that are not UTF-8 in another header",
            raw(&[("x", b"\xff\0"), ("authorization", value.as_bytes())]),
            200,
        ),
        ("bytes that are not UTF-8", raw(&[("authorization", b"Bearer \xff\xfe")]), 401),
        ("a huge body", huge, 200),
        ("a cookie among others", texts(&[("cookie", &cookies)]), 200),
        (
            "a cookie in a header of its own",
            raw(&[("cookie", b"a=b"), ("cookie", cookie.as_bytes())]),
            200,
        ),
        (
            "a cookie beside another scheme",
            texts(&[("authorization", "Basic eDp5"), ("cookie", &cookie)]),
            200,
        ),
        (
            "the same in header and cookie",
            texts(&[("authorization", &value), ("cookie", &cookie)]),
            200,
        ),
        (
            "a bad header and a good cookie",
            texts(&[("authorization", "Bearer x"), ("cookie", &cookie)]),
            401,
        ),
        ("two cookies of the name", texts(&[("cookie", &two_cookies)]), 401),
        ("the same cookie twice", texts(&[("cookie", &equal_cookies)]), 200),
        ("an empty cookie beside a good one", texts(&[("cookie", &empty_cookie)]), 200),
        ("an empty cookie alone", texts(&[("cookie", "session=")]), 401),
        ("two headers", raw(&twice), 401),
        (
            "two schemes",
            raw(&[("authorization", b"Basic eDp5"), ("authorization", value.as_bytes())]),
            401,
        ),
        ("two headers in one", texts(&[("authorization", &format!("{value},{value}"))]), 401),
        ("texts and bytes", both, 401),
        ("another scheme", texts(&[("authorization", &format!("DPoP {token}"))]), 401),
        ("no scheme", texts(&[("authorization", token)]), 401),
        ("nothing", HttpRequest::default(), 401),
    ] {
        assert_eq!(check(&server, http, &[]).await.status, status, "{what}");
    }
    let metrics = Metrics::of(server.http).await;
    assert_eq!(metrics.get("gateway_conflicting_cookies_total{kind=\"ext_authz\"}"), 1.0);
    assert_eq!(
        metrics.get("gateway_checks_total{kind=\"ext_authz\",outcome=\"conflicting_cookies\"}"),
        1.0
    );
    assert_eq!(
        metrics.get("gateway_checks_total{kind=\"ext_authz\",outcome=\"no_credential\"}"),
        4.0
    );

    // A check must contain an HTTP request.
    for nothing in
        [CheckRequest::default(), CheckRequest { attributes: Some(AttributeContext::default()) }]
    {
        assert_eq!(try_check(&server, nothing).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let beyond = HttpRequest { body: "x".repeat(1 << 20), ..bearer(token) };
    assert_eq!(
        try_check(&server, asking(beyond, &[])).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(check(&server, bearer(token), &[]).await.status, 200, "the service still answers");
}

pub async fn the_application_gets_the_verified_identity_and_no_header_that_the_client_forged() {
    let settings = "[gateway]\ncookie = \"session\"\nremove_credential = \
                    true\n[gateway.headers]\nX-User = \"sub\"\nX-Acr = \"acr\"\nX-Plan = \
                    \"plan\"\nX-Sid = \"sid\"";
    let server = Home::new(settings).await.start().await;
    let session = sign_in(&server, |_| ()).await;
    let authorization = format!("Bearer {}", session.access);
    let lies = [
        ("x-user", "mallory"),
        ("X_User", "mallory"),
        ("x_plan", "gold"),
        ("x-plan", "gold"),
        ("x_other", "stays"),
    ];
    let http = texts(&[&lies[..], &[("authorization", &authorization)]].concat());
    let answer = check(&server, http, &[]).await;
    let expected = [("x-sid", session.id()), ("x-user", "alice".to_owned())]
        .map(|(name, value)| (name.to_owned(), value));
    assert_eq!(answer.headers, expected);
    assert_eq!(answer.removed, ["X_User", "authorization", "x-acr", "x-plan", "x_plan"]);

    // Only the cookie with the token is removed.
    let cookies = format!("a=b; session={}; c=d", session.access);
    let answer = check(&server, texts(&[("cookie", &cookies)]), &[]).await;
    assert_eq!((answer.status, answer.header("cookie")), (200, Some("a=b; c=d")));
    let answer =
        check(&server, texts(&[("cookie", &format!("session={}", session.access))]), &[]).await;
    assert_eq!(answer.removed, ["cookie", "x-acr", "x-plan"]);
    let both = [("authorization", &*authorization), ("cookie", &*cookies)];
    let answer = check(&server, texts(&both), &[]).await;
    assert_eq!(answer.header("cookie"), Some("a=b; c=d"), "the token is removed from both");
    assert_eq!(answer.removed, ["authorization", "x-acr", "x-plan"]);

    // Over HTTP, a header whose claim is missing is sent empty, because the gateway copies the
    // headers from this answer and cannot be told to remove a header.
    let answer =
        forward_auth(&server, "", &[("authorization", &authorization), ("x-plan", "gold")]).await;
    assert_eq!((answer.header("x-user"), answer.header("x-plan")), (Some("alice"), Some("")));
}

pub async fn claim_values_are_encoded_so_that_they_cannot_break_a_header() {
    let settings =
        "[gateway]\nmax_header_bytes = 256\n[gateway.headers]\nX-Note = \"note\"\nX-User = \"sub\"";
    let server = Home::new(settings).await.start().await;
    let string = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let with_note = async |note: &str| {
        let claims = prost_types::Struct { fields: [("note".to_owned(), string(note))].into() };
        sign_in(&server, |asked| asked.claims = Some(claims.into())).await.access
    };
    for (note, expected) in [
        ("x\r\nX-Admin: yes\r\n\r\n<html>", "x%0d%0ax-admin: yes%0d%0a%0d%0a<html>"),
        ("\u{e9}\u{1f600}", "%c3%a9%f0%9f%98%80"),
        ("100 %", "100 %25"),
        (" ends ", "%20ends%20"),
        ("\u{7f}\u{1}\t", "%7f%01%09"),
        ("a, b; c=\"d\"", "a, b; c=\"d\""),
    ] {
        let token = with_note(note).await;
        let by_envoy = check(&server, bearer(&token), &[]).await;
        assert_eq!(
            by_envoy.header("x-note").map(str::to_lowercase).as_deref(),
            Some(expected),
            "{note:?}"
        );
        let over_http =
            forward_auth(&server, "", &[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!(
            (over_http.status, over_http.header("x-note")),
            (200, Some(expected)),
            "{note:?}"
        );
        assert_eq!(over_http.header("x-admin"), None);
    }
    // A value that is too long is not truncated.
    let long = with_note(&"x".repeat(257)).await;
    let answer = check(&server, bearer(&long), &[]).await;
    assert_eq!(
        (answer.status, answer.header("www-authenticate")),
        (403, None),
        "the client is not asked for another token, which would not help"
    );
    assert!(
        answer.body.contains("x-note") && answer.body.contains("max_header_bytes"),
        "{}",
        answer.body
    );
    assert_eq!(
        forward_auth(&server, "", &[("authorization", &format!("Bearer {long}"))]).await.status,
        403
    );
    assert_eq!(check(&server, bearer(&with_note(&"x".repeat(256)).await), &[]).await.status, 200);
}

pub async fn the_path_and_query_of_the_client_after_the_prefix_are_not_read_as_demands() {
    let server = Server::start().await;
    let session = sign_in(&server, |_| ()).await;
    let authorization = format!("Bearer {}", session.access);
    let asked = async |path: &str, demand: Option<&str>| {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(demand.map(|demand| ("x-countersign-scope", demand)));
        forward_auth(&server, path, &headers).await.status
    };
    for path in ["", "/", "/orders/1", "/orders/%2e%2e//x"] {
        let path = format!("-path{path}?page=2&scope=delete");
        assert_eq!(asked(&path, None).await, 200);
        assert_eq!(asked(&path, Some("read")).await, 200);
        assert_eq!(asked(&path, Some("delete")).await, 403);
    }
    assert_eq!(asked("?page=2", None).await, 403);
    // `/forward-auth` takes no further path, so a superfluous slash cannot hide its demands.
    for path in ["/?scope=delete", "/orders?scope=delete"] {
        assert_eq!(asked(path, None).await, 404, "{path}");
    }
}

pub async fn gateways_are_answered_without_the_database() {
    let server = Server::start().await;
    let session = sign_in(&server, |_| ()).await;
    server.store.fail_with(Some(StoreError::Unavailable("away".to_owned())));
    let authorization = format!("Bearer {}", session.access);
    assert_eq!(check(&server, bearer(&session.access), &[]).await.status, 200);
    assert_eq!(forward_auth(&server, "", &[("authorization", &authorization)]).await.status, 200);
    let answer =
        post(server.http, "/oauth2/introspect", &[], &format!("token={}", session.access)).await;
    assert!(answer.body.contains("\"active\":true"), "{answer:?}");
    // A revocation that could not be written is not acknowledged.
    let answer =
        post(server.http, "/oauth2/revoke", &[], &format!("token={}", session.access)).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
    server.store.fail_with(None);
    assert_eq!(server.verdict(&session.access).await, Ok(()));
}

fn json_of(answer: &Answer) -> Value {
    assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
    assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

pub async fn introspection_returns_the_claims_of_a_good_token_and_nothing_about_others() {
    let server = Server::start().await;
    let fields = [("plan", "gold"), ("active", "no"), ("token_type", "x")].map(|(name, value)| {
        let value = prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
        };
        (name.to_owned(), value)
    });
    let claims = prost_types::Struct { fields: fields.into() };
    let good = sign_in(&server, |asked| asked.claims = Some(claims.into())).await;
    let gone = sign_in(&server, |_| ()).await;
    server.revoke(revocation(Target::SessionId(gone.id()))).await.unwrap();
    let introspect = async |body: &str| post(server.http, "/oauth2/introspect", &[], body).await;

    let mut expected = json!(countersign_test_support::forge::claims(&good.access));
    expected["active"] = json!(true);
    expected["token_type"] = json!("Bearer");
    for hint in ["", "&token_type_hint=access_token", "&token_type_hint=refresh_token&other=1"] {
        let answer = introspect(&format!("token={}{hint}", good.access)).await;
        assert_eq!((answer.status, json_of(&answer)), (200, expected.clone()), "{hint}");
    }
    assert_eq!(expected["sub"], "alice");
    assert_eq!(expected["scope"], "read write");

    server.clock.advance(seconds(1));
    for token in
        ["x", &gone.access, &gone.refresh, &good.refresh, "a.b.c", "%00", &"x".repeat(9000)]
    {
        let answer = introspect(&format!("token={token}")).await;
        assert_eq!(
            (answer.status, json_of(&answer)),
            (200, json!({ "active": false })),
            "{token:.40}"
        );
    }
    server.clock.advance(seconds(600));
    assert_eq!(
        json_of(&introspect(&format!("token={}", good.access)).await),
        json!({ "active": false })
    );

    for body in
        ["", "token=", "other=x", "token=a&token=b", &format!("token={}", "x".repeat(20_000))]
    {
        let answer = introspect(body).await;
        assert_eq!(
            (answer.status, &json_of(&answer)["error"]),
            (400, &json!("invalid_request")),
            "{body:.40}"
        );
    }
    for content in ["application/json", "text/plain", ""] {
        let answer =
            post(server.http, "/oauth2/introspect", &[("content-type", content)], "token=x").await;
        assert_eq!(
            (answer.status, &json_of(&answer)["error"]),
            (400, &json!("invalid_request")),
            "{content}"
        );
    }
    assert_eq!(get(server.http, "/oauth2/introspect?token=x").await.status, 405);
}

pub async fn oauth_revocation_takes_either_token_and_ignores_invalid_ones() {
    let server = Server::start().await;
    let revoke = async |body: &str| post(server.http, "/oauth2/revoke", &[], body).await;
    let (first, second) = (sign_in(&server, |_| ()).await, sign_in(&server, |_| ()).await);
    let rows = server.rows().await;
    for token in ["x", "a.b.c", "%0d%0a", &"x".repeat(9000)] {
        assert_eq!(revoke(&format!("token={token}")).await.status, 200, "{token:.40}");
    }
    assert_eq!(server.rows().await, rows);
    for (session, token) in [(&first, &first.access), (&second, &second.refresh)] {
        let answer = revoke(&format!("token={token}&token_type_hint=whatever")).await;
        assert_eq!((answer.status, &*answer.body), (200, ""));
        assert!(server.verdict(&session.access).await.is_err());
        assert!(server.refresh(&session.refresh).await.is_err());
        assert_eq!(revoke(&format!("token={token}")).await.status, 200, "once more");
    }
    let idle = sign_in(&server, |_| ()).await;
    server.clock.advance(seconds(3600));
    assert_eq!(server.verdict(&idle.access).await, Err(InactiveReason::Expired));
    assert_eq!(revoke(&format!("token={}", idle.access)).await.status, 200);
    assert!(server.refresh(&idle.refresh).await.is_err(), "an expired access token signs out, too");
    for body in ["", "token=", "token=a&token=b"] {
        assert_eq!(revoke(body).await.status, 400, "{body}");
    }
}

pub async fn callers_over_http_must_be_known_and_may_do_no_more_than_over_grpc() {
    log::capture();
    let (validator, first) = caller("gateway", "roles = [\"validator\"]");
    let (revoker, second) = caller("security", "roles = [\"revoker\"]\ntenants = [\"other\"]");
    let (admin, third) = caller("admin", "roles = [\"admin\"]");
    let server = Home::new(&[first, second, third].concat()).await.start().await;
    let created =
        server.client_with(&admin).create_session(request("alice")).await.unwrap().into_inner();
    let session = SignedIn::from((created.session, created.tokens));
    let basic =
        |name: &str, key: &str| format!("Basic {}", STANDARD.encode(format!("{name}:{key}")));
    let form = format!("token={}", session.access);
    let stranger = caller("stranger", "").0;

    let oauth = async |path: &str, authorization: &str| {
        let headers = [("authorization", authorization)];
        post(server.http, path, if authorization.is_empty() { &[] } else { &headers }, &form).await
    };
    let bearer = |key: &str| format!("Bearer {key}");
    for (path, authorization, status, error) in [
        ("/oauth2/introspect", basic("gateway", &validator), 200, ""),
        ("/oauth2/introspect", bearer(&validator), 200, ""),
        ("/oauth2/introspect", bearer(&admin), 200, ""),
        ("/oauth2/introspect", bearer(&revoker), 403, "unauthorized_client"),
        ("/oauth2/introspect", String::new(), 401, "invalid_client"),
        ("/oauth2/introspect", bearer(&stranger), 401, "invalid_client"),
        ("/oauth2/introspect", basic("security", &validator), 401, "invalid_client"),
        ("/oauth2/introspect", basic("gateway", &stranger), 401, "invalid_client"),
        ("/oauth2/introspect", basic("gateway", ""), 401, "invalid_client"),
        ("/oauth2/introspect", format!("Digest {validator}"), 401, "invalid_client"),
        ("/oauth2/revoke", bearer(&validator), 403, "unauthorized_client"),
        ("/oauth2/revoke", String::new(), 401, "invalid_client"),
        ("/oauth2/revoke", basic("security", &revoker), 403, "unauthorized_client"),
    ] {
        let answer = oauth(path, &authorization).await;
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        assert_eq!(
            (answer.status, body["error"].as_str().unwrap_or_default()),
            (status, error),
            "{path} {authorization:.12}"
        );
        let challenges = answer.head.matches("www-authenticate: ").count();
        assert_eq!(challenges, if status == 401 { 2 } else { 0 }, "{answer:?}");
    }
    let question = ValidateRequest { access_token: session.access.clone(), ..Default::default() };
    let answer = server.client_with(&admin).validate(question).await.unwrap();
    assert!(answer.get_ref().active, "nothing was revoked");

    // The gateway sends its own key in a separate header, since `authorization` holds the token of
    // the request.
    let authorization = bearer(&session.access);
    let own = |key: &'static str| {
        [("authorization", authorization.clone()), ("x-countersign-key", key.to_owned())]
    };
    for (key, status) in [
        (validator.clone(), 200),
        (admin.clone(), 200),
        (revoker.clone(), 403),
        (stranger, 403),
        (String::new(), 403),
    ] {
        let headers = own(key.leak());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = forward_auth(&server, "", &headers).await;
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (status, None),
            "{answer:?}"
        );
    }
    assert_eq!(
        forward_auth(&server, "", &[("authorization", &bearer(&validator))]).await.status,
        403
    );
    let twice = [
        ("authorization", &*authorization),
        ("x-countersign-key", &validator),
        ("x-countersign-key", &validator),
    ];
    assert_eq!(forward_auth(&server, "", &twice).await.status, 403);

    // An admin may revoke. It authenticates by Basic here.
    assert_eq!(oauth("/oauth2/revoke", &basic("admin", &admin)).await.status, 200);
    assert_eq!(
        json_of(&oauth("/oauth2/introspect", &bearer(&validator)).await),
        json!({ "active": false })
    );
    let logged = log::logged();
    for (name, secret) in [("token", &session.access), ("key", &validator), ("key", &admin)] {
        log::hidden(&logged, name, secret);
    }
    assert!(
        logged.contains("introspection") && logged.contains("forward-auth"),
        "the denied callers are recorded"
    );
}

pub async fn the_metadata_name_the_endpoints_of_introspection_and_revocation() {
    let server = Server::start().await;
    let answer = get(server.http, "/.well-known/oauth-authorization-server").await;
    let metadata: HashMap<String, Value> = serde_json::from_str(&answer.body).unwrap();
    for (endpoint, path) in [
        ("introspection_endpoint", "/oauth2/introspect"),
        ("revocation_endpoint", "/oauth2/revoke"),
    ] {
        let url = metadata[endpoint].as_str().unwrap();
        assert_eq!(url.strip_prefix("https://auth.test"), Some(path));
        assert_eq!(post(server.http, path, &[], "token=x").await.status, 200);
    }
}
