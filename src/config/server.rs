//! `listen`, `http_listen`, `insecure` and `[shutdown]`: the addresses of the ports, and the time
//! limits of a shutdown.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The default address of the gRPC port.
pub const GRPC_ADDRESS: &str = "127.0.0.1:50051";
/// The default address of the HTTP port.
pub const HTTP_ADDRESS: &str = "127.0.0.1:8080";

/// The address of a port that is protected, or whose risk the operator accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
}

/// The protection of the ports against clients on other machines.
#[derive(Clone, Copy, Debug)]
pub struct Protection {
    /// True if connections are encrypted.
    pub tls: bool,
    /// True if callers must be known.
    pub callers: bool,
    /// True if the operator accepts the risk of a port without TLS, or without known callers.
    pub insecure: bool,
}

impl Listen {
    /// Checks the address of the gRPC port.
    pub fn grpc(address: &str, protection: Protection) -> Result<Self, ConfigError> {
        Self::check("listen", GRPC_ADDRESS, address, protection)
    }

    /// Checks the address of the HTTP port; `None` if it is empty.
    pub fn http(address: &str, protection: Protection) -> Result<Option<Self>, ConfigError> {
        match address {
            "" => Ok(None),
            address => Self::check("http_listen", HTTP_ADDRESS, address, protection).map(Some),
        }
    }

    /// Refuses an address that other machines can reach without TLS and known callers, unless the
    /// operator accepts the risk.
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
                     proxy that terminates TLS and authenticates callers)"
                ),
            ));
        }
        Ok(Self { address })
    }
}

/// The section `[shutdown]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// The time after the signal in which health checks answer NOT_SERVING while calls are still
    /// accepted, so that load balancers stop sending calls.
    #[serde(with = "super::span")]
    pub grace: Duration,
    /// The time after `grace` in which calls in flight may finish.
    #[serde(with = "super::span")]
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(2), drain: Duration::from_secs(20) }
    }
}
