//! Builds the HTTP routes of a service for a configuration. Several fuzz targets use this.

use std::sync::Arc;

use axum::Router;
use countersign::{
    app::settings::ceilings,
    authority::{audit::Audit, ready::Ready},
    callers::Callers,
    clock::Clock,
    config::Config,
    gateway::{Gateway, outcomes::Outcomes},
    grpc::call_kinds,
    http::{self, HttpAuthenticator, HttpState, health::Readiness, requests},
    metrics::{Connections, Metrics, Observed},
    revocation::replica::Replica,
    store::observed,
};

/// Builds the routes of the HTTP server.
pub fn routes(
    config: &Config,
    clock: Arc<dyn Clock>,
    replica: Arc<Replica>,
    readiness: Readiness,
    ready: Ready,
) -> Router {
    let callers =
        Arc::new(Callers::new(config.callers.clone(), ceilings(&config.limits), clock.clone()));
    let (audit, outcomes) = (Audit::of_log(clock, [0; 6]), Arc::<Outcomes>::default());
    let all = Observed {
        ready: ready.clone(),
        replica,
        callers: callers.clone(),
        connections: Connections::default(),
        tls: None,
        audit: audit.clone(),
        outcomes: outcomes.clone(),
        grpc_calls: Arc::new(call_kinds::counters()),
        http_requests: Arc::new(requests::counters()),
        store_operations: Arc::new(observed::counters()),
        dropped_spans: Arc::default(),
    };
    let state = HttpState {
        authenticator: HttpAuthenticator { callers, audit, is_private: config.http_is_private },
        ready,
        gateway: Arc::new(Gateway::new(config.gateway.clone(), outcomes.clone())),
        outcomes,
        request_timeout: config.limits.call_timeout,
        certificates: false,
    };
    http::routes(readiness, Arc::new(Metrics::new(all)), &config.issuer, state).all
}
