//! Writes the metrics for operators in the text format of OpenMetrics 1.0 or as messages of OTLP,
//! and defines their names, units and meanings. The parts of the process count their events
//! themselves. All other values are read from these parts at each scrape.

mod authority;
mod otlp;
mod page;
mod plain_text;
mod process;
mod replica;

use std::{fmt, ops::Range, sync::Arc};

use opentelemetry_proto::tonic::metrics::v1::Metric;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, prometheus_protobuf, text},
    metrics::{MetricType, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use self::{
    authority::AuthorityCollector,
    page::{Page, count},
    process::ProcessCollector,
    replica::ReplicaCollector,
};
use crate::{
    authority::{audit::Audit, ready::Ready},
    callers::Callers,
    domain::time::Timestamp,
    gateway::outcomes::{CONFLICTING_COOKIES, Outcomes},
    instruments::{Events, traces::DroppedSpans},
    net::{accept::Counts, tls::Tls},
    revocation::replica::Replica,
};

/// A format in which metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    PlainText,
}

impl Format {
    /// Returns the media type of the format.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::PlainText => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The prefix of the name of each metric.
const PREFIX: &str = "countersign";

/// The parts of the process whose metrics are written.
#[derive(Debug)]
pub struct Observed {
    /// The use cases, once they can be called.
    pub ready: Ready,
    /// The replica, which knows the revocations.
    pub replica: Arc<Replica>,
    /// The known callers and their calls.
    pub callers: Arc<Callers>,
    /// The counts of connections.
    pub connections: Connections,
    /// The TLS settings, if connections are encrypted.
    pub tls: Option<Arc<Tls>>,
    /// The audit.
    pub audit: Audit,
    /// The outcomes of the requests of gateways.
    pub outcomes: Arc<Outcomes>,
    /// The calls of each gRPC method.
    pub grpc_calls: Arc<Events>,
    /// The requests on each HTTP route.
    pub http_requests: Arc<Events>,
    /// The operations of the store.
    pub store_operations: Arc<Events>,
    /// The spans that do not reach the collector.
    pub dropped_spans: Arc<DroppedSpans>,
}

/// The counts of the connections of both servers.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// The counts of the gRPC server.
    pub grpc: Arc<Counts>,
    /// The counts of the HTTP server.
    pub http: Arc<Counts>,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Registers the metrics of a process.
    pub fn new(observed: Observed) -> Self {
        let Observed { replica, callers, connections, tls, audit, outcomes, .. } = observed;
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector));
        let registry = all.sub_registry_with_prefix(PREFIX);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of the service", build);
        registry.register_collector(Box::new(RequestsCollector {
            grpc: observed.grpc_calls,
            http: observed.http_requests,
            store: observed.store_operations,
        }));
        registry.register_collector(Box::new(AuthorityCollector(observed.ready)));
        registry.register_collector(Box::new(ReplicaCollector(replica)));
        registry.register_collector(Box::new(CallersCollector(callers)));
        registry.register_collector(Box::new(ConnectionsCollector(connections, tls)));
        registry.register_collector(Box::new(AuditCollector(audit)));
        registry.register_collector(Box::new(GatewaysCollector(outcomes)));
        registry.register_collector(Box::new(SpansCollector(observed.dropped_spans)));
        Self(all)
    }

    /// Writes the current values.
    pub fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.0)?;
        Ok(match format {
            Format::OpenMetrics => page,
            Format::PlainText => plain_text::of_open_metrics(&page),
        })
    }

    /// Returns the current values as messages of OTLP. `period` is the time from the start of the
    /// counters until now.
    pub fn otlp(&self, period: Range<Timestamp>) -> Result<Vec<Metric>, fmt::Error> {
        Ok(otlp::of_families(prometheus_protobuf::encode(&self.0)?, period))
    }
}

/// Writes the metrics of gRPC calls, HTTP requests and operations of the store.
#[derive(Debug)]
struct RequestsCollector {
    grpc: Arc<Events>,
    http: Arc<Events>,
    store: Arc<Events>,
}

impl Collector for RequestsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.events(
            "code",
            ["requests", "gRPC calls that have ended, refused ones too."],
            ["request_duration", "Time from the head of a gRPC call to the end of its answer."],
            &self.grpc,
        )?;
        page.events(
            "code",
            ["http_requests", "HTTP requests that have ended, refused and cancelled ones too."],
            ["http_request_duration", "Time between the heads of an HTTP request and its answer."],
            &self.http,
        )?;
        page.events(
            "result",
            ["store_operations", "Operations of the database that have ended."],
            ["store_operation_duration", "Time that an operation of the database has taken."],
            &self.store,
        )
    }
}

/// Writes the metrics of callers and their calls.
#[derive(Debug)]
struct CallersCollector(Arc<Callers>);

impl Collector for CallersCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let refused = self.0.refused();
        let mut page = Page(encoder);
        page.number(
            "callers",
            "Callers in the configuration; 0 if everybody may do everything.",
            count(self.0.count()),
        )?;
        page.number("calls_under_way", "Calls that were admitted and are not answered yet.", {
            count(self.0.calls_under_way())
        })?;
        page.by(
            "reason",
            "calls_refused",
            "Calls that were not admitted.",
            None,
            &[
                ("unknown", &refused.unknown),
                ("not_allowed", &refused.not_allowed),
                ("over_limit", &refused.over_limit),
                ("overloaded", &refused.overloaded),
            ],
        )
    }
}

/// Writes the metrics of connections and of the certificate.
#[derive(Debug)]
struct ConnectionsCollector(Connections, Option<Arc<Tls>>);

impl Collector for ConnectionsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(Connections { grpc, http }, tls) = self;
        let mut page = Page(encoder);
        page.by(
            "side",
            "connections_open",
            "Connections that are open.",
            None,
            &[("grpc", &grpc.open), ("http", &http.open)],
        )?;
        page.by(
            "side",
            "connections_accepted",
            "Connections that were accepted.",
            None,
            &[("grpc", &grpc.accepted), ("http", &http.accepted)],
        )?;
        page.by(
            "side",
            "connections_refused",
            "Connections closed at once, because there were too many.",
            None,
            &[("grpc", &grpc.refused), ("http", &http.refused)],
        )?;
        page.by(
            "side",
            "connections_reserved_open",
            "Of the open connections, those in the reserve: only probes are answered there.",
            None,
            &[("http", &http.reserved_open)],
        )?;
        page.by(
            "side",
            "connections_reserved",
            "Of the accepted connections, those for which only the reserve had room.",
            None,
            &[("http", &http.reserved)],
        )?;
        page.by(
            "side",
            "connections_displaced",
            "Connections in the reserve that were closed for a newer one.",
            None,
            &[("http", &http.displaced)],
        )?;
        let help = "Connections closed because the TLS handshake failed or took too long.";
        page.by(
            "side",
            "handshakes_failed",
            help,
            None,
            &[("grpc", &grpc.handshakes_failed), ("http", &http.handshakes_failed)],
        )?;
        tls.as_ref().map_or(Ok(()), |tls| encode_certificate(&mut page, tls))
    }
}

fn encode_certificate(page: &mut Page<'_>, tls: &Tls) -> fmt::Result {
    let gauge = ConstGauge::new(tls.expires_at().seconds());
    let help = "Expiry of the certificate, in seconds since 1970.";
    gauge.encode(page.0.encode_descriptor(
        "certificate_expiry_timestamp",
        help,
        Some(&Unit::Seconds),
        gauge.metric_type(),
    )?)
}

/// Writes the metrics of the audit.
#[derive(Debug)]
struct AuditCollector(Audit);

impl Collector for AuditCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.number(
            "audit_records_waiting",
            "Records of the audit that are not in its table yet.",
            count(self.0.waiting()),
        )?;
        let help = "Records of the audit that are only in the log and will not be in its table.";
        page.encode("audit_records_dropped", help, self.0.dropped())?;
        let help =
            "Records of denied callers that were left out of the log, because there were too many.";
        page.encode("audit_denials_left_out", help, self.0.left_out())
    }
}

/// Writes the metrics of gateways and callers that speak OAuth.
#[derive(Debug)]
struct GatewaysCollector(Arc<Outcomes>);

impl Collector for GatewaysCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "Requests checked for gateways, and tokens introspected by callers that speak OAuth.";
        let mut family =
            encoder.encode_descriptor("gateway_checks", help, None, MetricType::Counter)?;
        self.0.iter().try_for_each(|(kind, outcome, counter)| {
            counter.encode(family.encode_family(&[("kind", kind), ("outcome", outcome)])?)
        })?;
        let help = "Requests checked for gateways whose cookies for the token differed.";
        let mut family = encoder.encode_descriptor(
            "gateway_conflicting_cookies",
            help,
            None,
            MetricType::Counter,
        )?;
        let mut conflicting =
            self.0.iter().filter(|(_, outcome, _)| *outcome == CONFLICTING_COOKIES);
        conflicting.try_for_each(|(kind, _, counter)| {
            counter.encode(family.encode_family(&[("kind", kind)])?)
        })
    }
}

/// Writes the metrics of the export of traces.
#[derive(Debug)]
struct SpansCollector(Arc<DroppedSpans>);

impl Collector for SpansCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let DroppedSpans { queue_full, export_failed } = &*self.0;
        Page(encoder).by(
            "reason",
            "spans_dropped",
            "Spans of traced calls that did not reach the collector.",
            None,
            &[("queue_full", queue_full), ("export_failed", export_failed)],
        )
    }
}
