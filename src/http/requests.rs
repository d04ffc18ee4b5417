//! The kinds of requests over HTTP by their routes, and the statuses by which they are counted.

use http::StatusCode;

use super::{
    forward_auth, health,
    metrics::PATH as METRICS_PATH,
    oauth::{INTROSPECT_PATH, REVOKE_PATH},
    well_known::{JWKS_PATH, METADATA_PATH},
};
use crate::{
    calls::{CallKind, CallName, EndCode},
    instruments::Events,
};

/// The routes by which requests are counted. The last one stands for all other paths.
const ROUTES: [&str; 10] = [
    forward_auth::PATH,
    forward_auth::PATH_IN_PATH,
    INTROSPECT_PATH,
    REVOKE_PATH,
    JWKS_PATH,
    METADATA_PATH,
    METRICS_PATH,
    health::LIVE_PATH,
    health::READY_PATH,
    OTHER,
];

/// The statuses by which requests are counted. Another status counts as `other`, and a request
/// whose client went away before it was answered as `cancelled`.
const CODES: [&str; 14] = [
    "200", "304", "400", "401", "403", "404", "405", "413", "429", "500", "501", "503", OTHER,
    CANCELLED,
];

const OTHER: &str = "other";
const CANCELLED: &str = "cancelled";

/// Creates the counters of the requests on all routes.
pub fn counters() -> Events {
    Events::new(ROUTES.iter().map(|route| vec![("route", *route)]).collect(), &CODES)
}

/// Returns the kind of the requests for a path.
pub(super) fn kind(path: &str) -> CallKind {
    let number = route(path);
    let route = ROUTES.get(number).copied().unwrap_or(OTHER);
    // Only these routes run a use case. The others answer from memory.
    let should_be_fast =
        [forward_auth::PATH, forward_auth::PATH_IN_PATH, INTROSPECT_PATH, REVOKE_PATH]
            .contains(&route);
    CallKind {
        number,
        name: CallName::Http(route),
        is_frequent: route != REVOKE_PATH,
        should_be_fast,
    }
}

/// Returns the end of a request whose client went away before it was answered.
pub(super) fn cancelled() -> EndCode {
    EndCode { number: number_of(CANCELLED), value: 0, is_server_error: false }
}

/// Returns the end of a request that was answered with this status.
pub(super) fn answered(status: StatusCode) -> EndCode {
    EndCode {
        number: number_of(status.as_str()),
        value: status.as_u16(),
        is_server_error: status.is_server_error(),
    }
}

/// Returns the number of a code, or else that of [`OTHER`].
fn number_of(code: &str) -> u8 {
    let number = |code| (0..).zip(CODES).find(|(_, known)| *known == code);
    number(code).or_else(|| number(OTHER)).map_or(0, |(number, _)| number)
}

/// Returns the index of the route that a path belongs to. If the URL of the issuer has a path,
/// it stands before or after the path of some routes. It is ignored here.
fn route(path: &str) -> usize {
    let is_on = |route: &str| match route {
        INTROSPECT_PATH | REVOKE_PATH | JWKS_PATH => path.ends_with(route),
        METADATA_PATH | forward_auth::PATH_IN_PATH => path.starts_with(route),
        route => path == route,
    };
    ROUTES.iter().position(|route| is_on(route)).unwrap_or(ROUTES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_counts_on_its_route_and_any_other_path_on_one_for_all() {
        for (path, expected) in [
            ("/forward-auth", "/forward-auth"),
            ("/forward-auth-path", "/forward-auth-path"),
            ("/forward-auth-path/a/b", "/forward-auth-path"),
            ("/forward-auth/", "other"),
            ("/oauth2/introspect", "/oauth2/introspect"),
            ("/tenant/oauth2/revoke", "/oauth2/revoke"),
            ("/tenant/.well-known/jwks.json", "/.well-known/jwks.json"),
            (
                "/.well-known/oauth-authorization-server/tenant",
                "/.well-known/oauth-authorization-server",
            ),
            ("/metrics", "/metrics"),
            ("/readyz", "/readyz"),
            ("/", "other"),
            ("*", "other"),
        ] {
            assert_eq!(ROUTES[route(path)], expected, "{path}");
        }
    }
}
