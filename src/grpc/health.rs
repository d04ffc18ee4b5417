//! The standard services: `grpc.health.v1.Health`, and reflection.

use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::proto::DESCRIPTORS;

/// The names whose health a client can ask for: the empty name for the whole server, and the name
/// of each service.
const HEALTH_NAMES: [&str; 5] = [
    "",
    "countersign.v1.SessionService",
    "countersign.v1.KeyService",
    "countersign.v1.AuditService",
    "countersign.v1.RevocationService",
];

/// Reports whether the server is ready for calls.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// Creates a reporter. Until [`Self::serving`] is called, it reports that the server is not
    /// ready.
    pub async fn new() -> Self {
        let health = Self(HealthReporter::new());
        health.set(ServingStatus::NotServing).await;
        health
    }

    async fn set(&self, status: ServingStatus) {
        for name in HEALTH_NAMES {
            self.0.set_service_status(name, status).await;
        }
    }

    /// Begins to report that the server is ready.
    pub async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// Begins to report that the server is not ready. Calls are still accepted.
    pub async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Ends the streams of clients that called Watch. Open streams keep the server from stopping.
    pub async fn end(&mut self) {
        for name in HEALTH_NAMES {
            self.0.clear_service_status(name).await;
        }
    }
}

/// Creates the standard services: health, and reflection if it is enabled.
pub fn routes(health: &Health, reflect: bool) -> Routes {
    let mut routes =
        Routes::new(HealthServer::new(HealthService::from_health_reporter(health.0.clone())));
    if reflect {
        // Most clients still use the older version of the protocol.
        if let (Ok(newer), Ok(older)) = (reflection().build_v1(), reflection().build_v1alpha()) {
            routes = routes.add_service(newer).add_service(older);
        }
    }
    routes
}

/// Begins to build the reflection service, for people who explore the API and for generic clients.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
