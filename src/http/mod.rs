//! The HTTP side: what load balancers, probes and monitoring ask, on a port of its own.

pub mod health;
mod metrics;
pub mod server;

use std::sync::Arc;

use axum::Router;

use self::health::Readiness;
use crate::metrics::Metrics;

/// All that is answered.
pub fn routes(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    Router::new().merge(health::routes(readiness)).merge(metrics::routes(metrics))
}
