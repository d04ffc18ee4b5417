//! What the verbs that talk to a server share: the connection, and errors as one line.

use std::time::Duration;

use clap::Args;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use super::Failure;
use crate::proto::{key_service_client::KeyServiceClient, session_service_client::SessionServiceClient};

/// How long to wait for a connection, and then for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of the verbs that talk to a server.
#[derive(Debug, Args)]
pub struct Server {
    /// The server to talk to.
    #[arg(long, value_name = "URL", env = "COUNTERSIGN_SERVER", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl Server {
    /// Connects to the server.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(self.server.clone()).ok();
        let endpoint = endpoint.filter(|endpoint| endpoint.uri().scheme().is_some()).ok_or_else(|| {
            Failure::at_start(format!("--server {:?} is not a URL like http://127.0.0.1:50051", self.server))
        })?;
        endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Failure::failed(format!("cannot reach {} ({cause}): is `countersign serve` running there?", self.server))
        })
    }

    /// Connects to the server's sessions.
    pub async fn sessions(&self) -> Result<SessionServiceClient<Channel>, Failure> {
        Ok(SessionServiceClient::new(self.connect().await?))
    }

    /// Connects to the server's keys.
    pub async fn keys(&self) -> Result<KeyServiceClient<Channel>, Failure> {
        Ok(KeyServiceClient::new(self.connect().await?))
    }
}

/// A call was answered with an error.
pub fn refused(status: Status) -> Failure {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let reason = reason.unwrap_or_else(|| format!("{:?}", status.code()));
    Failure::failed(format!("{} ({reason})", status.message()))
}
