//! `/forward-auth`, which nginx (`auth_request`), Caddy (`forward_auth`), Traefik (ForwardAuth) and
//! other gateways ask about each request that they receive.
//!
//! The token is in the request's own `authorization` or `cookie`. The demands of the route are in
//! the query of the URL that the gateway asks, or in headers that it sets. Each demand is in one
//! place only, so that a client who sends such a header cannot weaken a demand.

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
    HttpState,
    callers::{HeaderCredentials, NotAdmitted, error},
    failed, peer,
};
use crate::{
    callers::Refusal,
    domain::permission::Operation,
    gateway::{
        Decision, credential,
        demands::{Demands, DemandsError},
        outcomes::Kind,
    },
};

/// The headers in which a gateway makes demands, each with the name of its demand.
const HEADERS: [(&str, &str); 4] = [
    ("x-countersign-audience", "audience"),
    ("x-countersign-scope", "scope"),
    ("x-countersign-acr-values", "acr_values"),
    ("x-countersign-max-age", "max_age"),
];

/// The path for demands in the query.
pub(super) const PATH: &str = "/forward-auth";
/// The path for demands in the path, and the prefix of all paths that follow it.
pub(super) const PATH_IN_PATH: &str = "/forward-auth-path";

pub(super) fn routes(state: Arc<HttpState>) -> Router {
    let routes = Router::new().route(PATH, any(by_query));
    // The routes for demands in the path have a prefix of their own. If they were below
    // `/forward-auth/`, a slash that was put before the query by mistake would make `by_path`
    // answer, which ignores the demands in the query.
    let routes =
        routes.route(PATH_IN_PATH, any(by_path)).route(&format!("{PATH_IN_PATH}/"), any(by_path));
    routes.route(&format!("{PATH_IN_PATH}/{{*path}}"), any(by_path)).with_state(state)
}

/// Answers a gateway that makes its demands in the query.
async fn by_query(State(state): State<Arc<HttpState>>, request: Parts) -> Response {
    authorize(&state, request.uri.query().unwrap_or_default(), &request).await
}

/// Answers a gateway that asks with the path and the query of the client's request (the Gateway
/// API's ExternalAuth over HTTP, Envoy's `path_prefix`). Such a query makes no demands.
async fn by_path(State(state): State<Arc<HttpState>>, request: Parts) -> Response {
    authorize(&state, "", &request).await
}

/// The accepted methods. Gateways ask by GET (nginx, Caddy, Traefik), or by the method of the
/// client's request (Envoy and the Gateway API over HTTP, Traefik if it is configured so). These
/// are therefore all methods of requests to applications: those of RFC 9110, PATCH (RFC 5789), and
/// those of WebDAV and calendars (RFC 4918, 3253, 3744, 5323, 4791). TRACE is left out, because it
/// would return the request with its token to the sender, and so is CONNECT, which is not a request
/// to an application.
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

/// The response to any other method. Methods are case-sensitive (RFC 9110, section 9.1).
fn not_allowed() -> Response {
    let problem =
        "gateways do not ask by this method: the header Allow lists those that are accepted";
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", problem, None);
    if let Ok(methods) = METHODS.join(", ").try_into() {
        response.headers_mut().insert(ALLOW, methods);
    }
    response
}

async fn authorize(state: &HttpState, query: &str, request: &Parts) -> Response {
    if !METHODS.contains(&request.method.as_str()) {
        return not_allowed();
    }
    let headers = &request.headers;
    let peer = peer(&request.extensions);
    let credentials = HeaderCredentials::in_own_header(headers);
    let (by, _permit) = match state.authenticator.admit(&credentials, &peer, Operation::ForwardAuth)
    {
        Ok(admitted) => admitted,
        Err(reason) => return refused(&reason),
    };
    let settings = state.gateway.settings();
    let values = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let credential =
        credential::find(values(AUTHORIZATION), values(COOKIE), settings.cookie.as_deref());
    let demands = demands(query, headers);
    let authority = match state.ready.get() {
        Ok(authority) => authority,
        Err(error) => return failed(&error),
    };
    match state
        .in_time(state.gateway.authorize(Kind::ForwardAuth, authority, &by, credential, demands))
        .await
    {
        Err(response) => response,
        Ok(Decision::Unavailable(error)) => failed(&error),
        Ok(Decision::Denied(denial)) => {
            (denial.status(), denial.headers(authority.issuer()), denial.body()).into_response()
        }
        Ok(Decision::Passed(passed)) => {
            let mut response_headers = HeaderMap::with_capacity(passed.identity.len() + 1);
            response_headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            // A header without a value is sent empty. If the answer lacks it, some gateways keep
            // the header that the client sent, and Caddy inserts the name of a variable.
            let nothing = HeaderValue::from_static("");
            let identity = passed.identity.into_iter();
            response_headers.extend(
                identity
                    .map(|(name, value)| (name.clone(), value.unwrap_or_else(|| nothing.clone()))),
            );
            (StatusCode::OK, response_headers).into_response()
        }
    }
}

/// Makes the response to a gateway that is not admitted. Its status is never 401, which would tell
/// the client to send another token.
fn refused(reason: &NotAdmitted) -> Response {
    let (status, code, description) = reason.oauth_error();
    let status = if let NotAdmitted::Refused(Refusal::Unknown) = reason {
        StatusCode::FORBIDDEN
    } else {
        status
    };
    error(status, code, &description, reason.wait())
}

/// Reads the demands in the query and in the headers.
fn demands(query: &str, headers: &HeaderMap) -> Result<Demands, DemandsError> {
    let in_query = form_urlencoded::parse(query.as_bytes());
    let in_headers = HEADERS.iter().flat_map(|(header, name)| {
        let value = |value: &HeaderValue| {
            // A value that is not text is replaced by one that no demand accepts, because the
            // demand was made and must not be ignored.
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
    fn demands_are_in_the_query_or_in_headers_and_each_in_one_place_only() {
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
