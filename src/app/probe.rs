//! Asks a port of the service as a client without credentials does.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::config::Config;

/// The longest time for a connection, and then for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const MOST_BYTES: usize = 4 << 20;

/// A port had no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("nothing listens there")]
    Closed,
    /// The server has another certificate than the one in the file.
    #[error("it has another certificate")]
    OtherCertificate,
    /// The port is open, but the answer is not one of this service.
    #[error("{0}")]
    Failed(String),
}

impl ProbeError {
    fn failed(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        let root = causes.last().unwrap_or(error);
        Self::Failed(root.to_string().chars().take(200).collect())
    }
}

/// A plain or an encrypted connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A port of the service.
pub struct Probe {
    /// The address.
    pub address: SocketAddr,
    /// True if the connection is encrypted.
    pub is_encrypted: bool,
    /// The certificate that the server should have, if it is known.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Probe {
    /// Opens a connection for this protocol (ALPN, RFC 7301).
    pub async fn open(&self, protocol: &[u8]) -> Result<Box<dyn Stream>, ProbeError> {
        in_time(async {
            let connected = TcpStream::connect(self.address).await;
            let stream = connected.map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => ProbeError::Closed,
                // A connection to port 0 fails in several ways.
                _ if self.address.port() == 0 => ProbeError::Closed,
                _ => ProbeError::failed(&error),
            })?;
            match self.is_encrypted {
                true => self.encrypt(stream, protocol).await,
                false => Ok(Box::new(stream) as Box<dyn Stream>),
            }
        })
        .await
    }

    async fn encrypt(
        &self,
        stream: TcpStream,
        protocol: &[u8],
    ) -> Result<Box<dyn Stream>, ProbeError> {
        let config = tls(protocol).map_err(|error| ProbeError::failed(&error))?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|error| ProbeError::failed(&error))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        match (&self.certificate, shown) {
            (Some(expected), Some(shown)) if expected != shown => Err(ProbeError::OtherCertificate),
            _ => Ok(Box::new(stream)),
        }
    }

    /// Asks the gRPC health service about the server as a whole.
    pub async fn health(&self) -> Result<ServingStatus, ProbeError> {
        let mut stream = Some(TokioIo::new(self.open(b"h2").await?));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async { stream.ok_or_else(|| io::Error::other("the connection was closed")) }
        });
        // The stream is open already, so the URL is only the name of the server in the call.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        let endpoint = endpoint.map_err(|error| ProbeError::failed(&error))?.timeout(LIMIT);
        let channel: Result<Channel, _> =
            in_time(async { Ok(endpoint.connect_with_connector(connector).await) }).await?;
        let mut client = HealthClient::new(channel.map_err(|error| ProbeError::failed(&error))?);
        let request = HealthCheckRequest { service: String::new() };
        let answer = in_time(async { Ok(client.check(request).await) }).await?;
        let answer = answer.map_err(|status| match status.code() {
            tonic::Code::Unknown | tonic::Code::Unavailable => ProbeError::failed(&status),
            code => ProbeError::Failed(format!("health check: {code:?}")),
        })?;
        Ok(answer.into_inner().status())
    }

    /// Requests a path over HTTP/1.1. Returns the status and the body.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, String), ProbeError> {
        let stream = TokioIo::new(self.open(b"http/1.1").await?);
        in_time(async {
            let (mut sender, connection) =
                http1::handshake(stream).await.map_err(|error| ProbeError::failed(&error))?;
            let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
            let request = Request::get(path)
                .header(http::header::HOST, self.address.to_string())
                .header(http::header::CONNECTION, "close")
                .body(axum::body::Body::empty())
                .map_err(|error| ProbeError::failed(&error))?;
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|error| ProbeError::failed(&error))?;
            let status = answer.status();
            let body = axum::body::Body::new(answer.into_body());
            let body = axum::body::to_bytes(body, MOST_BYTES).await;
            let body = body.map_err(|error| ProbeError::failed(&error))?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        })
        .await
    }
}

/// Returns the address by which this machine reaches a port. A port that is open on all addresses
/// is reached on loopback.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Returns the metrics of the service that runs with this configuration, as it publishes them.
pub async fn scrape(config: &Config) -> Result<String, ProbeError> {
    let Some(listen) = config.http_listen else {
        let problem = "http_listen is empty, so there are no metrics: set it";
        return Err(ProbeError::Failed(problem.to_owned()));
    };
    let probe = Probe {
        address: reachable(listen.address),
        is_encrypted: config.tls.as_ref().is_some_and(|tls| tls.http),
        certificate: None,
    };
    match probe.get("/metrics").await? {
        (StatusCode::OK, page) => Ok(page),
        (status, _) => Err(ProbeError::Failed(format!("/metrics answers {status}"))),
    }
}

/// Waits for a step of a probe, but not longer than [`LIMIT`].
async fn in_time<T>(step: impl Future<Output = Result<T, ProbeError>>) -> Result<T, ProbeError> {
    timeout(LIMIT, step).await.unwrap_or_else(|_| {
        Err(ProbeError::Failed(format!("no answer within {} s", LIMIT.as_secs())))
    })
}

fn tls(protocol: &[u8]) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider);
    let mut config = builder
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

/// Accepts every certificate whose key the server has. This command sends no secret, and compares
/// the certificate with the file afterwards; whether clients trust its authority does not matter
/// here.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
