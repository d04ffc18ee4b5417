//! The route `/forward-auth`. nginx (`auth_request`), Caddy (`forward_auth`), Traefik (ForwardAuth)
//! and other gateways send a request to it for each request that they receive from a client.
//!
//! The token is in the header `authorization` or `cookie` of the client's request. The gateway
//! states the demands of its route in the query of the URL, or in headers. The same demand must not
//! be stated in both, or twice, so that a client that sends such a header itself cannot weaken a
//! demand.

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
    failed,
    open_request::OpenRequest,
    peer,
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

/// The headers in which a gateway states demands, each with the name of its demand.
const HEADERS: [(&str, &str); 5] = [
    ("x-countersign-audience", "audience"),
    ("x-countersign-scope", "scope"),
    ("x-countersign-acr-values", "acr_values"),
    ("x-countersign-max-age", "max_age"),
    ("x-countersign-amr", "amr"),
];

/// The path for demands in the query.
pub(super) const PATH: &str = "/forward-auth";
/// The path of requests whose demands are segments of the path, and the prefix of all such paths.
pub(super) const PATH_IN_PATH: &str = "/forward-auth-path";

pub(super) fn routes(state: Arc<HttpState>) -> Router {
    let routes = Router::new().route(PATH, any(by_query));
    // The routes of `by_path` have a prefix of their own, because `by_path` ignores the query. If
    // they were below `/forward-auth/`, then a slash that an operator puts before the query by
    // mistake would make the service ignore the demands in the query.
    let routes =
        routes.route(PATH_IN_PATH, any(by_path)).route(&format!("{PATH_IN_PATH}/"), any(by_path));
    routes.route(&format!("{PATH_IN_PATH}/{{*path}}"), any(by_path)).with_state(state)
}

/// Answers a gateway that states its demands in the query.
async fn by_query(State(state): State<Arc<HttpState>>, request: Parts) -> Response {
    authorize(&state, request.uri.query().unwrap_or_default(), &request).await
}

/// Answers a gateway that sends the path and the query of the client's request (the Gateway API's
/// ExternalAuth over HTTP, Envoy's `path_prefix`). The client chose that query, so no demands are
/// read from it.
async fn by_path(State(state): State<Arc<HttpState>>, request: Parts) -> Response {
    authorize(&state, "", &request).await
}

/// The accepted methods. A gateway uses GET (nginx, Caddy, Traefik), or the method of the client's
/// request (Envoy and the Gateway API over HTTP, and Traefik if it is configured so). The list
/// therefore holds all methods of requests to applications: the methods of RFC 9110, PATCH
/// (RFC 5789), and the methods of WebDAV and calendars (RFC 4918, 3253, 3744, 5323, 4791). Two
/// methods of RFC 9110 are left out: TRACE, because it would return the request with its token to
/// the sender, and CONNECT, because it is not a request to an application.
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
    let (peer, open) = (peer(&request.extensions), OpenRequest::of(&request.extensions));
    let credentials = HeaderCredentials::in_own_header(headers);
    let operation = Operation::ForwardAuth;
    let admitted = state.authenticator.admit(&credentials, &peer, open.id(), operation);
    let (by, _permit) = match admitted {
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
    let asked = (credential, demands);
    let deciding = state.gateway.authorize(Kind::ForwardAuth, authority, &by, &settings, asked);
    match state.in_time(open.observe(&by, headers, deciding)).await {
        Err(response) => response,
        Ok(Decision::Unavailable(error)) => failed(&error),
        Ok(Decision::Denied(denial)) => {
            (denial.status(), denial.headers(&authority.issuer()), denial.body()).into_response()
        }
        Ok(Decision::Passed(passed)) => {
            let mut response_headers = HeaderMap::with_capacity(passed.identity.len() + 1);
            response_headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            // A header that has no value is sent with an empty value. If the answer lacked the
            // header, some gateways would keep the header that the client sent, and Caddy would
            // insert the name of a variable.
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

/// Makes the response to a gateway that is not admitted. The status is never 401, because the
/// gateway would pass it on, and 401 would tell the client to send another token.
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
            // A demand whose value is not text must not be ignored. A value that no demand accepts
            // replaces it, so that the request fails.
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
    fn demands_are_read_from_the_query_and_headers_and_none_may_be_stated_twice() {
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
