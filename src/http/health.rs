//! The routes `/livez`, which reports that the process runs, and `/readyz`, which reports whether
//! calls should be sent to it.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::watch;

/// The phase of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The service is opening the database and loading the blacklist.
    Starting,
    /// The service answers calls.
    Serving,
    /// The service has no lease, so calls are answered late or fail.
    Lapsed,
    /// The service has been asked to stop.
    Stopping,
}

/// Holds the phase for `/readyz`.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<Phase>);

impl Readiness {
    /// Creates the readiness in [`Phase::Starting`].
    pub fn new() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    /// Sets the phase.
    pub fn set(&self, phase: Phase) {
        self.0.send_replace(phase);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

/// The path of liveness.
pub(super) const LIVE_PATH: &str = "/livez";
/// The path of readiness.
pub(super) const READY_PATH: &str = "/readyz";

pub(super) fn routes(readiness: Readiness) -> Router {
    Router::new().route(LIVE_PATH, get(live)).route(READY_PATH, get(ready)).with_state(readiness)
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(Readiness(phase)): State<Readiness>) -> (StatusCode, &'static str) {
    match *phase.borrow() {
        Phase::Serving => (StatusCode::OK, "serving\n"),
        Phase::Starting => {
            (StatusCode::SERVICE_UNAVAILABLE, "starting: the blacklist is being loaded\n")
        }
        Phase::Lapsed => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the lease has lapsed: the database is away or slow\n",
        ),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}
