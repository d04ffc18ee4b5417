//! The HTTP server, which has a port of its own. It answers probes, load balancers, monitoring
//! systems, programs that verify tokens by themselves, gateways, and callers that speak OAuth.

mod callers;
mod forward_auth;
mod head;
pub mod health;
mod metrics;
mod oauth;
mod open_request;
pub mod requests;
pub mod server;
mod well_known;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{
        Extensions, HeaderName, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use tokio::time::timeout;

pub use self::callers::HttpAuthenticator;
#[cfg(fuzzing)]
pub use self::head::check as check_head;
use self::{callers::error, health::Readiness, server::Routes, well_known::Published};
use crate::{
    authority::{error::AuthorityError, ready::Ready},
    gateway::{Gateway, outcomes::Outcomes},
    metrics::Metrics,
    net::connection::Peer,
};

const NO_STORE: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "no-store")];
const JSON: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];

/// The state of the routes that authenticate their callers.
#[derive(Debug)]
pub struct HttpState {
    /// Authenticates callers.
    pub authenticator: HttpAuthenticator,
    /// Provides the use cases once the service is ready.
    pub ready: Ready,
    /// Decides whether requests may pass.
    pub gateway: Arc<Gateway>,
    /// Counts the outcomes of validations.
    pub outcomes: Arc<Outcomes>,
    /// The longest time that a request may take.
    pub request_timeout: Duration,
    /// True if callers may authenticate by certificates.
    pub certificates: bool,
}

/// Builds the routes.
pub fn routes(
    readiness: Readiness,
    metrics: Arc<Metrics>,
    issuer: &str,
    state: HttpState,
) -> Routes {
    let reserved = reserved_routes(readiness.clone());
    let operations = Router::new().merge(health::routes(readiness)).merge(metrics::routes(metrics));
    let published = Published { ready: state.ready.clone(), certificates: state.certificates };
    let open = operations.merge(well_known::routes(issuer, published));
    let state = Arc::new(state);
    let path = well_known::path_of(issuer);
    let all = open.merge(forward_auth::routes(state.clone())).merge(oauth::routes(state, path));
    Routes { all, reserved }
}

/// Builds the routes for connections in the reserve. They answer only probes.
fn reserved_routes(readiness: Readiness) -> Router {
    health::routes(readiness).fallback(no_room)
}

async fn no_room() -> Response {
    unavailable(
        "limits.max_http_connections are open: only /livez and /readyz are answered until one is \
         closed; try again later, or ask another replica",
    )
}

impl HttpState {
    /// Waits for a future. After the timeout, returns a response that says that the request has
    /// taken too long.
    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, Response> {
        let too_late = |_| unavailable("the request has taken too long: try again");
        timeout(self.request_timeout, future).await.map_err(too_late)
    }
}

/// Returns the client at the other end of a request's connection.
fn peer(extensions: &Extensions) -> Arc<Peer> {
    extensions.get::<Arc<Peer>>().cloned().unwrap_or_default()
}

fn unavailable(problem: &str) -> Response {
    let wait = Some(Duration::from_secs(1));
    error(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", problem, wait)
}

/// Makes the response to a use case that failed.
fn failed(failure: &AuthorityError) -> Response {
    let description = failure.to_string();
    match failure {
        AuthorityError::NotCurrent
        | AuthorityError::NoActiveKey
        | AuthorityError::StoreUnavailable
        | AuthorityError::Overloaded
        | AuthorityError::BlacklistFull { .. } => unavailable(&description),
        AuthorityError::CallerNotAllowed { .. } | AuthorityError::SessionNotFound => {
            error(StatusCode::FORBIDDEN, "unauthorized_client", &description, None)
        }
        AuthorityError::InvalidField { .. } => {
            error(StatusCode::BAD_REQUEST, "invalid_request", &description, None)
        }
        // The use cases that HTTP offers do not return these errors, apart from `Internal`.
        AuthorityError::RequestIdReused
        | AuthorityError::RefreshTokenInvalid
        | AuthorityError::RefreshTokenReused
        | AuthorityError::SessionRevoked
        | AuthorityError::SessionExpiredIdle
        | AuthorityError::SessionExpiredAbsolute
        | AuthorityError::SessionQuotaExceeded { .. }
        | AuthorityError::AuditTableOff
        | AuthorityError::TooManyWatchers { .. }
        | AuthorityError::WatcherTooSlow
        | AuthorityError::NotSent
        | AuthorityError::EtagMismatch
        | AuthorityError::KeyNotFound
        | AuthorityError::KeyNotRotated(_)
        | AuthorityError::Internal => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", &description, None)
        }
    }
}
