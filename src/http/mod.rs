//! The HTTP side, on a port of its own: what load balancers, probes, monitoring and verifiers ask,
//! and what gateways and callers ask that speak OAuth.

mod callers;
mod forward_auth;
mod head;
pub mod health;
mod metrics;
mod oauth;
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

pub use self::callers::Door;
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

/// What those get who must be known.
#[derive(Debug)]
pub struct Gates {
    /// Lets them in.
    pub door: Door,
    /// The use cases.
    pub ready: Ready,
    /// Judges requests.
    pub gateway: Arc<Gateway>,
    /// Counts how tokens were judged.
    pub outcomes: Arc<Outcomes>,
    /// How long anything may take.
    pub patience: Duration,
    /// Whether callers may show certificates.
    pub certificates: bool,
}

/// All that is answered.
pub fn routes(readiness: Readiness, metrics: Arc<Metrics>, issuer: &str, gates: Gates) -> Routes {
    let reserved = reserved_routes(readiness.clone());
    let operations = Router::new().merge(health::routes(readiness)).merge(metrics::routes(metrics));
    let published = Published { ready: gates.ready.clone(), certificates: gates.certificates };
    let open = operations.merge(well_known::routes(issuer, published));
    let gates = Arc::new(gates);
    let path = well_known::path_of(issuer);
    let all = open.merge(forward_auth::routes(gates.clone())).merge(oauth::routes(gates, path));
    Routes { all, reserved }
}

/// What is answered when only the reserve has room: probes.
fn reserved_routes(readiness: Readiness) -> Router {
    health::routes(readiness).fallback(no_room)
}

async fn no_room() -> Response {
    unavailable(
        "limits.max_http_connections are open: only /livez and /readyz are answered until one is \
         closed; try again later, or ask another replica",
    )
}

impl Gates {
    /// What comes of it, unless it takes too long.
    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, Response> {
        let too_late = |_| unavailable("it has taken too long: try again");
        timeout(self.patience, future).await.map_err(too_late)
    }
}

/// Who is at the other end of a request's connection.
fn peer(extensions: &Extensions) -> Arc<Peer> {
    extensions.get::<Arc<Peer>>().cloned().unwrap_or_default()
}

fn unavailable(problem: &str) -> Response {
    let wait = Some(Duration::from_secs(1));
    error(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", problem, wait)
}

/// A use case failed.
fn failed(failure: &AuthorityError) -> Response {
    let told = failure.to_string();
    match failure {
        AuthorityError::NotCurrent
        | AuthorityError::NoActiveKey
        | AuthorityError::StoreUnavailable
        | AuthorityError::Overloaded
        | AuthorityError::BlacklistFull { .. } => unavailable(&told),
        AuthorityError::CallerNotAllowed { .. } | AuthorityError::SessionNotFound => {
            error(StatusCode::FORBIDDEN, "unauthorized_client", &told, None)
        }
        AuthorityError::InvalidField { .. } => {
            error(StatusCode::BAD_REQUEST, "invalid_request", &told, None)
        }
        // What these calls do not do, and bugs.
        AuthorityError::RequestIdReused
        | AuthorityError::RefreshTokenInvalid
        | AuthorityError::RefreshTokenReused
        | AuthorityError::SessionRevoked
        | AuthorityError::SessionExpiredIdle
        | AuthorityError::SessionExpiredAbsolute
        | AuthorityError::SessionQuotaExceeded { .. }
        | AuthorityError::KeyNotFound
        | AuthorityError::KeyNotRotated(_)
        | AuthorityError::Internal => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", &told, None)
        }
    }
}
