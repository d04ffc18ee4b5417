//! The commands, as they are read.

use std::{path::PathBuf, time::Duration};

use countersign_client::Demands;
use serde::Deserialize;

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// Replaces the client.
    Connect(Connect),
    /// Replaces the verifier.
    Verifier(VerifierSettings),
    /// Waits for the verifier.
    Ready {
        /// The longest time, in milliseconds.
        within_ms: u64,
    },
    /// Checks a token.
    Verify {
        /// The token.
        token: String,
        /// The demands.
        #[serde(default)]
        demands: DemandsOfRoute,
    },
    /// Sends a request to an application that the middleware protects.
    Guard(GuardedRequest),
    /// Creates a session.
    Create(NewSession),
    /// Exchanges a refresh token.
    Refresh {
        /// The refresh token.
        refresh_token: String,
    },
    /// Revokes the session of a token.
    Revoke {
        /// The token.
        token: String,
    },
    /// Asks the service about a token.
    Validate {
        /// The token.
        token: String,
    },
    /// Moves the clocks of the verifiers.
    Clock {
        /// By how many milliseconds the wall clock moves.
        #[serde(default)]
        wall_ms: i64,
        /// By how many milliseconds the uptime moves.
        #[serde(default)]
        uptime_ms: i64,
    },
    /// Starts an application in the background.
    Load {
        /// The subject of its sessions.
        subject: String,
    },
    /// Ends the application.
    LoadEnd {},
}

/// The settings of a client.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Connect {
    pub endpoints: Vec<String>,
    pub api_key: Option<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub server_name: Option<String>,
    pub deadline_ms: Option<u64>,
    pub revocation_deadline_ms: Option<u64>,
    pub connect_timeout_ms: Option<u64>,
}

/// The settings of a verifier.
#[derive(Debug, Deserialize)]
pub struct VerifierSettings {
    pub mode: String,
    #[serde(default)]
    pub refuse: bool,
    #[serde(default)]
    pub issuer: String,
}

/// A request to the application.
#[derive(Debug, Deserialize)]
pub struct GuardedRequest {
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub demands: DemandsOfRoute,
    pub cookie: Option<String>,
    pub realm: Option<String>,
}

/// A session to be created.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NewSession {
    pub subject: String,
    pub scopes: Vec<String>,
    pub tenant: String,
    pub audience: Vec<String>,
}

/// Demands as the vectors have them, with times in seconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DemandsOfRoute {
    audience: String,
    scopes: Vec<String>,
    acr_values: Vec<String>,
    max_authentication_age: Option<u64>,
    factors: Vec<Factor>,
}

#[derive(Debug, Deserialize)]
struct Factor {
    method: String,
    max_age: Option<u64>,
}

impl From<DemandsOfRoute> for Demands {
    fn from(read: DemandsOfRoute) -> Self {
        let mut demands = Self::new().audience(read.audience).acr_values(read.acr_values);
        for scope in read.scopes {
            demands = demands.scope(scope);
        }
        if let Some(age) = read.max_authentication_age {
            demands = demands.max_authentication_age(Duration::from_secs(age));
        }
        for factor in read.factors {
            demands = match factor.max_age {
                Some(age) => demands.recent_factor(factor.method, Duration::from_secs(age)),
                None => demands.factor(factor.method),
            };
        }
        demands
    }
}
