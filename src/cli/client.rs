//! What the verbs that talk to a server share: the connection, who they are to it, and errors as one line.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use super::Failure;
use crate::{
    app::private_file,
    proto::{key_service_client::KeyServiceClient, session_service_client::SessionServiceClient},
};

/// How long to wait for a connection, and then for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The environment variable with an API key, which would be seen by others as a flag.
const API_KEY_VARIABLE: &str = "COUNTERSIGN_API_KEY";

/// Flags of the verbs that talk to a server.
#[derive(Debug, Args)]
pub struct Server {
    /// The server to talk to; https:// if it has a certificate.
    #[arg(long, value_name = "URL", env = "COUNTERSIGN_SERVER", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// File with the API key to show; or the key itself in COUNTERSIGN_API_KEY.
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// File with the authorities by which to check the server's certificate, in PEM [default: those of this machine]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// File with the certificate to show, in PEM.
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CLIENT_CERTIFICATE_FILE", requires = "client_key_file")]
    client_certificate_file: Option<PathBuf>,
    /// File with its private key, in PEM.
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CLIENT_KEY_FILE", requires = "client_certificate_file")]
    client_key_file: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A connection that shows with each call who calls.
pub type Connection = InterceptedService<Channel, ShowKey>;

/// Shows an API key with each call.
#[derive(Clone)]
pub struct ShowKey(Option<MetadataValue<Ascii>>);

impl Interceptor for ShowKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

impl Server {
    /// Connects to the server.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let endpoint = Endpoint::from_shared(self.server.clone()).ok();
        let endpoint = endpoint.filter(|endpoint| endpoint.uri().scheme().is_some()).ok_or_else(|| {
            Failure::at_start(format!("--server {:?} is not a URL like http://127.0.0.1:50051", self.server))
        })?;
        let show_key = ShowKey(self.authorization()?);
        let endpoint = match endpoint.uri().scheme_str() {
            Some("https") => endpoint.tls_config(self.tls()?).map_err(|error| Failure::at_start(told(&error)))?,
            _ => endpoint,
        };
        let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await.map_err(|error| {
            Failure::failed(format!(
                "cannot reach {} ({}): is `countersign serve` running there?",
                self.server,
                told(&error)
            ))
        })?;
        Ok(InterceptedService::new(channel, show_key))
    }

    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let key = match &self.api_key_file {
            Some(path) => Some(read_secret(path).map(Zeroizing::new)?),
            None => std::env::var(API_KEY_VARIABLE).ok().map(Zeroizing::new),
        };
        let Some(key) = key.filter(|key| !key.trim().is_empty()) else { return Ok(None) };
        let header = Zeroizing::new(format!("Bearer {}", key.trim()));
        let mut value = MetadataValue::try_from(header.as_str())
            .map_err(|_| Failure::at_start("the API key holds characters that no key has"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn tls(&self) -> Result<ClientTlsConfig, Failure> {
        let mut tls = match &self.ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.client_certificate_file, &self.client_key_file) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read_secret(key)?));
        }
        Ok(tls)
    }

    /// Connects to the server's sessions.
    pub async fn sessions(&self) -> Result<SessionServiceClient<Connection>, Failure> {
        Ok(SessionServiceClient::new(self.connect().await?))
    }

    /// Connects to the server's keys.
    pub async fn keys(&self) -> Result<KeyServiceClient<Connection>, Failure> {
        Ok(KeyServiceClient::new(self.connect().await?))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::at_start(format!("{}: {error}", path.display())))
}

/// The same of a file with a secret. That others can read it is no reason to do nothing, but to be
/// told.
fn read_secret(path: &Path) -> Result<String, Failure> {
    if let Some(exposure) = private_file::exposure(path) {
        eprintln!("countersign: warning: {0} {exposure}: run `chmod 600 {0}`", path.display());
    }
    read(path)
}

/// What lies behind an error of the transport, which says nothing by itself.
fn told(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).last().unwrap_or(error).to_string()
}

/// A call was answered with an error.
pub fn refused(status: Status) -> Failure {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let reason = reason.unwrap_or_else(|| format!("{:?}", status.code()));
    Failure::failed(format!("{} ({reason})", status.message()))
}
