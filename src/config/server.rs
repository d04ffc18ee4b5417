//! `listen`, `http_listen`, `insecure` and `[shutdown]`: where the service listens, and how it stops.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// Where gRPC listens by default.
pub const GRPC_ADDRESS: &str = "127.0.0.1:50051";
/// Where HTTP does.
pub const HTTP_ADDRESS: &str = "127.0.0.1:8080";

/// Where one side of the service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
}

impl Listen {
    /// The address for gRPC.
    pub fn grpc(address: &str, insecure: bool) -> Result<Self, ConfigError> {
        Self::check("listen", GRPC_ADDRESS, address, insecure)
    }

    /// The address for HTTP; none if it is empty.
    pub fn http(address: &str, insecure: bool) -> Result<Option<Self>, ConfigError> {
        match address {
            "" => Ok(None),
            address => Self::check("http_listen", HTTP_ADDRESS, address, insecure).map(Some),
        }
    }

    /// Refuses an address that others can reach, unless `insecure` accepts the risk.
    fn check(setting: &str, example: &str, listen: &str, insecure: bool) -> Result<Self, ConfigError> {
        let address: SocketAddr = listen
            .parse()
            .map_err(|_| invalid(setting, format!("{listen:?} must be an address and a port like {example}")))?;
        if !address.ip().is_loopback() && !insecure {
            return Err(invalid(
                setting,
                format!(
                    "{address} can be reached from other machines, and this version knows no callers and no TLS: listen \
                     on 127.0.0.1, or accept the risk with --insecure (for instance behind a proxy that does both)"
                ),
            ));
        }
        Ok(Self { address })
    }
}

/// How the service stops.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// After the signal, this long health says NOT_SERVING while calls are still taken, so that load balancers turn away.
    #[serde(with = "super::span")]
    pub grace: Duration,
    /// After that, calls in flight get this long to finish.
    #[serde(with = "super::span")]
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(2), drain: Duration::from_secs(20) }
    }
}
