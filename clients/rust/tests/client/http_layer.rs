//! Tests of the middleware for HTTP. The authority is within the process.

use std::time::Duration;

use axum::{Router, body::to_bytes, routing::get};
use countersign_client::{
    Demands, Session,
    layer::http::Protect,
    testing::{AUDIENCE, Authority},
};
use http::{Request, StatusCode};
use tower::ServiceExt;

/// An answer: its status, its challenge, and its body.
type Seen = (StatusCode, String, String);

fn routes(protect: &Protect) -> Router {
    let subject = async |session: Session| session.subject().to_owned();
    let perhaps = async |session: Option<Session>| {
        session.map_or("nobody".to_owned(), |session| session.subject().to_owned())
    };
    let demands = Demands::new()
        .audience(AUDIENCE)
        .acr_values(["gold"])
        .max_authentication_age(Duration::from_secs(60));
    let step_up = protect.clone().demands(demands);
    let scope = protect.clone().demands(Demands::new().audience(AUDIENCE).scope("orders:write"));
    Router::new()
        .route("/me", get(subject).layer(protect.clone()))
        .route("/orders", get(subject).layer(scope))
        .route("/payment", get(subject).layer(step_up))
        .route("/", get(perhaps).layer(protect.clone().optional()))
        .route("/forgotten", get(subject))
}

fn site() -> (Authority, Router) {
    let authority = Authority::new();
    let protect = Protect::new(authority.verifier(), Demands::new().audience(AUDIENCE))
        .cookie("session")
        .realm("shop");
    let routes = routes(&protect);
    (authority, routes)
}

async fn call(routes: &Router, path: &str, headers: &[(&str, String)]) -> Seen {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(axum::body::Body::empty()).unwrap();
    let answer = routes.clone().oneshot(request).await.unwrap();
    let challenge = answer.headers().get("www-authenticate");
    let challenge = challenge.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = answer.status();
    let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
    (status, challenge, String::from_utf8(body.to_vec()).unwrap())
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

fn cookie(token: &str) -> (&'static str, String) {
    ("cookie", format!("theme=dark; session={token}"))
}

#[tokio::test]
async fn a_token_passes_in_the_header_and_in_the_cookie_and_nowhere_else() {
    let (authority, routes) = site();
    let token = authority.token("alice").issue();
    let alice = (StatusCode::OK, String::new(), "alice".to_owned());
    for headers in [
        &[bearer(&token)][..],
        &[cookie(&token)],
        &[bearer(&token), cookie(&token)],
        &[("authorization", "Basic dDp0".to_owned()), cookie(&token)],
    ] {
        assert_eq!(call(&routes, "/me", headers).await, alice, "{headers:?}");
        assert_eq!(call(&routes, "/", headers).await, alice);
    }
    let other = authority.token("bob").issue();
    for headers in [
        &[bearer(&token), cookie(&other)][..],
        &[bearer(&token), bearer(&token)],
        &[cookie(&token), cookie(&other)],
        &[("cookie", format!("session={token}; session={other}"))],
    ] {
        for path in ["/me", "/"] {
            let (status, challenge, body) = call(&routes, path, headers).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "RFC 6750, section 3.1");
            assert!(challenge.starts_with("Bearer realm=\"shop\", error=\"invalid_request\""));
            assert!(body.starts_with("{\"error\":\"invalid_request\""), "{body}");
        }
    }
    let (status, challenge, _) = call(&routes, &format!("/me?access_token={token}"), &[]).await;
    assert_eq!((status, &*challenge), (StatusCode::UNAUTHORIZED, "Bearer realm=\"shop\""));
}

#[tokio::test]
async fn other_requests_are_challenged_as_rfc_6750_and_rfc_9470_say() {
    let (authority, routes) = site();
    let token = authority.token("alice").issue();
    let elsewhere = authority.token("alice").audience("https://other.test").issue();
    let revoked = authority.token("alice").issue();
    authority.revoke(&revoked);
    let old = authority.token("alice").acr("gold").authenticated_ago(Duration::from_secs(61));
    let old = old.issue();
    let invalid = |text: &str| {
        format!("Bearer realm=\"shop\", error=\"invalid_token\", error_description=\"{text}\"")
    };
    let step_up = "Bearer realm=\"shop\", error=\"insufficient_user_authentication\", \
                   error_description=\"a stronger or more recent authentication is needed\", \
                   acr_values=\"gold\", max_age=\"60\""
        .to_owned();
    let scope = "Bearer realm=\"shop\", error=\"insufficient_scope\", error_description=\"the \
                 access token lacks a scope\", scope=\"orders:write\""
        .to_owned();
    for (path, token, status, challenge) in [
        ("/me", "x", 401, invalid("the access token is not valid")),
        ("/me", "", 401, invalid("the access token is not valid")),
        ("/me", &revoked, 401, invalid("the access token has been revoked")),
        ("/me", &elsewhere, 401, invalid("the access token is not meant for this resource")),
        ("/", &revoked, 401, invalid("the access token has been revoked")),
        ("/orders", &token, 403, scope),
        ("/payment", &token, 401, step_up.clone()),
        ("/payment", &old, 401, step_up),
    ] {
        let seen = call(&routes, path, &[bearer(token)]).await;
        assert_eq!((seen.0.as_u16(), seen.1), (status, challenge), "{path} {}", seen.2);
    }
    let good = authority.token("alice").acr("gold").scope("orders:write").issue();
    for path in ["/me", "/orders", "/payment"] {
        assert_eq!(call(&routes, path, &[bearer(&good)]).await.0, StatusCode::OK);
    }
    assert_eq!(call(&routes, "/", &[]).await.2, "nobody");
    let challenge = "Bearer realm=\"shop\", scope=\"orders:write\"";
    assert_eq!(call(&routes, "/orders", &[]).await.1, challenge);
    authority.advance(Duration::from_secs(900));
    let (status, challenge, _) = call(&routes, "/me", &[bearer(&good)]).await;
    assert_eq!((status.as_u16(), challenge), (401, invalid("the access token has expired")));
}

#[tokio::test]
async fn nothing_passes_while_the_authority_is_unavailable_or_if_a_layer_is_missing() {
    let (authority, routes) = site();
    let token = authority.token("alice").issue();
    authority.set_unavailable(true);
    for path in ["/me", "/"] {
        let (status, challenge, body) = call(&routes, path, &[bearer(&token)]).await;
        assert_eq!((status, &*challenge), (StatusCode::SERVICE_UNAVAILABLE, ""));
        assert!(body.contains("temporarily_unavailable"), "{body}");
    }
    authority.set_unavailable(false);
    assert_eq!(call(&routes, "/me", &[bearer(&token)]).await.0, StatusCode::OK);
    let (status, ..) = call(&routes, "/forgotten", &[bearer(&token)]).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_denied_request_always_gets_a_challenge() {
    let authority = Authority::new();
    let protect = Protect::new(authority.verifier(), Demands::new().scope("a\nb"));
    let (status, challenge, _) = call(&routes(&protect), "/me", &[]).await;
    assert_eq!((status, &*challenge), (StatusCode::UNAUTHORIZED, "Bearer"));
}
