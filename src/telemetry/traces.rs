//! Exports the traces of calls to a collector by OTLP, in the background. A collector that is away
//! or slow delays nothing: spans wait in a bounded queue, and further ones are dropped.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState, TracerProvider},
};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    runtime::Tokio,
    trace::{
        BatchConfigBuilder, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider,
        ShouldSample, SpanData, SpanExporter,
        span_processor_with_async_runtime::BatchSpanProcessor,
    },
};

use crate::{
    config::traces::{Collector, TraceProtocol},
    instruments::traces::SAMPLED,
};

/// The most spans that wait for the collector.
const MOST_WAITING: usize = 4096;
/// The time between two exports.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest time that an export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that the end of the process waits for the last export.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The traces of this process.
#[derive(Debug)]
pub struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// Begins to export to a collector. `instance` is the name of this replica.
    pub fn start(collector: &Collector, instance: &str) -> Result<Self, String> {
        let exporter = Reporting::new(exporter(collector)?, collector.endpoint.clone());
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING)
            .with_scheduled_delay(INTERVAL)
            .with_max_export_timeout(EXPORT_TIMEOUT)
            .build();
        let processor =
            BatchSpanProcessor::builder(exporter, Tokio).with_batch_config(batches).build();
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "countersign"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(FollowDecision)
            .with_span_processor(processor)
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    /// Returns the tracer that makes the spans.
    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer("countersign")
    }

    /// Exports the last spans, but does not wait long for the collector.
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.0.shutdown());
        // Lost spans are no reason to stop later.
        let _ = tokio::time::timeout(LAST_EXPORT_TIMEOUT, ending).await;
    }
}

fn exporter(collector: &Collector) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let built = match collector.protocol {
        TraceProtocol::Grpc => builder
            .with_tonic()
            .with_endpoint(&collector.endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build(),
        TraceProtocol::Http => builder
            .with_http()
            .with_http_client(HyperClient::with_default_connector(EXPORT_TIMEOUT, None))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", collector.endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build(),
    };
    built.map_err(|error| error.to_string())
}

/// Records the spans of calls that were sampled ([`crate::instruments::traces`]), and their
/// children.
#[derive(Clone, Debug)]
struct FollowDecision;

impl ShouldSample for FollowDecision {
    fn should_sample(
        &self,
        parent: Option<&opentelemetry::Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent = parent.filter(|context| context.span().span_context().is_valid());
        let is_recorded = match parent {
            Some(context) => context.span().span_context().is_sampled(),
            None => attributes.iter().any(|attribute| attribute.key.as_str() == SAMPLED),
        };
        let trace_state = parent.map_or_else(TraceState::default, |context| {
            context.span().span_context().trace_state().clone()
        });
        let decision =
            if is_recorded { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: vec![], trace_state }
    }
}

/// Exports spans, and logs when the collector can no longer be reached, and when it can again.
struct Reporting<E> {
    exporter: E,
    endpoint: Arc<str>,
    is_failing: AtomicBool,
}

impl<E> fmt::Debug for Reporting<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporting").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<E> Reporting<E> {
    fn new(exporter: E, endpoint: String) -> Self {
        Self { exporter, endpoint: endpoint.into(), is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporting = tokio::time::timeout(EXPORT_TIMEOUT, self.exporter.export(batch));
        let problem = match exporting.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        let was_failing = self.is_failing.swap(problem.is_some(), Ordering::Relaxed);
        let endpoint = &*self.endpoint;
        match problem {
            Some(problem) if !was_failing => tracing::warn!(
                endpoint,
                problem,
                "traces are dropped, because the collector cannot be reached"
            ),
            None if was_failing => tracing::info!(endpoint, "traces are exported again"),
            Some(_) | None => {}
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
