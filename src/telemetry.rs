//! Writes the log to standard error, by default as text on a terminal and as JSON elsewhere, and
//! exports traces and metrics if there is a collector. Tokens, keys and claims must never be
//! logged.

pub mod collector;
pub mod metrics;
mod traces;

use std::{
    io::{self, IsTerminal},
    sync::Arc,
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use self::{
    collector::{CollectorError, Connection},
    metrics::MetricExport,
    traces::TraceExport,
};
use crate::{
    config::{
        error::ConfigError,
        log::{LevelControl, Log, LogFormat},
        otlp::Collector,
    },
    instruments::traces::DroppedSpans,
};

/// Logging or tracing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not valid.
    #[error(transparent)]
    Level(#[from] ConfigError),
    /// Nothing can be exported to the collector.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// Logging has been started before.
    #[error("logging has been started before")]
    Twice,
}

/// The log and the export of this process.
#[must_use]
pub struct Telemetry {
    level: Arc<dyn LevelControl>,
    traces: Option<TraceExport>,
    metrics: Option<MetricExport>,
    dropped_spans: Arc<DroppedSpans>,
}

impl Telemetry {
    /// Returns the control of the level of the log.
    pub fn level(&self) -> Arc<dyn LevelControl> {
        self.level.clone()
    }

    /// Returns the export of metrics, which is not running yet; `None` if there is to be none.
    pub fn metric_export(&self) -> Option<MetricExport> {
        self.metrics.clone()
    }

    /// Returns the counters of the spans that do not reach the collector.
    pub fn dropped_spans(&self) -> Arc<DroppedSpans> {
        self.dropped_spans.clone()
    }

    /// Exports the last traces, but does not wait long for the collector.
    pub async fn end(self) {
        if let Some(traces) = self.traces {
            traces.end().await;
        }
    }
}

/// Returns whether a line cannot contain secrets. The PostgreSQL driver logs the values of every
/// statement at the levels below `INFO`, so those lines are dropped whatever level is configured.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !metadata.target().starts_with("tokio_postgres")
}

/// Returns whether this is a span of ours. They are made at every level of the log, so that traces
/// do not depend on that level, and each line names its call.
fn is_our_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span()
        && *metadata.level() <= Level::INFO
        && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
}

/// The level of the log, which can be changed.
struct ReloadableLevel(reload::Handle<EnvFilter, Registry>);

impl LevelControl for ReloadableLevel {
    fn set(&self, log: &Log) -> Result<(), String> {
        let filter = log.filter().map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    start_with_export(log, None, "").map(drop)
}

/// Starts logging for the whole process, and the export of traces if there is a collector. Prepares
/// the export of metrics. `instance` is the name of this replica. With a collector, this must run
/// in a runtime.
pub fn start_with_export(
    log: &Log,
    collector: Option<&Collector>,
    instance: &str,
) -> Result<Telemetry, TelemetryError> {
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let connection = collector.map(|collector| Connection::new(collector, instance)).transpose()?;
    let dropped_spans = Arc::<DroppedSpans>::default();
    let traces = connection
        .as_ref()
        .map(|connection| TraceExport::start(connection, dropped_spans.clone()))
        .transpose()?;
    let interval = collector.and_then(|collector| collector.metrics_interval);
    let metrics =
        connection.zip(interval).map(|(connection, every)| MetricExport::new(connection, every));
    // Without the hints, the levels of the filters would count as unknown, and each disabled line
    // of the libraries would cost time.
    let our_spans = || filter_fn(is_our_span).with_max_level_hint(LevelFilter::INFO);
    let harmless = filter_fn(is_harmless).with_max_level_hint(LevelFilter::TRACE);
    let (level, control) = reload::Layer::new(log.filter()?);
    let lines = lines(json).with_filter(level.or(our_spans()).and(harmless));
    let spans = traces.as_ref().map(|traces| {
        let layer = tracing_opentelemetry::layer()
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_tracer(traces.tracer());
        // Lines are no part of a trace, because those of the audit have subjects and addresses.
        layer.with_filter(our_spans())
    });
    let registry = tracing_subscriber::registry().with(lines).with(spans);
    registry.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(Telemetry { level: Arc::new(ReloadableLevel(control)), traces, metrics, dropped_spans })
}

/// Returns the layer that writes lines.
fn lines<S>(json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    if json {
        let lines = fmt::layer().json().flatten_event(true).with_current_span(false);
        Box::new(lines.with_writer(io::stderr))
    } else {
        Box::new(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr))
    }
}
