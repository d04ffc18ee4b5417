//! `[otlp]`: the export of traces and metrics by OTLP.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpSection {
    /// The URL of the collector; empty for no export.
    pub endpoint: String,
    /// The protocol.
    #[serde(deserialize_with = "super::section::read_choice")]
    pub protocol: OtlpProtocol,
    /// The certificate authorities that may have issued the collector's certificate, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The share of calls that begin a trace, if their client does not say whether to.
    pub sample_ratio: f64,
    /// The time between two exports of metrics; zero if metrics are not exported.
    #[serde(with = "super::span")]
    pub metrics_interval: Duration,
}

/// The protocol by which a collector is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtlpProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, in binary form.
    Http,
}

/// A collector, and what it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector {
    /// The URL.
    pub endpoint: String,
    /// The protocol.
    pub protocol: OtlpProtocol,
    /// The verification of the collector's certificate; `None` if connections are not encrypted.
    pub tls: Option<CollectorTls>,
    /// The share of calls that begin a trace, if their client does not say whether to.
    pub sample_ratio: f64,
    /// The time between two exports of metrics; `None` if metrics are not exported.
    pub metrics_interval: Option<Duration>,
}

/// The verification of the collector's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorTls {
    /// The file with the certificate authorities; `None` for those that the system trusts.
    pub ca_file: Option<PathBuf>,
}

impl Default for OtlpSection {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: OtlpProtocol::Grpc,
            ca_file: None,
            sample_ratio: 0.01,
            metrics_interval: Duration::ZERO,
        }
    }
}

/// The shortest time between two exports of metrics.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two exports. Whoever sets a longer one probably means to turn the
/// export off, which `0s` does.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

impl OtlpSection {
    /// Checks the section. Returns `None` if nothing is to be exported.
    pub fn check(&self) -> Result<Option<Collector>, ConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let problem = format!("{} is not from 0 to 1", self.sample_ratio);
            return Err(invalid("otlp.sample_ratio", problem));
        }
        let interval = Some(self.metrics_interval).filter(|interval| !interval.is_zero());
        if interval.is_some_and(|span| !(SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&span)) {
            let problem = "must be from 1s to 1h, or 0s for no export of metrics";
            return Err(invalid("otlp.metrics_interval", problem));
        }
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        Ok(Some(Collector {
            endpoint: self.endpoint.clone(),
            protocol: self.protocol,
            tls: self.check_endpoint()?,
            sample_ratio: self.sample_ratio,
            metrics_interval: interval,
        }))
    }

    /// Checks the URL. Returns how the collector's certificate is verified, if it has one.
    fn check_endpoint(&self) -> Result<Option<CollectorTls>, ConfigError> {
        let refused =
            |problem: &str| Err(invalid("otlp.endpoint", format!("{:?} {problem}", self.endpoint)));
        let uri: http::Uri = match self.endpoint.parse() {
            Ok(uri) => uri,
            Err(_) => return refused("is not a URL, such as http://127.0.0.1:4317"),
        };
        let ca_file = self.ca_file.as_deref().filter(|path| *path != Path::new(""));
        let tls = match (uri.scheme_str(), ca_file) {
            (Some("https"), ca_file) => Some(CollectorTls { ca_file: ca_file.map(Path::to_owned) }),
            (Some("http"), None) => None,
            (Some("http"), Some(_)) => {
                let problem = "needs an otlp.endpoint that begins with https://";
                return Err(invalid("otlp.ca_file", problem));
            }
            _ => return refused("must begin with http:// or https://"),
        };
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return refused("must name a host, and no user or password");
        }
        Ok(tls)
    }
}
