//! Tests of the middleware for servers of tonic. The authority is within the process.

use std::{convert::Infallible, time::Duration};

use countersign_client::{
    Demands, Session,
    layer::grpc::Protect,
    testing::{AUDIENCE, Authority},
};
use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt;
use tower::{Layer, ServiceExt};

/// The code and the reason of an answer, and a demand in its metadata.
type Seen = (Code, String, String);

async fn call(protect: &Protect, path: &str, tokens: &[&str], demand: &str) -> Seen {
    let service = tower::service_fn(async |request: Request<Body>| {
        let session = request.extensions().get::<Session>();
        let subject = session.map_or("nobody", Session::subject).to_owned();
        let mut response = Response::new(Body::default());
        response.headers_mut().insert("grpc-status", "0".parse().unwrap());
        response.headers_mut().insert("grpc-message", subject.parse().unwrap());
        Ok::<_, Infallible>(response)
    });
    let mut request = Request::post(path);
    for token in tokens {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Body::default()).unwrap();
    let answer = protect.layer(service).oneshot(request).await.unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    if status.code() == Code::Ok {
        return (Code::Ok, status.message().to_owned(), String::new());
    }
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.domain, "countersign");
    let is_temporary = details.retry_info().is_some_and(|retry| retry.retry_delay.is_some());
    assert_eq!(is_temporary, status.code() == Code::Unavailable);
    (status.code(), info.reason.clone(), info.metadata.get(demand).cloned().unwrap_or_default())
}

#[tokio::test]
async fn calls_are_checked_by_the_demands_of_their_method() {
    let authority = Authority::new();
    let step_up = Demands::new().recent_factor("hwk", Duration::from_secs(60));
    let protect = Protect::new(authority.verifier(), Demands::new().audience(AUDIENCE))
        .method("/shop.Orders/Create", Demands::new().scope("orders:write"))
        .method("/shop.Orders/Pay", step_up.acr_values(["gold", "silver"]))
        .public("/grpc.health.v1.Health/Check");
    let token = &*authority.token("alice").scope("orders:write").issue();
    let plain = &*authority.token("alice").issue();
    let strong = &*authority.token("alice").acr("gold").factor("hwk").issue();
    let elsewhere = &*authority.token("alice").audience("x").issue();
    let revoked = &*authority.token("alice").issue();
    authority.revoke(revoked);
    let (list, create, pay) = ("/shop.Orders/List", "/shop.Orders/Create", "/shop.Orders/Pay");
    let health = "/grpc.health.v1.Health/Check";
    for (path, tokens, code, reason, demand, value) in [
        (list, &[token][..], Code::Ok, "alice", "", ""),
        (create, &[token], Code::Ok, "alice", "", ""),
        (pay, &[strong], Code::Ok, "alice", "", ""),
        (health, &[], Code::Ok, "nobody", "", ""),
        (list, &[], Code::Unauthenticated, "NO_TOKEN", "", ""),
        (list, &[token, token], Code::Unauthenticated, "SEVERAL_TOKENS", "", ""),
        (list, &["x"], Code::Unauthenticated, "MALFORMED", "", ""),
        (list, &[revoked], Code::Unauthenticated, "REVOKED", "", ""),
        (list, &[elsewhere], Code::Unauthenticated, "WRONG_AUDIENCE", "", ""),
        (create, &[plain], Code::PermissionDenied, "INSUFFICIENT_SCOPE", "scope", "orders:write"),
        (pay, &[token], Code::Unauthenticated, "STEP_UP_REQUIRED", "acr_values", "gold silver"),
        (pay, &[token], Code::Unauthenticated, "STEP_UP_REQUIRED", "max_age", "60"),
    ] {
        let expected = (code, reason.to_owned(), value.to_owned());
        assert_eq!(call(&protect, path, tokens, demand).await, expected, "{path}");
    }
    authority.set_unavailable(true);
    let (code, reason, _) = call(&protect, list, &[token], "").await;
    assert_eq!((code, &*reason), (Code::Unavailable, "TOKEN_NOT_CHECKED"));
    assert_eq!(call(&protect, health, &[], "").await.0, Code::Ok);
}
