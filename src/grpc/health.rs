//! `grpc.health.v1.Health`, and reflection.

use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::proto::DESCRIPTORS;

/// The names that health knows: the whole server, and each service.
const HEALTH_NAMES: [&str; 3] = ["", "countersign.v1.SessionService", "countersign.v1.KeyService"];

/// Says whether the server is ready for calls.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// Not ready.
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

    /// Reports that the service is ready.
    pub async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// Reports that the service is not ready. Calls are still taken.
    pub async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Ends the streams of those who watch, which would otherwise keep the server from stopping.
    pub async fn end(&mut self) {
        for name in HEALTH_NAMES {
            self.0.clear_service_status(name).await;
        }
    }
}

/// The services that are not ours: health, and reflection if it is wanted.
pub fn routes(health: &Health, reflect: bool) -> Routes {
    let mut routes =
        Routes::new(HealthServer::new(HealthService::from_health_reporter(health.0.clone())));
    if reflect {
        // Most clients in the field still ask for the older one.
        if let (Ok(newer), Ok(older)) = (reflection().build_v1(), reflection().build_v1alpha()) {
            routes = routes.add_service(newer).add_service(older);
        }
    }
    routes
}

/// Reflection for people who explore the service, and for stock clients.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
