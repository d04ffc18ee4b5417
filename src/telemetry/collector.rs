//! The connection to the collector, which the exports of traces and metrics share.

use std::{
    error::Error,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use opentelemetry_sdk::Resource;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::{
    config::otlp::{Collector, CollectorTls, OtlpProtocol},
    net::tls::read_authorities,
};

/// The longest time that an export may take.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that the end of the process waits for a last export.
pub const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum length of a logged problem, in characters. The collector chooses some of the text.
const MAX_PROBLEM_CHARS: usize = 300;

/// The collector cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The file with the certificate authorities cannot be used.
    #[error("setting otlp.ca_file: {}: {problem}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// This system trusts no certificate authorities.
    #[error("this system knows no certificate authorities: name a file in otlp.ca_file")]
    NoAuthorities,
    /// There can be no client for the URL.
    #[error("setting otlp.endpoint: {0}")]
    Endpoint(String),
}

/// A client of the collector over HTTP. It keeps the reason for which the last request failed,
/// because the exporter of spans says only that there was a network error.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    failure: Arc<ArcSwapOption<String>>,
}

#[async_trait]
impl HttpClient for HttpTransport {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.send_bytes(request).await;
        let failure = answer.as_ref().err().map(|error| Arc::new(describe(&**error)));
        self.failure.store(failure);
        answer
    }
}

/// A client of the collector. It connects when it is used for the first time, and again whenever
/// the connection was lost.
#[derive(Clone, Debug)]
pub enum Client {
    /// A client for OTLP over gRPC.
    Grpc(Channel),
    /// A client for OTLP over HTTP.
    Http(Box<HttpTransport>),
}

/// The collector, and what it is told of this process.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The attributes that identify this process in all that it exports.
    pub resource: Resource,
    endpoint: Arc<str>,
}

impl Connection {
    /// Prepares the connection. `instance` is the name of this replica. This must run in a runtime.
    pub fn new(collector: &Collector, instance: &str) -> Result<Self, CollectorError> {
        let unusable = |error: &dyn Error| CollectorError::Endpoint(describe(error));
        let authorities = collector.tls.as_ref().map(authorities).transpose()?;
        let client = match collector.protocol {
            OtlpProtocol::Grpc => Client::Grpc(
                channel(&collector.endpoint, authorities).map_err(|error| unusable(&error))?,
            ),
            OtlpProtocol::Http => {
                Client::Http(http_transport(authorities).map_err(|error| unusable(&error))?.into())
            }
        };
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "countersign"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        Ok(Self { client, resource, endpoint: collector.endpoint.as_str().into() })
    }

    /// Returns the URL that takes a kind of data over HTTP.
    pub fn url(&self, kind: &str) -> String {
        format!("{}/v1/{kind}", self.endpoint.trim_end_matches('/'))
    }

    /// Adds the reason to the error of an exporter, if the exporter does not know it.
    pub fn explain(&self, error: &dyn Error) -> String {
        match &self.client {
            Client::Http(transport) => match &*transport.failure.load() {
                Some(reason) => format!("{error}: {reason}"),
                None => error.to_string(),
            },
            Client::Grpc(_) => error.to_string(),
        }
    }
}

/// Reads the certificate authorities that may have issued the collector's certificate.
pub fn authorities(tls: &CollectorTls) -> Result<RootCertStore, CollectorError> {
    let Some(path) = &tls.ca_file else {
        let mut trusted = RootCertStore::empty();
        trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if trusted.is_empty() { Err(CollectorError::NoAuthorities) } else { Ok(trusted) };
    };
    read_authorities(path).map_err(|problem| CollectorError::CaFile { path: path.clone(), problem })
}

fn channel(
    url: &str,
    authorities: Option<RootCertStore>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(EXPORT_TIMEOUT)
        .timeout(EXPORT_TIMEOUT);
    let endpoint = match authorities {
        Some(authorities) => endpoint.tls_config(
            ClientTlsConfig::new().trust_anchors(authorities.roots).timeout(EXPORT_TIMEOUT),
        )?,
        None => endpoint,
    };
    Ok(endpoint.connect_lazy())
}

fn http_transport(authorities: Option<RootCertStore>) -> Result<HttpTransport, rustls::Error> {
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities.unwrap_or_else(RootCertStore::empty))
        .with_no_client_auth();
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client = HyperClient::new(connector, EXPORT_TIMEOUT, None);
    Ok(HttpTransport { client, failure: Arc::default() })
}

/// Returns an error and its causes in one line.
pub fn describe(error: &dyn Error) -> String {
    let mut texts: Vec<String> = vec![];
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let text = error.to_string();
        // Some errors repeat the text of their cause.
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

/// The exports of one kind of data. They log when the collector can no longer be reached, and when
/// it can again.
#[derive(Debug)]
pub struct Exports {
    kind: &'static str,
    endpoint: Arc<str>,
    is_failing: AtomicBool,
}

impl Exports {
    /// Creates the exports of this kind of data.
    pub fn new(kind: &'static str, connection: &Connection) -> Self {
        let endpoint = connection.endpoint.clone();
        Self { kind, endpoint, is_failing: AtomicBool::new(false) }
    }

    /// Performs an export, but does not wait long for the collector. Returns whether the export
    /// succeeded.
    pub async fn perform<E: fmt::Display>(
        &self,
        export: impl Future<Output = Result<(), E>>,
    ) -> bool {
        let problem = match tokio::time::timeout(EXPORT_TIMEOUT, export).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string().chars().take(MAX_PROBLEM_CHARS).collect()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        let was_failing = self.is_failing.swap(problem.is_some(), Ordering::Relaxed);
        let Self { kind, endpoint, .. } = self;
        match &problem {
            Some(problem) if !was_failing => tracing::warn!(
                %endpoint,
                problem,
                "{kind} are dropped, because the collector cannot be reached"
            ),
            None if was_failing => tracing::info!(%endpoint, "{kind} are exported again"),
            Some(_) | None => {}
        }
        problem.is_none()
    }
}
