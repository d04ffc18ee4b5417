//! What several targets need: the parts of a service around a configuration.

use std::sync::Arc;

use axum::Router;
use countersign::{
    authority::{audit::Audit, ready::Ready},
    callers::{Callers, meter::Ceilings},
    clock::Clock,
    config::Config,
    http::{self, health::Readiness},
    metrics::{Connections, Metrics, Observed},
    revocation::replica::Replica,
};

/// How much of each kind may be under way.
pub fn ceilings(config: &Config) -> Ceilings {
    let limits = &config.limits;
    Ceilings { calls: limits.max_calls, reads: limits.max_reads, writes: limits.max_writes }
}

/// What the HTTP side answers.
pub fn routes(
    config: &Config,
    clock: Arc<dyn Clock>,
    replica: Arc<Replica>,
    readiness: Readiness,
    ready: Ready,
) -> Router {
    let observed = Observed {
        replica,
        callers: Arc::new(Callers::new(config.callers.clone(), ceilings(config), clock.clone())),
        connections: Connections::default(),
        tls: None,
        audit: Audit::of_log(clock, [0; 6]),
    };
    http::routes(readiness, Arc::new(Metrics::new(observed)), &config.issuer, ready)
}
