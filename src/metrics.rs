//! Writes the metrics for operators in the text format of OpenMetrics 1.0, and defines their names,
//! units and meanings. The parts of the process count their events themselves. All other values are
//! read from these parts at each scrape.

mod plain_text;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{
    authority::audit::Audit,
    callers::Callers,
    gateway::outcomes::{CONFLICTING_COOKIES, Outcomes},
    net::{accept::Counts, tls::Tls},
    revocation::{
        counts,
        replica::{Replica, Standing},
    },
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
        let Observed { replica, callers, connections, tls, audit, outcomes } = observed;
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(ReplicaCollector(replica)));
        registry.register_collector(Box::new(CallersCollector(callers)));
        registry.register_collector(Box::new(ConnectionsCollector(connections, tls)));
        registry.register_collector(Box::new(AuditCollector(audit)));
        registry.register_collector(Box::new(GatewaysCollector(outcomes)));
        Self(registry)
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
}

/// Writes the metrics of the replica.
#[derive(Debug)]
struct ReplicaCollector(Arc<Replica>);

impl Collector for ReplicaCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (standing, counts) = (self.0.standing(), self.0.counts());
        let mut page = Page(encoder);
        encode_lease(&mut page, &standing, counts)?;
        encode_feed(&mut page, &standing, counts)?;
        encode_register(&mut page, &standing, counts)?;
        encode_acknowledgements(&mut page, &standing, counts)
    }
}

fn encode_lease(page: &mut Page<'_>, standing: &Standing, counts: &counts::Counts) -> fmt::Result {
    page.number(
        "lease_current",
        "1 while there is a lease, so that tokens can be validated here; else 0.",
        u32::from(standing.lease.is_some()),
    )?;
    // The lease of a replica that is alone does not end, and has no remaining time to show.
    let remaining = standing.lease.unwrap_or_default();
    if remaining != Duration::MAX {
        page.seconds("lease_remaining", "Time until the lease ends.", remaining)?;
    }
    if let Some(ago) = standing.renewed_ago {
        page.seconds(
            "lease_renewal_age",
            "Time since a renewal of the lease was last confirmed.",
            ago,
        )?;
    }
    page.by_outcome(
        "lease_renewals",
        "Renewals of the lease.",
        None,
        &[("confirmed", &counts.renewals.confirmed), ("failed", &counts.renewals.failed)],
    )?;
    page.encode(
        "lease_lapses",
        "Times that the lease ended before it was renewed.",
        &counts.lapses,
    )?;
    page.number(
        "lease_waiting_calls",
        "Calls that wait for a renewal, because there is no lease.",
        count(standing.lapsed_calls),
    )
}

fn encode_feed(page: &mut Page<'_>, standing: &Standing, counts: &counts::Counts) -> fmt::Result {
    page.encode(
        "feed_applied_seq",
        "Number of the last revocation in the feed that is known here.",
        &counts.applied,
    )?;
    page.encode(
        "feed_head_seq",
        "Number of the last revocation in the feed, at the last renewal.",
        &counts.head,
    )?;
    page.number(
        "blacklist_entries",
        "Entries of the blacklist in memory.",
        count(standing.blacklist_entries),
    )
}

fn encode_register(
    page: &mut Page<'_>,
    standing: &Standing,
    counts: &counts::Counts,
) -> fmt::Result {
    page.number(
        "other_replicas",
        "Other replicas in the register, at the last renewal.",
        count(standing.others),
    )?;
    page.encode(
        "replicas_removed",
        "Replicas that had stopped without leaving and were removed by this replica.",
        &counts.removals,
    )?;
    page.encode(
        "rejoins",
        "Times that this replica joined again because it had been removed.",
        &counts.rejoins,
    )
}

fn encode_acknowledgements(
    page: &mut Page<'_>,
    standing: &Standing,
    counts: &counts::Counts,
) -> fmt::Result {
    let unacknowledged = count(standing.unacknowledged);
    page.number(
        "unacknowledged_revocations",
        "Revocations that wait until no replica accepts the revoked tokens.",
        unacknowledged,
    )?;
    let outcomes = &counts.acknowledgements;
    let help = "Time from the commit of a revocation until no replica accepts the revoked tokens.";
    page.by_outcome(
        "acknowledgement_duration",
        help,
        Some(&Unit::Seconds),
        &[
            ("everywhere", &outcomes.everywhere),
            ("after_wait", &outcomes.after_wait),
            ("failed", &outcomes.failed),
            ("given_up", &outcomes.given_up),
        ],
    )?;
    let help = "Acknowledged revocations that the database had lost: the guarantee was \
                broken. They were written again.";
    page.encode("guarantee_broken_revocations", help, &counts.lost_revocations)
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

/// Writes metrics one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn encode(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn number(&mut self, name: &str, help: &str, value: u32) -> fmt::Result {
        self.encode(name, help, &ConstGauge::new(value))
    }

    fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        let gauge = ConstGauge::new(value.as_secs_f64());
        gauge.encode(self.0.encode_descriptor(
            name,
            help,
            Some(&Unit::Seconds),
            gauge.metric_type(),
        )?)
    }

    fn by_outcome<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metrics: &[(&str, &M)],
    ) -> fmt::Result {
        self.by("outcome", name, help, unit, metrics)
    }

    /// Writes a metric that has one value for each kind. The label names the kind.
    fn by<M: EncodeMetric>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metrics: &[(&str, &M)],
    ) -> fmt::Result {
        let Some((_, first)) = metrics.first() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, unit, first.metric_type())?;
        metrics
            .iter()
            .try_for_each(|(kind, metric)| metric.encode(family.encode_family(&[(label, *kind)])?))
    }
}

/// Converts a count to the type of a gauge. A count that is too large becomes the largest value.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
