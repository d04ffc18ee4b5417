//! The HTTP side: what load balancers, probes, monitoring and verifiers ask, on a port of its own.

pub mod health;
mod metrics;
pub mod server;
mod well_known;

use std::sync::Arc;

use axum::Router;

use self::health::Readiness;
use crate::{authority::ready::Ready, metrics::Metrics};

/// All that is answered.
pub fn routes(readiness: Readiness, metrics: Arc<Metrics>, issuer: &str, ready: Ready) -> Router {
    let operations = Router::new().merge(health::routes(readiness)).merge(metrics::routes(metrics));
    operations.merge(well_known::routes(issuer, ready))
}
