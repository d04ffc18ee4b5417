//! Exports the traces of calls to a collector by OTLP, in the background. A collector that is away
//! or slow delays nothing: spans wait in a bounded queue, and further ones are dropped.

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    runtime::Tokio,
    trace::{
        BatchConfigBuilder, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider,
        ShouldSample, Span, SpanData, SpanExporter, SpanProcessor,
        span_processor_with_async_runtime::BatchSpanProcessor,
    },
};
use tokio::sync::Semaphore;

use super::collector::{
    Client, CollectorError, Connection, EXPORT_TIMEOUT, Exports, HttpTransport,
    LAST_EXPORT_TIMEOUT, describe,
};
use crate::instruments::traces::{DroppedSpans, SAMPLED};

/// The most spans that wait for the collector, with those that are being exported.
const MOST_WAITING: usize = 4096;
/// The messages to the batch processor besides spans: the resource, and the end.
const OTHER_MESSAGES: usize = 2;
/// The time between two exports.
const INTERVAL: Duration = Duration::from_secs(1);

/// The traces of this process.
#[derive(Debug)]
pub struct TraceExport(SdkTracerProvider);

impl TraceExport {
    /// Begins to export to a collector. Spans that do not reach it are counted in `dropped`.
    pub fn start(
        connection: &Connection,
        dropped: Arc<DroppedSpans>,
    ) -> Result<Self, CollectorError> {
        let exporter =
            exporter(connection).map_err(|error| CollectorError::Endpoint(describe(&error)))?;
        Ok(Self::by(exporter, connection, dropped))
    }

    fn by(
        exporter: impl SpanExporter + 'static,
        connection: &Connection,
        dropped: Arc<DroppedSpans>,
    ) -> Self {
        let room = Arc::new(Semaphore::new(MOST_WAITING));
        let exporter = ObservedExporter {
            exporter,
            exports: Exports::new("traces", connection),
            connection: connection.clone(),
            room: room.clone(),
            dropped: dropped.clone(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING + OTHER_MESSAGES)
            .with_scheduled_delay(INTERVAL)
            // The exporter itself ends an export that takes too long, and counts its spans.
            .with_max_export_timeout(EXPORT_TIMEOUT * 2)
            .build();
        let batches =
            BatchSpanProcessor::builder(exporter, Tokio).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(FollowDecision)
            .with_span_processor(BoundedProcessor { batches, room, dropped })
            .with_resource(connection.resource.clone())
            .build();
        Self(provider)
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

fn exporter(
    connection: &Connection,
) -> Result<opentelemetry_otlp::SpanExporter, ExporterBuildError> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    match &connection.client {
        Client::Grpc(channel) => {
            builder.with_tonic().with_channel(channel.clone()).with_timeout(EXPORT_TIMEOUT).build()
        }
        Client::Http(client) => builder
            .with_http()
            .with_http_client(HttpTransport::clone(client))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(connection.url("traces"))
            .with_timeout(EXPORT_TIMEOUT)
            .build(),
    }
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

/// Hands spans to the batch processor as long as there is room for them. That processor has a
/// bounded queue too, but does not say which spans it drops.
#[derive(Debug)]
struct BoundedProcessor {
    batches: BatchSpanProcessor<Tokio>,
    /// A permit for each span that may wait.
    room: Arc<Semaphore>,
    dropped: Arc<DroppedSpans>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.room.try_acquire() {
            Ok(permit) => {
                // The exporter gives it back.
                permit.forget();
                self.batches.on_end(span);
            }
            Err(_) => drop(self.dropped.queue_full.inc()),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exports spans, logs when that begins to fail, and counts the spans that are lost then.
#[derive(Debug)]
struct ObservedExporter<E> {
    exporter: E,
    exports: Exports,
    connection: Connection,
    room: Arc<Semaphore>,
    dropped: Arc<DroppedSpans>,
}

impl<E: SpanExporter> SpanExporter for ObservedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let export = self.exporter.export(batch);
        let export = async { export.await.map_err(|error| self.connection.explain(&error)) };
        let succeeded = self.exports.perform(export).await;
        if !succeeded {
            self.dropped.export_failed.inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
        }
        self.room.add_permits(spans);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::Tracer;

    use super::*;
    use crate::config::otlp::{Collector, OtlpProtocol};

    /// A collector that never answers.
    #[derive(Debug)]
    struct Silent;

    impl SpanExporter for Silent {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_span_that_does_not_reach_the_collector_is_counted_once_by_its_reason() {
        let collector = Collector {
            endpoint: "http://127.0.0.1:1".to_owned(),
            protocol: OtlpProtocol::Grpc,
            tls: None,
            sample_ratio: 1.0,
            metrics_interval: None,
        };
        let connection = Connection::new(&collector, "r").unwrap();
        let dropped = Arc::<DroppedSpans>::default();
        let export = TraceExport::by(Silent, &connection, dropped.clone());
        let tracer = export.tracer();
        let end_spans = |number: usize| {
            for _ in 0..number {
                let attributes = [KeyValue::new(SAMPLED, true)];
                drop(tracer.span_builder("call").with_attributes(attributes).start(&tracer));
                drop(tracer.start("a call that is not sampled"));
            }
        };
        let counts = || (dropped.queue_full.get(), dropped.export_failed.get());
        let most = u64::try_from(MOST_WAITING).unwrap();

        end_spans(MOST_WAITING + 100);
        assert_eq!(counts(), (100, 0));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(counts(), (100, most));
        end_spans(MOST_WAITING);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(counts(), (100, 2 * most), "there is room again");
        export.end().await;
    }
}
