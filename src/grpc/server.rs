//! The server: services, limits, health, and an end in good order.

use std::{net::SocketAddr, time::Duration};

use futures_util::TryStreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};
use tower::layer::layer_fn;

use super::{connection::Connection, deadline::Deadline, key_service::Keys, session_service::Sessions};
use crate::{
    authority::ready::Ready,
    proto::{DESCRIPTORS, key_service_server::KeyServiceServer, session_service_server::SessionServiceServer},
};

/// Largest request: 256 validations of tokens of the usual size.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Most metadata of a call.
const MAX_METADATA_BYTES: u32 = 16 << 10;
/// Most calls in flight on a connection.
const MAX_STREAMS: u32 = 1024;
/// Most calls that a client has given up before we have looked at them; one more closes the connection with all calls on it.
/// As many as may be in flight: if we are held up, all their deadlines may pass at once. By default it is 20.
const MAX_GIVEN_UP: usize = MAX_STREAMS as usize;
/// A connection that says nothing for this long is asked whether it is alive, and closed if it does not answer in time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

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

    /// From now on: ready.
    pub async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// From now on: not ready. Calls are still taken.
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

/// Serves on a listener, with the authority as soon as it is there, until `stop`, then lets the calls in flight finish.
pub async fn serve(
    listener: TcpListener,
    authority: Ready,
    health: Health,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let reflect = may_reflect(listener.local_addr().ok());
    let keys = KeyServiceServer::new(Keys(authority.clone())).max_decoding_message_size(MAX_REQUEST_BYTES);
    let sessions = SessionServiceServer::new(Sessions(authority)).max_decoding_message_size(MAX_REQUEST_BYTES);
    let health =
        tonic_health::pb::health_server::HealthServer::new(HealthService::from_health_reporter(health.0.clone()));
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true)).map_ok(Connection::from);
    let mut server = Server::builder()
        .http2_max_header_list_size(MAX_METADATA_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_GIVEN_UP))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(layer_fn(Deadline));
    server
        .add_service(sessions)
        .add_service(keys)
        .add_service(health)
        .add_optional_service(reflect.then(|| reflection().build_v1().ok()).flatten())
        // Most clients in the field still ask for this one.
        .add_optional_service(reflect.then(|| reflection().build_v1alpha().ok()).flatten())
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
}

/// Whether the service describes itself: only where nobody else can ask.
fn may_reflect(address: Option<SocketAddr>) -> bool {
    address.is_some_and(|address| address.ip().is_loopback())
}

/// Reflection for people who explore the service, and for stock clients.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
