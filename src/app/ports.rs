//! Starts the servers of the two ports, announces the phase of the service on both ports, and
//! closes them.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    System,
    settings::{
        call_limits, connection_limits, grpc_accept_limits, http_accept_limits,
        http_connection_limits, max_connections,
    },
};
use crate::{
    authority::{audit::Audit, ready::Ready},
    callers::Callers,
    calls::{CallObserver, SlowCalls},
    clock::Clock,
    config::Config,
    gateway::{Gateway, outcomes::Outcomes},
    grpc::{
        call_kinds,
        health::{self, Health},
        server,
        services::{self, Services},
    },
    http::{
        self, HttpAuthenticator, HttpState,
        health::{Phase, Readiness},
        requests,
    },
    instruments::{
        Events,
        traces::{DroppedSpans, Traces},
    },
    metrics::{Connections, Metrics, Observed},
    net::{
        accept::Acceptor,
        descriptors,
        tls::{Side, Tls},
    },
    revocation::replica::Replica,
    telemetry::metrics::RunningExport,
};

/// The listening sockets.
pub struct Listeners {
    /// The socket of the gRPC port.
    pub grpc: TcpListener,
    /// The socket of the HTTP port; `None` if there is no HTTP port.
    pub http: Option<TcpListener>,
}

/// The state that both servers share.
pub struct ServerState {
    /// The use cases, once they can be called.
    pub ready: Ready,
    /// This replica.
    pub replica: Arc<Replica>,
    /// The callers that are known.
    pub callers: Arc<Callers>,
    /// The certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// The audit.
    pub audit: Audit,
    /// The operations of the store.
    pub store_operations: Arc<Events>,
    /// The counters of the spans that do not reach the collector.
    pub dropped_spans: Arc<DroppedSpans>,
    /// The time, for limits on the rate of log lines.
    pub clock: Arc<dyn Clock>,
}

/// Announces the phase of the service on both ports.
#[derive(Clone)]
pub struct Announcer {
    grpc: Health,
    http: Readiness,
}

impl Announcer {
    /// Announces a phase in gRPC health checks and in `/readyz`.
    pub async fn announce(&self, phase: Phase) {
        self.http.set(phase);
        match phase {
            Phase::Serving => self.grpc.serving().await,
            Phase::Starting | Phase::Lapsed | Phase::Stopping => self.grpc.not_serving().await,
        }
    }
}

/// A running server, and the token that stops it.
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

/// The settings of both ports that can change while they serve.
#[derive(Clone)]
pub struct PortSettings {
    gateway: Arc<Gateway>,
    slow: Arc<SlowCalls>,
}

impl PortSettings {
    /// Puts the settings of a configuration in force.
    pub fn replace(&self, config: &Config) {
        self.gateway.replace_settings(config.gateway.clone());
        self.slow.set_threshold(config.log.slow_calls);
    }
}

/// Both ports. Their servers end when this value is dropped.
pub struct Ports {
    announcer: Announcer,
    settings: PortSettings,
    metrics: Arc<Metrics>,
    grpc: Port,
    http: Port,
}

/// The counts that both ports share.
#[derive(Default)]
struct Counted {
    connections: Connections,
    outcomes: Arc<Outcomes>,
}

impl Ports {
    /// Starts both servers, which report at first that the service is not ready.
    pub async fn open(config: &Config, listeners: Listeners, state: ServerState) -> Self {
        descriptors::take(max_connections(&config.limits));
        let announcer = Announcer { grpc: Health::new().await, http: Readiness::new() };
        let counted = Counted::default();
        let gateway = Arc::new(Gateway::new(config.gateway.clone(), counted.outcomes.clone()));
        let grpc_calls = Arc::new(call_kinds::counters());
        let acceptor = Acceptor {
            listener: listeners.grpc,
            tls: state.tls.clone(),
            side: Side::Grpc,
            limits: grpc_accept_limits(&config.limits),
            counts: counted.connections.grpc.clone(),
        };
        let others = health::routes(&announcer.grpc, config.reflection);
        let slow = Arc::new(SlowCalls::new(config.log.slow_calls, state.clock.clone()));
        let settings = PortSettings { gateway: gateway.clone(), slow: slow.clone() };
        let observer = |events| {
            let (slow, traces) = (slow.clone(), traces(config));
            Arc::new(CallObserver { events, slow, traces })
        };
        let parts = grpc_parts(&state, gateway.clone(), observer(grpc_calls.clone()));
        let services = Services::new(parts, others, call_limits(&config.limits));
        let limits = connection_limits(&config.limits);
        let grpc = Port::open(|close| server::serve(acceptor, services, limits, close));

        let http_tls = config.tls.as_ref().filter(|tls| tls.http);
        let acceptor = listeners.http.map(|listener| Acceptor {
            listener,
            tls: state.tls.clone().filter(|_| http_tls.is_some()),
            side: Side::Http,
            limits: http_accept_limits(&config.limits),
            counts: counted.connections.http.clone(),
        });
        let http_requests = Arc::new(requests::counters());
        let http_state = http_state(config, &state, gateway, counted.outcomes.clone());
        let metrics = metrics(state, counted, grpc_calls, http_requests.clone());
        let routes =
            http::routes(announcer.http.clone(), metrics.clone(), &config.issuer, http_state);
        let limits = http_connection_limits(&config.limits);
        let observer = observer(http_requests);
        let http =
            Port::open(|close| http::server::serve(acceptor, routes, observer, limits, close));
        Self { announcer, settings, metrics, grpc, http }
    }

    /// Returns the announcer of the service's phase.
    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Returns the settings that can change.
    pub fn settings(&self) -> PortSettings {
        self.settings.clone()
    }

    /// Starts the export of metrics, if there is to be one.
    pub fn export_metrics(&self, system: &System) -> Option<RunningExport> {
        let export = system.metric_export.clone()?;
        let (metrics, clock) = (self.metrics.clone(), system.clock.clone());
        // The counters are not older than the servers, which were opened just now.
        let began = clock.now();
        Some(export.start(move || metrics.otlp(began..clock.now().max(began))))
    }

    /// Waits until a server has stopped by itself, which is a failure, and returns its name.
    pub async fn stopped(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.grpc.server => "the gRPC server",
            _ = &mut self.http.server => "the HTTP server",
        }
    }

    /// Stops accepting calls, and lets those in flight finish until `time` has passed or `hurry` is
    /// cancelled.
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

    /// Closes the HTTP port. This happens last, so that the port can answer probes until the end.
    pub async fn close(self) {
        self.http.close.cancel();
        if !self.http.server.is_finished() {
            // A panic of the server does not matter any more.
            let _ = self.http.server.await;
        }
    }
}

fn traces(config: &Config) -> Traces {
    let otlp = config.otlp.as_ref();
    otlp.map_or_else(Traces::default, |otlp| Traces::with_ratio(otlp.sample_ratio))
}

fn grpc_parts(
    state: &ServerState,
    gateway: Arc<Gateway>,
    observer: Arc<CallObserver>,
) -> services::Parts {
    services::Parts {
        ready: state.ready.clone(),
        callers: state.callers.clone(),
        audit: state.audit.clone(),
        gateway,
        observer,
    }
}

fn http_state(
    config: &Config,
    state: &ServerState,
    gateway: Arc<Gateway>,
    outcomes: Arc<Outcomes>,
) -> HttpState {
    let tls = config.tls.as_ref().filter(|tls| tls.http);
    HttpState {
        authenticator: HttpAuthenticator {
            callers: state.callers.clone(),
            audit: state.audit.clone(),
            is_private: config.http_is_private,
        },
        ready: state.ready.clone(),
        gateway,
        outcomes,
        request_timeout: config.limits.call_timeout,
        certificates: tls.is_some_and(|tls| tls.files.client_ca.is_some()),
    }
}

fn metrics(
    state: ServerState,
    counted: Counted,
    grpc_calls: Arc<Events>,
    http_requests: Arc<Events>,
) -> Arc<Metrics> {
    let ServerState {
        ready, replica, callers, tls, audit, store_operations, dropped_spans, ..
    } = state;
    let Counted { connections, outcomes } = counted;
    Arc::new(Metrics::new(Observed {
        ready,
        replica,
        callers,
        connections,
        tls,
        audit,
        outcomes,
        grpc_calls,
        http_requests,
        store_operations,
        dropped_spans,
    }))
}
