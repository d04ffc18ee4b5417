//! `listen`, `http_listen`, `insecure` and `[shutdown]`: where the service listens, and how it
//! stops.

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

/// What protects a port.
#[derive(Clone, Copy, Debug)]
pub struct Protection {
    /// What is sent is encrypted.
    pub tls: bool,
    /// Callers must be known.
    pub callers: bool,
    /// Somebody has said that neither is needed.
    pub insecure: bool,
}

impl Listen {
    /// The address for gRPC.
    pub fn grpc(address: &str, protection: Protection) -> Result<Self, ConfigError> {
        Self::check("listen", GRPC_ADDRESS, address, protection)
    }

    /// The address for HTTP; none if it is empty.
    pub fn http(address: &str, protection: Protection) -> Result<Option<Self>, ConfigError> {
        match address {
            "" => Ok(None),
            address => Self::check("http_listen", HTTP_ADDRESS, address, protection).map(Some),
        }
    }

    /// Refuses an address that others can reach without what protects it, unless somebody accepts
    /// the risk.
    fn check(
        setting: &str,
        example: &str,
        listen: &str,
        protection: Protection,
    ) -> Result<Self, ConfigError> {
        let address: SocketAddr = listen.parse().map_err(|_| {
            invalid(setting, format!("{listen:?} must be an address and a port like {example}"))
        })?;
        let missing = match (protection.tls, protection.callers) {
            (true, true) => return Ok(Self { address }),
            (false, true) => "TLS (tls.certificate_file and tls.private_key_file)",
            (true, false) => "callers ([[callers]], as `countersign caller new` prints them)",
            (false, false) => {
                "TLS (tls.certificate_file and tls.private_key_file) and callers ([[callers]], as \
                 `countersign caller new` prints them)"
            }
        };
        if !address.ip().is_loopback() && !protection.insecure {
            return Err(invalid(
                setting,
                format!(
                    "{address} can be reached from other machines: configure {missing}, or listen \
                     on 127.0.0.1, or accept the risk with --insecure (for instance behind a \
                     proxy that does both)"
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
    /// After the signal, this long health says NOT_SERVING while calls are still taken, so that
    /// load balancers turn away.
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
