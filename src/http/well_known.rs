//! The routes `/.well-known/jwks.json` (RFC 7517) and `/.well-known/oauth-authorization-server`
//! (RFC 8414). Programs that verify tokens by themselves need them.

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use super::oauth::{INTROSPECT_PATH, REVOKE_PATH};
use crate::authority::ready::Ready;

pub(super) const JWKS_PATH: &str = "/.well-known/jwks.json";
pub(super) const METADATA_PATH: &str = "/.well-known/oauth-authorization-server";
/// The metadata changes only with the configuration, so caches may keep it for an hour.
const METADATA_MAX_AGE: &str = "public, max-age=3600";

/// The state of these routes.
#[derive(Clone)]
pub(super) struct Published {
    pub ready: Ready,
    /// True if callers may authenticate by certificates.
    pub certificates: bool,
}

pub(super) fn routes(issuer: &str, published: Published) -> Router {
    let mut routes = Router::new().route(JWKS_PATH, get(jwks)).route(METADATA_PATH, get(metadata));
    // If the issuer has a path, clients append it to the well-known path (RFC 8414, section 3.1),
    // and the URLs in the metadata begin with the issuer and its path.
    let path = path_of(issuer);
    if !path.is_empty() {
        routes = routes.route(&format!("{METADATA_PATH}{path}"), get(metadata));
        routes = routes.route(&format!("{path}{JWKS_PATH}"), get(jwks));
    }
    routes.with_state(published)
}

/// Returns the path of an issuer, without a slash at its end. Returns an empty path if the issuer
/// has no path, if the path has characters that could have a meaning in a route, or if it begins
/// with `/.well-known`.
pub(super) fn path_of(issuer: &str) -> &str {
    let host_and_path = issuer.split_once("://").map_or(issuer, |(_, rest)| rest);
    let path = host_and_path.find('/').and_then(|at| host_and_path.get(at..)).unwrap_or_default();
    let path = path.trim_end_matches('/');
    let is_plain =
        path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '~'));
    if is_plain && !path.starts_with("/.well-known") { path } else { "" }
}

fn starting() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "starting: the keys are being loaded\n").into_response()
}

async fn jwks(State(Published { ready, .. }): State<Published>, headers: HeaderMap) -> Response {
    let Ok(authority) = ready.get() else { return starting() };
    let public = authority.public_keys();
    let caching = match public.max_age.as_secs() {
        // `no-cache` lets a cache keep the keys, but it must ask again before it uses them.
        0 => "no-cache".to_owned(),
        seconds => format!("public, max-age={seconds}"),
    };
    let tag = format!("\"{}\"", public.jwks.tag);
    let response_headers = [(ETAG, tag.clone()), (CACHE_CONTROL, caching)];
    if is_known(&headers, &tag) {
        return (StatusCode::NOT_MODIFIED, response_headers).into_response();
    }
    (response_headers, [(CONTENT_TYPE, "application/jwk-set+json")], public.jwks.json)
        .into_response()
}

/// Returns whether the client already has the version with this tag (RFC 9110, section 13.1.2).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let asked = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = asked.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|asked| asked == "*" || asked.strip_prefix("W/").unwrap_or(asked) == tag)
}

async fn metadata(State(Published { ready, certificates }): State<Published>) -> Response {
    let methods: &[&str] = if certificates {
        &["client_secret_basic", "tls_client_auth"]
    } else {
        &["client_secret_basic"]
    };
    let Ok(authority) = ready.get() else { return starting() };
    let issuer = authority.issuer();
    let below = |path| format!("{}{path}", issuer.trim_end_matches('/'));
    let with_bearer = [methods, &["Bearer"]].concat();
    let metadata = json!({
        "issuer": issuer,
        "jwks_uri": below(JWKS_PATH),
        "introspection_endpoint": below(INTROSPECT_PATH),
        // The list for introspection may contain types of access tokens such as "Bearer". The list
        // for revocation may not (RFC 8414, section 2).
        "introspection_endpoint_auth_methods_supported": with_bearer,
        "revocation_endpoint": below(REVOKE_PATH),
        "revocation_endpoint_auth_methods_supported": methods,
        // The member `response_types_supported` is required. Its list is empty, because there is no
        // authorization endpoint.
        "response_types_supported": [],
        "grant_types_supported": [],
    });
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, METADATA_MAX_AGE)], metadata.to_string())
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_issuer_is_empty_if_it_cannot_be_used_in_a_route() {
        for (issuer, path) in [
            ("https://login.example.com", ""),
            ("https://login.example.com/", ""),
            ("https://login.example.com/tenants/one", "/tenants/one"),
            ("https://login.example.com:8443/one/", "/one"),
            ("https://login.example.com/{one}", ""),
            ("https://login.example.com/.well-known/x", ""),
        ] {
            assert_eq!(path_of(issuer), path, "{issuer}");
        }
    }

    #[test]
    fn a_client_that_sends_the_current_etag_has_the_current_version() {
        let asked = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IF_NONE_MATCH, value.parse().unwrap());
            }
            is_known(&headers, "\"a\"")
        };
        for known in [&["\"a\""][..], &["W/\"a\""], &["\"b\", \"a\""], &["\"b\"", "\"a\""], &["*"]]
        {
            assert!(asked(known), "{known:?}");
        }
        for unknown in [&[][..], &["\"b\""], &["a"], &["\"a"]] {
            assert!(!asked(unknown), "{unknown:?}");
        }
    }
}
