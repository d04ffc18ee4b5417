//! `[traces]`: the export of traces by OTLP.

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesSection {
    /// The URL of the collector; empty for no traces.
    pub endpoint: String,
    /// The protocol.
    #[serde(deserialize_with = "super::section::read_choice")]
    pub protocol: TraceProtocol,
    /// The share of calls that begin a trace, if their client does not say whether to.
    pub sample_ratio: f64,
}

/// The protocol by which traces are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, in binary form.
    Http,
}

/// A collector, and the calls whose traces it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Collector {
    /// The URL.
    pub endpoint: String,
    /// The protocol.
    pub protocol: TraceProtocol,
    /// The share of calls that begin a trace, if their client does not say whether to.
    pub sample_ratio: f64,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self { endpoint: String::new(), protocol: TraceProtocol::Grpc, sample_ratio: 0.01 }
    }
}

impl TracesSection {
    /// Checks the section. Returns none if there are to be no traces.
    pub fn check(&self) -> Result<Option<Collector>, ConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let problem = format!("{} is not from 0 to 1", self.sample_ratio);
            return Err(invalid("traces.sample_ratio", problem));
        }
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let refused = |problem: &str| {
            Err(invalid("traces.endpoint", format!("{:?} {problem}", self.endpoint)))
        };
        let uri: http::Uri = match self.endpoint.parse() {
            Ok(uri) => uri,
            Err(_) => return refused("is not a URL, such as http://127.0.0.1:4317"),
        };
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return refused(
                    "asks for TLS, which is not supported: use http:// and a collector on this \
                     machine or in this pod, which forwards the traces over TLS",
                );
            }
            _ => return refused("must begin with http://"),
        }
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return refused("must name a host, and no user or password");
        }
        Ok(Some(Collector {
            endpoint: self.endpoint.clone(),
            protocol: self.protocol,
            sample_ratio: self.sample_ratio,
        }))
    }
}
