//! `/forward-auth`: what nginx (`auth_request`), Caddy (`forward_auth`), Traefik (ForwardAuth) and
//! others ask about each request that they get.
//!
//! The request's own `authorization` and `cookie` are looked at. What the route demands stands in
//! the query of the URL that the gateway asks, or in headers that it sets; each in one place only,
//! so that a client who sends such a header cannot ask for less.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, COOKIE, HeaderValue},
        request::Parts,
    },
    response::{IntoResponse, Response},
    routing::any,
};

use super::{
    Gates,
    callers::{Closed, Proof, error},
    failed, peer,
};
use crate::{
    callers::Refusal,
    domain::permission::Operation,
    gateway::{
        credential,
        demands::{Demands, DemandsError},
        outcomes::Kind,
    },
};

/// Headers that demand, by the name of the demand.
const HEADERS: [(&str, &str); 4] = [
    ("x-countersign-audience", "audience"),
    ("x-countersign-scope", "scope"),
    ("x-countersign-acr-values", "acr_values"),
    ("x-countersign-max-age", "max_age"),
];

pub(super) fn routes(gates: Arc<Gates>) -> Router {
    let routes = Router::new().route("/forward-auth", any(judge));
    // Paths of their own: below `/forward-auth/` a mistaken slash before the query would make it
    // the client's, and open a route.
    let routes = routes
        .route("/forward-auth-path", any(judge_path))
        .route("/forward-auth-path/", any(judge_path));
    routes.route("/forward-auth-path/{*path}", any(judge_path)).with_state(gates)
}

/// Asked with the query that the gateway is configured with.
async fn judge(State(gates): State<Arc<Gates>>, request: Parts) -> Response {
    judged(&gates, request.uri.query().unwrap_or_default(), &request).await
}

/// Asked with path and query of the request itself (the Gateway API's ExternalAuth over HTTP,
/// Envoy's `path_prefix`): they demand nothing.
async fn judge_path(State(gates): State<Arc<Gates>>, request: Parts) -> Response {
    judged(&gates, "", &request).await
}

/// Gateways ask by GET (nginx, Caddy, Traefik), or by the method of the request that they ask about
/// (Envoy and the Gateway API over HTTP, Traefik if it is told to). So these are all methods by
/// which applications are asked: RFC 9110, PATCH (RFC 5789), and those of WebDAV and calendars (RFC
/// 4918, 3253, 3744, 5323, 4791). TRACE would show the request with its token to whoever sent it,
/// and CONNECT asks for no application.
const METHODS: [&str; 18] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "ACL",
    "SEARCH",
    "MKCALENDAR",
];

/// Another method is none for these routes. Methods are case-sensitive (RFC 9110, section 9.1).
fn not_allowed() -> Response {
    let problem = "the method is none by which gateways ask: the header Allow has those";
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", problem, None);
    if let Ok(methods) = METHODS.join(", ").try_into() {
        response.headers_mut().insert(ALLOW, methods);
    }
    response
}

async fn judged(gates: &Gates, query: &str, request: &Parts) -> Response {
    if !METHODS.contains(&request.method.as_str()) {
        return not_allowed();
    }
    let headers = &request.headers;
    let peer = peer(&request.extensions);
    let proof = Proof::in_own_header(headers);
    let (by, _under_way) = match gates.door.admit(&proof, &peer, Operation::ForwardAuth) {
        Ok(admitted) => admitted,
        Err(closed) => return refused(&closed),
    };
    let settings = gates.gateway.settings();
    let values = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let credential =
        credential::find(values(AUTHORIZATION), values(COOKIE), settings.cookie.as_deref());
    let demands = demands(query, headers);
    let authority = match gates.ready.get() {
        Ok(authority) => authority,
        Err(error) => return failed(&error),
    };
    match gates
        .in_time(gates.gateway.judge(Kind::ForwardAuth, authority, &by, credential, demands))
        .await
    {
        Err(response) => response,
        Ok(Err(error)) => failed(&error),
        Ok(Ok(Err(denial))) => {
            (denial.status(), denial.headers(authority.issuer()), denial.body()).into_response()
        }
        Ok(Ok(Ok(passed))) => {
            let mut told = HeaderMap::with_capacity(passed.identity.len() + 1);
            told.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            // What the token does not say is said to be nothing: some gateways leave what the
            // client has sent where the answer has no such header, and Caddy puts the name of a
            // variable there.
            let nothing = HeaderValue::from_static("");
            let identity = passed.identity.into_iter();
            told.extend(
                identity
                    .map(|(name, value)| (name.clone(), value.unwrap_or_else(|| nothing.clone()))),
            );
            (StatusCode::OK, told).into_response()
        }
    }
}

/// A gateway that is not let in. That is no affair of who sent the request, so it is not told to
/// show another token.
fn refused(closed: &Closed) -> Response {
    let (status, code, description) = closed.told();
    let status =
        if let Closed::Refused(Refusal::Unknown) = closed { StatusCode::FORBIDDEN } else { status };
    error(status, code, &description, closed.wait())
}

fn demands(query: &str, headers: &HeaderMap) -> Result<Demands, DemandsError> {
    let in_query = form_urlencoded::parse(query.as_bytes());
    let in_headers = HEADERS.iter().flat_map(|(header, name)| {
        let value = |value: &HeaderValue| {
            // What is no text is no value of any demand, but it is one that was made.
            let text = value.to_str().map_or_else(|_| "\0".to_owned(), str::to_owned);
            (Cow::Borrowed(*name), Cow::Owned(text))
        };
        headers.get_all(*header).iter().map(value).collect::<Vec<_>>()
    });
    let pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = in_query.chain(in_headers).collect();
    Demands::read(pairs.iter().map(|(name, value)| (&**name, &**value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_stand_in_the_query_or_in_headers_and_each_in_one_place() {
        let read = |query: &str, pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            demands(query, &headers)
        };
        let expected = Demands::read([("audience", "https://api.test"), ("scope", "read write")]);
        assert_eq!(read("audience=https%3A%2F%2Fapi.test&scope=read+write", &[]), expected);
        assert_eq!(
            read("audience=https://api.test", &[("x-countersign-scope", "read write")]),
            expected
        );
        for (query, headers) in [
            ("scope=read&scope=write", &[][..]),
            ("scope=read", &[("x-countersign-scope", "read")]),
            ("", &[("x-countersign-scope", "read"), ("x-countersign-scope", "write")]),
            ("", &[("x-countersign-scope", "")]),
            ("", &[("x-countersign-audience", "\u{e4}")]),
            ("scopes=read", &[]),
            ("=", &[]),
            ("scope", &[]),
        ] {
            assert!(read(query, headers).is_err(), "{query} {headers:?}");
        }
    }
}
