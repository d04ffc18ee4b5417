//! Writes the metrics for operators in the text format of OpenMetrics 1.0, and defines their names,
//! units and meanings. The parts of the process count their events themselves. All other values are
//! read from these parts at each scrape.

mod plain_text;
mod process;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use self::process::ProcessCollector;
use crate::{
    authority::{Authority, audit::Audit, ready::Ready},
    callers::Callers,
    domain::{
        inactive::InactiveReason,
        key::{KeyPurpose, KeyState},
    },
    gateway::outcomes::{CONFLICTING_COOKIES, Outcomes},
    instruments::{Distribution, Events, Labels},
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

/// Writes the metrics of the use cases, of what they use, and of the database, once there are any.
#[derive(Debug)]
struct AuthorityCollector(Ready);

impl Collector for AuthorityCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(authority) = self.0.get() else { return Ok(()) };
        let mut page = Page(encoder);
        encode_validations(&mut page, authority)?;
        encode_token_cache(&mut page, authority)?;
        encode_keys(&mut page, authority)?;
        encode_sweeps(&mut page, authority)?;
        encode_sizes(&mut page, authority)?;
        encode_queues(&mut page, authority)?;
        encode_connections(&mut page, authority)
    }
}

fn encode_validations(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let validations = &authority.counts().validations;
    let help = "Tokens that were validated, also for gateways and in batches.";
    let mut family = page.0.encode_descriptor("validations", help, None, MetricType::Counter)?;
    let mut count = |labels: [(&str, &str); 2], count: u64| {
        let mut series = family.encode_family(&labels)?;
        series.encode_counter::<NoLabelSet, _, u64>(&count, None)
    };
    count([("result", "active"), ("reason", "")], validations.active())?;
    InactiveReason::ALL.into_iter().try_for_each(|reason| {
        count([("result", "inactive"), ("reason", reason.as_str())], validations.inactive(reason))
    })
}

fn encode_token_cache(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let cache = authority.verified_tokens().counts();
    page.counter("token_cache_hits", "Tokens whose signature was verified before.", cache.hits)?;
    page.counter("token_cache_misses", "Tokens whose signature had to be verified.", cache.misses)?;
    let help = "Tokens that the cache has dropped to make room for others.";
    page.counter("token_cache_evictions", help, cache.evictions)?;
    page.number("token_cache_tokens", "Tokens in the cache.", count(cache.tokens))?;
    let gauge = ConstGauge::new(cache.bytes);
    page.unit("token_cache", "Memory of the tokens in the cache.", &Unit::Bytes, &gauge)
}

fn encode_keys(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let keys = authority.known_keys();
    let help = "Keys by purpose and state.";
    let mut family = page.0.encode_descriptor("keys", help, None, MetricType::Gauge)?;
    for purpose in KeyPurpose::ALL {
        for state in KeyState::ALL {
            let of_kind =
                keys.iter().filter(|key| key.purpose() == purpose && key.state() == state);
            let labels = [("purpose", purpose.as_str()), ("state", state.as_str())];
            family.encode_family(&labels)?.encode_gauge(&count(of_kind.count()))?;
        }
    }
    let help = "Time at which the active key is to be replaced, in seconds since 1970.";
    let unit = Some(&Unit::Seconds);
    let mut family =
        page.0.encode_descriptor("key_rotation_due_timestamp", help, unit, MetricType::Gauge)?;
    KeyPurpose::ALL.into_iter().try_for_each(|purpose| {
        let Some(due) = authority.next_rotation(purpose) else { return Ok(()) };
        let labels = [("purpose", purpose.as_str())];
        family.encode_family(&labels)?.encode_gauge(&(due.micros() / 1_000_000))
    })
}

fn encode_sweeps(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let sweeps = &authority.counts().sweeps;
    let rows = [
        ("blacklist", &sweeps.revocations),
        ("sessions", &sweeps.sessions),
        ("audit", &sweeps.audit),
    ];
    page.by("table", "swept_rows", "Rows that sweeps of this replica deleted.", None, &rows)?;
    let help = "Sessions whose expiry was recorded by sweeps of this replica.";
    page.encode("sessions_expired", help, &sweeps.expired)?;
    let help = "End of the last sweep of this replica that did all that was due, in seconds since \
                1970; 0 before the first one.";
    page.unit("sweep_last_success_timestamp", help, &Unit::Seconds, &sweeps.last_success)
}

fn encode_sizes(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let Some(sampled) = authority.counts().sizes.load_full() else { return Ok(()) };
    let (sizes, tables) = (&sampled.sizes, || sampled.sizes.tables.iter());
    page.unit("database", "Size of the database.", &Unit::Bytes, &ConstGauge::new(sizes.bytes))?;
    let rows = tables().map(|table| (&*table.table, ConstGauge::new(table.rows)));
    let help = "Rows of a table. PostgreSQL estimates them.";
    page.gauges("table", "table_rows", help, None, rows)?;
    let bytes = tables().filter_map(|table| Some((&*table.table, ConstGauge::new(table.bytes?))));
    page.gauges("table", "table", "Size of a table with its indexes.", Some(&Unit::Bytes), bytes)?;
    let help = "Blacklist rows that have expired and are not deleted yet, at most 100000.";
    page.number("expired_blacklist_rows", help, count(sizes.expired_rows))?;
    let help = "Time since the expiry of the oldest expired blacklist row.";
    page.seconds("expired_blacklist_age", help, sampled.oldest_expired_for)
}

fn encode_queues(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let queues = authority.store_counts().queues;
    let waiting: Vec<_> = queues.iter().map(|queue| (queue.name, &queue.waiting)).collect();
    page.by("queue", "write_queue_depth", "Writes that wait for a batch.", None, &waiting)?;
    let writes: Vec<_> = queues.iter().map(|queue| (queue.name, &queue.writes)).collect();
    page.by("queue", "write_batch_writes", "Writes in a batch.", None, &writes)?;
    let waits = queues.iter().map(|queue| (queue.name, queue.waits.distribution()));
    page.durations("queue", "write_queue_wait", "Time that a write waited for its batch.", waits)?;
    let commits = queues.iter().map(|queue| (queue.name, queue.commits.distribution()));
    let help = "Time that a batch of writes took, with repeated attempts.";
    page.durations("queue", "write_batch_duration", help, commits)
}

fn encode_connections(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let Some(pool) = authority.store_counts().connections else { return Ok(()) };
    let (in_use, idle) = (ConstGauge::new(pool.in_use), ConstGauge::new(pool.idle));
    let help = "Connections to the database by state. SQLite counts those that read.";
    page.by("state", "database_connections", help, None, &[("in_use", &in_use), ("idle", &idle)])?;
    let help = "Operations that wait for a connection to the database.";
    page.number("database_connection_waiting", help, count(pool.waiting))?;
    let help = "How often a connection to the database was asked for.";
    page.counter("database_connection_checkouts", help, pool.checkouts)?;
    let help = "How often an operation waited for a connection to the database, and got one.";
    page.counter("database_connection_waits", help, pool.waits)?;
    let help = "How often an operation got no connection to the database in time.";
    page.counter("database_connection_timeouts", help, pool.timeouts)?;
    let help = "Time that operations have waited for a connection to the database.";
    let counter = ConstCounter::new(pool.waited.as_secs_f64());
    page.unit("database_connection_wait", help, &Unit::Seconds, &counter)
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

    /// Writes a metric with a unit.
    fn unit(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        metric: &impl EncodeMetric,
    ) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, Some(unit), metric.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encode(name, help, &ConstCounter::new(value))
    }

    /// Writes a gauge that has one value for each kind. The label names the kind.
    fn gauges<'a>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        gauges: impl Iterator<Item = (&'a str, ConstGauge<i64>)>,
    ) -> fmt::Result {
        let gauges: Vec<_> = gauges.collect();
        let gauges: Vec<_> = gauges.iter().map(|(kind, gauge)| (*kind, gauge)).collect();
        self.by(label, name, help, unit, &gauges)
    }

    /// Writes distributions of durations, which a label distinguishes.
    fn durations<'a>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        distributions: impl Iterator<Item = (&'a str, Distribution)>,
    ) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (kind, Distribution { sum, count, buckets }) in distributions {
            let labels = [(label, kind)];
            let mut series = family.encode_family(&labels)?;
            series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn number(&mut self, name: &str, help: &str, value: u32) -> fmt::Result {
        self.encode(name, help, &ConstGauge::new(value))
    }

    fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        self.unit(name, help, &Unit::Seconds, &ConstGauge::new(value.as_secs_f64()))
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

    /// Writes how many events ended with each code, and how long they took. `label` is the name of
    /// the label for the code. The first code is always written, so that there is a series to
    /// compute rates from; others once they occurred.
    fn events(
        &mut self,
        label: &'static str,
        [total, total_help]: [&str; 2],
        [duration, duration_help]: [&str; 2],
        events: &Events,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(total, total_help, None, MetricType::Counter)?;
        for (kind, labels) in events.kinds().iter().enumerate() {
            for (number, code) in events.codes().iter().enumerate() {
                let count = events.count(kind, number);
                if number == 0 || count > 0 {
                    let labels: Labels = labels.iter().copied().chain([(label, *code)]).collect();
                    let mut series = family.encode_family(&labels)?;
                    series.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let unit = Some(&Unit::Seconds);
        let mut family =
            self.0.encode_descriptor(duration, duration_help, unit, MetricType::Histogram)?;
        for (kind, labels) in events.kinds().iter().enumerate() {
            let Distribution { sum, count, buckets } = events.distribution(kind);
            let mut series = family.encode_family(labels)?;
            series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
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
fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
