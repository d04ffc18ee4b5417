//! `listen`, `insecure` and `[shutdown]`: where the service listens, and how it stops.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// Where gRPC listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
}

impl Listen {
    /// Refuses an address that others can reach, unless `insecure` accepts the risk.
    pub fn check(listen: &str, insecure: bool) -> Result<Self, ConfigError> {
        let address: SocketAddr = listen
            .parse()
            .map_err(|_| invalid("listen", format!("{listen:?} must be an address and a port like 127.0.0.1:50051")))?;
        if !address.ip().is_loopback() && !insecure {
            return Err(invalid(
                "listen",
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
