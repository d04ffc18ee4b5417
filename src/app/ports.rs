//! The two ports: what answers behind them, what they say of how far the service has come, and how
//! they close.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::settings::{
    call_limits, connection_limits, grpc_entrance_limits, http_connection_limits,
    http_entrance_limits, max_connections,
};
use crate::{
    authority::{audit::Audit, ready::Ready},
    callers::Callers,
    config::Config,
    gateway::{Gateway, outcomes::Outcomes},
    grpc::{
        health::{self, Health},
        server,
        services::Services,
    },
    http::{
        self, Door, Gates,
        health::{Phase, Readiness},
    },
    metrics::{Connections, Metrics, Observed},
    net::{
        accept::Entrance,
        descriptors,
        tls::{Side, Tls},
    },
    revocation::replica::Replica,
};

/// Where the service listens.
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For HTTP, if it is wanted.
    pub http: Option<TcpListener>,
}

/// What the ports answer from.
pub struct Behind {
    /// The use cases, once there are any.
    pub ready: Ready,
    /// This replica.
    pub replica: Arc<Replica>,
    /// Who may call.
    pub callers: Arc<Callers>,
    /// The certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// Who asked for what.
    pub audit: Audit,
}

/// Says on both ports how far the service has come.
#[derive(Clone)]
pub struct Announcer {
    grpc: Health,
    http: Readiness,
}

impl Announcer {
    /// Says it.
    pub async fn announce(&self, phase: Phase) {
        self.http.set(phase);
        match phase {
            Phase::Serving => self.grpc.serving().await,
            Phase::Starting | Phase::Lapsed | Phase::Stopping => self.grpc.not_serving().await,
        }
    }
}

/// A server that runs, and how it is told to stop.
struct Port {
    server: AbortOnDropHandle<()>,
    close: CancellationToken,
}

impl Port {
    fn open<F: Future<Output = ()> + Send + 'static>(
        serve: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let close = CancellationToken::new();
        let server = AbortOnDropHandle::new(tokio::spawn(serve(close.clone())));
        Self { server, close }
    }
}

/// Both ports, which answer for as long as this lives.
pub struct Ports {
    announcer: Announcer,
    grpc: Port,
    http: Port,
}

impl Ports {
    /// Answers from here on, and says that the service is not ready yet.
    pub async fn open(config: &Config, listeners: Listeners, behind: Behind) -> Self {
        let Behind { ready, replica, callers, tls, audit } = behind;
        let limits = &config.limits;
        descriptors::take(max_connections(limits));
        let announcer = Announcer { grpc: Health::new().await, http: Readiness::new() };
        let connections = Connections::default();
        let outcomes = Arc::<Outcomes>::default();
        let gateway = Arc::new(Gateway::new(config.gateway.clone(), outcomes.clone()));

        let entrance = Entrance {
            listener: listeners.grpc,
            tls: tls.clone(),
            side: Side::Grpc,
            limits: grpc_entrance_limits(limits),
            counts: connections.grpc.clone(),
        };
        let others = health::routes(&announcer.grpc, config.reflection);
        let (calls, streams) = (call_limits(limits), connection_limits(limits));
        let services = Services::new(
            ready.clone(),
            others,
            callers.clone(),
            audit.clone(),
            gateway.clone(),
            calls,
        );
        let grpc = Port::open(|close| server::serve(entrance, services, streams, close));

        let http_tls = config.tls.as_ref().filter(|tls| tls.http);
        let entrance = listeners.http.map(|listener| Entrance {
            listener,
            tls: tls.clone().filter(|_| http_tls.is_some()),
            side: Side::Http,
            limits: http_entrance_limits(limits),
            counts: connections.http.clone(),
        });
        let gates = Gates {
            door: Door {
                callers: callers.clone(),
                audit: audit.clone(),
                is_private: config.http_is_private,
            },
            ready,
            gateway,
            outcomes: outcomes.clone(),
            patience: limits.call_timeout,
            certificates: http_tls.is_some_and(|tls| tls.files.client_ca.is_some()),
        };
        let metrics = Arc::new(Metrics::new(Observed {
            replica,
            callers,
            connections,
            tls,
            audit,
            outcomes,
        }));
        let routes = http::routes(announcer.http.clone(), metrics, &config.issuer, gates);
        let limits = http_connection_limits(limits);
        let http = Port::open(|close| http::server::serve(entrance, routes, limits, close));
        Self { announcer, grpc, http }
    }

    /// Says how far the service has come.
    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Waits until a server has stopped, which none does by itself, and names it.
    pub async fn stopped(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.grpc.server => "the gRPC server",
            _ = &mut self.http.server => "the HTTP server",
        }
    }

    /// Takes no more calls, and lets those under way finish until the time is over or it is told to
    /// hurry.
    pub async fn drain(&mut self, time: Duration, hurry: &CancellationToken) {
        self.grpc.close.cancel();
        self.announcer.grpc.end().await;
        if self.grpc.server.is_finished() {
            return;
        }
        tokio::select! {
            _ = &mut self.grpc.server => {}
            () = sleep(time) => tracing::warn!("calls were cut off: they took too long"),
            () = hurry.cancelled() => tracing::warn!("calls were cut off by a second signal"),
        }
    }

    /// Closes what is still open: the HTTP side answers probes until the end.
    pub async fn close(self) {
        self.http.close.cancel();
        if !self.http.server.is_finished() {
            // Only its end is waited for.
            let _ = self.http.server.await;
        }
    }
}
