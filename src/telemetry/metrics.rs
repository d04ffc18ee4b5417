//! Exports the metrics to a collector by OTLP, in the background. Nothing is queued: an export that
//! fails is not repeated, and the next one sends the values that are current then.

use std::{error::Error, fmt, time::Duration};

use http::{Request, header::CONTENT_TYPE};
use opentelemetry_http::{Bytes, HttpClient, HttpError, ResponseExt};
use opentelemetry_proto::{
    tonic::{
        collector::metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_client::MetricsServiceClient,
        },
        common::v1::InstrumentationScope,
        metrics::v1::{Metric, ResourceMetrics, ScopeMetrics},
        resource,
    },
    transform::common::tonic::ResourceAttributesWithSchema,
};
use prost::Message;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::Status;

use super::collector::{Client, Connection, Exports, LAST_EXPORT_TIMEOUT, describe};

/// Reads the current values of all metrics.
pub trait ReadMetrics: Fn() -> Result<Vec<Metric>, fmt::Error> + Send + Sync + 'static {}
impl<F: Fn() -> Result<Vec<Metric>, fmt::Error> + Send + Sync + 'static> ReadMetrics for F {}

/// The export of metrics, which is not yet running.
#[derive(Clone, Debug)]
pub struct MetricExport {
    connection: Connection,
    interval: Duration,
}

/// The running export of metrics. It ends when this value is dropped.
#[must_use]
pub struct RunningExport {
    task: AbortOnDropHandle<()>,
    stop: CancellationToken,
}

impl RunningExport {
    /// Exports the last values, but does not wait long for the collector.
    pub async fn end(self) {
        self.stop.cancel();
        // Lost values are no reason to stop later.
        let _ = timeout(LAST_EXPORT_TIMEOUT, self.task).await;
    }
}

impl MetricExport {
    /// Exports to a collector at this interval.
    pub fn new(connection: Connection, interval: Duration) -> Self {
        Self { connection, interval }
    }

    /// Begins to export what `read` returns.
    pub fn start(self, read: impl ReadMetrics) -> RunningExport {
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(self.run(read, stop.clone())));
        RunningExport { task, stop }
    }

    async fn run(self, read: impl ReadMetrics, stop: CancellationToken) {
        let exports = Exports::new("metrics", &self.connection);
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let exporting = async {
            loop {
                ticks.tick().await;
                exports.perform(self.export(read())).await;
            }
        };
        tokio::select! {
            () = exporting => {}
            () = stop.cancelled() => {}
        }
        exports.perform(self.export(read())).await;
    }

    async fn export(&self, metrics: Result<Vec<Metric>, fmt::Error>) -> Result<(), String> {
        let request = self.request(metrics.map_err(|error| describe(&error))?);
        let answer = match &self.connection.client {
            Client::Grpc(channel) => {
                let mut client = MetricsServiceClient::new(channel.clone());
                let answer =
                    client.export(request).await.map_err(|status| describe_status(&status))?;
                answer.into_inner()
            }
            Client::Http(client) => {
                let url = self.connection.url("metrics");
                post(&**client, &url, &request).await.map_err(|error| describe(&*error))?
            }
        };
        match answer.partial_success {
            Some(partial) if partial.rejected_data_points > 0 => Err(format!(
                "it rejects {} values: {}",
                partial.rejected_data_points, partial.error_message
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn request(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let attributes = ResourceAttributesWithSchema::from(&self.connection.resource).attributes.0;
        let scope = InstrumentationScope { name: "countersign".to_owned(), ..Default::default() };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource::v1::Resource { attributes, ..Default::default() }),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }
    }
}

/// Returns why a call failed, in one line. The text of tonic would contain its types.
fn describe_status(status: &Status) -> String {
    let reason = status.source().map_or_else(|| status.message().to_owned(), describe);
    format!("{:?}: {reason}", status.code())
}

async fn post(
    client: &impl HttpClient,
    url: &str,
    request: &ExportMetricsServiceRequest,
) -> Result<ExportMetricsServiceResponse, HttpError> {
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(Bytes::from(request.encode_to_vec()))?;
    let answer = client.send_bytes(request).await?.error_for_status()?;
    // The status says that the values were accepted, whatever the body is.
    Ok(ExportMetricsServiceResponse::decode(answer.into_body()).unwrap_or_default())
}
