//! `/livez` and `/readyz`: whether the process runs, and whether calls should be sent to it.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::watch;

/// How far the service has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It opens the database and loads the blacklist.
    Starting,
    /// It answers.
    Serving,
    /// It has no lease, and answers late or not at all.
    Lapsed,
    /// It has been told to stop.
    Stopping,
}

/// Says whether the service is ready for calls.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<Phase>);

impl Readiness {
    /// Not ready.
    pub fn new() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    /// From now on it is so.
    pub fn set(&self, phase: Phase) {
        self.0.send_replace(phase);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn routes(readiness: Readiness) -> Router {
    Router::new().route("/livez", get(live)).route("/readyz", get(ready)).with_state(readiness)
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
