//! The settings of a client.

use std::{fmt, sync::Arc, time::Duration};

use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    client::{Client, Settings},
    endpoints::Endpoints,
};

/// The longest deadline. Metadata of gRPC cannot express an unlimited one.
const LONGEST_DEADLINE: Duration = Duration::from_secs(86_400);

/// The client cannot be built from the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no endpoint.
    #[error("no endpoint is given: name at least one, such as http://127.0.0.1:50051")]
    NoEndpoint,
    /// An endpoint is not a URL.
    #[error("{endpoint:?} is not the URL of an endpoint, such as https://sessions.example:50051")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
    },
    /// A certificate or a private key cannot be used.
    #[error("the certificates cannot be used: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// A text that was given as certificates of authorities has none.
    #[error("the certificates of authorities hold no certificate in PEM (BEGIN CERTIFICATE)")]
    NoCertificate,
    /// Certificates are set, and an endpoint is not encrypted.
    #[error("{endpoint} is not encrypted, so the certificates would not be used: use https://")]
    NotEncrypted {
        /// The endpoint.
        endpoint: String,
    },
    /// The API key cannot be sent.
    #[error("the API key has characters that cannot be sent")]
    ApiKey,
    /// There is no runtime.
    #[error("a client must be built within a Tokio runtime, which its connections use")]
    NoRuntime,
}

/// The settings of a [`Client`]. `Debug` does not print the API key.
#[derive(Clone)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    api_key: Option<String>,
    ca_certificates: Vec<Certificate>,
    identity: Option<Identity>,
    server_name: Option<String>,
    connect_timeout: Duration,
    settings: Settings,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    pub(crate) fn new(endpoint: String) -> Self {
        Self {
            endpoints: vec![endpoint],
            api_key: None,
            ca_certificates: vec![],
            identity: None,
            server_name: None,
            connect_timeout: Duration::from_millis(500),
            settings: Settings::default(),
        }
    }

    /// Adds another replica. Calls go to the replicas in turn, and a call that one of them cannot
    /// answer is repeated at another.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Sends this API key with each call. The key is a secret, so the endpoints should begin with
    /// `https://`.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Trusts only certificates of these authorities, in PEM. Otherwise those that the machine
    /// trusts are trusted.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca_certificates.push(Certificate::from_pem(pem));
        self
    }

    /// Identifies as a caller by this client certificate and its private key, in PEM.
    #[must_use]
    pub fn client_certificate(mut self, pem: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(pem, key));
        self
    }

    /// Expects this name in the certificate of the service, instead of the host of the endpoint.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets the longest time that a call may take, with its repetitions: 1 s by default, and at
    /// most a day.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline.min(LONGEST_DEADLINE);
        self
    }

    /// Sets the longest time for calls whose purpose is a revocation: Revoke, RevokeKey,
    /// Reauthenticate and UpdateSession. It is 5 s by default, because such a call waits for a
    /// replica or a watcher that has died, for up to 2.3 s.
    #[must_use]
    pub fn revocation_deadline(mut self, deadline: Duration) -> Self {
        self.settings.revocation_deadline = deadline.min(LONGEST_DEADLINE);
        self
    }

    /// Sets the longest time that it may take to connect to a replica, before another one is tried:
    /// 500 ms by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Builds the client. It connects when it is first used. Call this within a Tokio runtime.
    pub fn build(self) -> Result<Client, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let endpoints =
            self.endpoints.iter().map(|url| self.connection(url)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(BuildError::NoEndpoint);
        }
        // Without this check, no connection would be trusted, for no visible reason.
        if !self.ca_certificates.iter().all(has_certificate) {
            return Err(BuildError::NoCertificate);
        }
        let authorization = self.api_key.as_deref().map(authorization).transpose()?;
        Ok(Client::new(Arc::new(Endpoints::new(endpoints)), authorization, self.settings))
    }

    fn connection(&self, url: &str) -> Result<Endpoint, BuildError> {
        let wrong = || BuildError::Endpoint { endpoint: url.to_owned() };
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| wrong())?;
        let uri = endpoint.uri().clone();
        let is_encrypted = match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) => true,
            (Some("http"), Some(_)) => false,
            _ => return Err(wrong()),
        };
        let has_certificates = self.identity.is_some() || !self.ca_certificates.is_empty();
        if has_certificates && !is_encrypted {
            return Err(BuildError::NotEncrypted { endpoint: url.to_owned() });
        }
        if self.api_key.is_some() && !is_encrypted && !is_local(uri.host().unwrap_or_default()) {
            tracing::warn!(endpoint = url, "the API key is sent without encryption: use https://");
        }
        let endpoint = endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            // The service answers pings at any rate. A connection that has died unnoticed is
            // replaced within 15 s.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        match is_encrypted {
            true => endpoint.tls_config(self.tls()).map_err(BuildError::Tls),
            false => Ok(endpoint),
        }
    }

    fn tls(&self) -> ClientTlsConfig {
        let mut tls = match self.ca_certificates.is_empty() {
            true => ClientTlsConfig::new().with_native_roots(),
            false => ClientTlsConfig::new().ca_certificates(self.ca_certificates.iter().cloned()),
        };
        if let Some(identity) = &self.identity {
            tls = tls.identity(identity.clone());
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        tls
    }
}

fn has_certificate(pem: &Certificate) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    pem.as_ref().windows(BEGIN.len()).any(|part| part == BEGIN)
}

fn is_local(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

fn authorization(key: &str) -> Result<MetadataValue<Ascii>, BuildError> {
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {key}").parse().map_err(|_| BuildError::ApiKey)?;
    // `Debug` does not print a sensitive value.
    value.set_sensitive(true);
    Ok(value)
}
