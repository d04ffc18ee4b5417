//! Counts the requests on each route by the status of their answers, and measures how long they
//! took.

use http::StatusCode;

use super::{
    forward_auth, health,
    metrics::PATH as METRICS_PATH,
    oauth::{INTROSPECT_PATH, REVOKE_PATH},
    well_known::{JWKS_PATH, METADATA_PATH},
};
use crate::instruments::{Event, EventSource, Events};

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
    "other",
];

/// The statuses by which requests are counted. Another status counts as `other`, and a request
/// whose client went away before it was answered as `cancelled`.
const CODES: [&str; 14] = [
    "200", "304", "400", "401", "403", "404", "405", "413", "429", "500", "501", "503", "other",
    CANCELLED,
];

const CANCELLED: &str = "cancelled";

/// Creates the counters of the requests on all routes.
pub fn counters() -> Events {
    Events::new(ROUTES.iter().map(|route| vec![("route", *route)]).collect(), &CODES)
}

/// Begins a request for a path.
pub(super) fn begin(requests: &EventSource, path: &str) -> Event {
    let number = CODES.iter().position(|code| *code == CANCELLED).unwrap_or_default();
    requests.begin(route(path), number)
}

/// Sets the status with which a request is answered.
pub(super) fn answered(request: &mut Event, status: StatusCode) {
    let other = CODES.len().saturating_sub(2);
    request.set_code(CODES.iter().position(|code| *code == status.as_str()).unwrap_or(other));
}

/// Returns the index of the route that a path belongs to. The path of the issuer, if it has one,
/// precedes or follows that of some routes, and makes no difference here.
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
