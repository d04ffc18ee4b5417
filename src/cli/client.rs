//! The parts that are common to all subcommands that call a server: the connection, the
//! credentials, and errors in one line.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use super::{
    Failure,
    connection::{Address, Observations, TlsFiles, root_cause},
    warn,
};
use crate::{
    app::private_file,
    domain::file_access::secret_hint,
    proto::{
        audit_service_client::AuditServiceClient, key_service_client::KeyServiceClient,
        session_service_client::SessionServiceClient,
    },
};

/// The longest time to wait for a connection, and then for a response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The environment variable with an API key. There is no flag for the key itself, because other
/// users of the machine can see the flags of a process.
const API_KEY_VARIABLE: &str = "COUNTERSIGN_API_KEY";

/// The flags of the subcommands that call a server.
#[derive(Debug, Args)]
pub struct Server {
    /// URL of the server to call. It begins with https:// if the server has a certificate.
    #[arg(
        long,
        value_name = "URL",
        env = "COUNTERSIGN_SERVER",
        default_value = "http://127.0.0.1:50051"
    )]
    pub server: String,
    /// File with the API key to send. The variable COUNTERSIGN_API_KEY may hold the key itself
    /// instead.
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// File with the certificate authorities that may have issued the server's certificate, in PEM
    /// [default: the authorities that this machine trusts]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// File with the client certificate, in PEM.
    #[arg(
        long,
        value_name = "FILE",
        env = "COUNTERSIGN_CLIENT_CERTIFICATE_FILE",
        requires = "client_key_file"
    )]
    client_certificate_file: Option<PathBuf>,
    /// File with the private key of the client certificate, in PEM.
    #[arg(
        long,
        value_name = "FILE",
        env = "COUNTERSIGN_CLIENT_KEY_FILE",
        requires = "client_certificate_file"
    )]
    client_key_file: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// The record of the connection, by which failures are explained.
    #[arg(skip)]
    observations: Observations,
}

/// A connection that sends the API key with each call.
pub type Connection = InterceptedService<Channel, AddApiKey>;

/// Adds the API key, if there is one, to each call.
#[derive(Clone)]
pub struct AddApiKey(Option<MetadataValue<Ascii>>);

impl Interceptor for AddApiKey {
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
        let address = self.address()?;
        let add_api_key = AddApiKey(self.authorization()?);
        let tls = if address.is_tls { Some(self.tls()?) } else { None };
        let stream = address.open(tls, &self.tls_files(), &self.observations, TIMEOUT).await;
        let mut stream = Some(stream.map_err(Failure::failed)?);
        // The stream is already open, and encrypted if need be, so tonic is given a placeholder for
        // the URL to connect to. The real URL is set as the origin of the calls.
        let endpoint = Endpoint::from_static("http://server").origin(address.url).timeout(TIMEOUT);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async { stream.ok_or_else(|| io::Error::other("the connection was closed")) }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| self.unreachable(&error))?;
        Ok(InterceptedService::new(channel, add_api_key))
    }

    fn address(&self) -> Result<Address, Failure> {
        Address::parse(&self.server).ok_or_else(|| {
            Failure::at_start(format!(
                "--server {:?} is not a URL like http://127.0.0.1:50051",
                self.server
            ))
        })
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failure {
        self.mistake().unwrap_or_else(|| {
            Failure::failed(format!("no answer from {}: {}", self.server, root_cause(error)))
        })
    }

    /// Explains why the connection does not work, if the mistake is a known one.
    fn mistake(&self) -> Option<Failure> {
        let address = Address::parse(&self.server)?;
        address.explain(&self.observations, &self.tls_files()).map(Failure::failed)
    }

    fn tls_files(&self) -> TlsFiles {
        let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        TlsFiles {
            ca: shown(&self.ca_file),
            client_certificate: shown(&self.client_certificate_file),
        }
    }

    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let (key, source) = match &self.api_key_file {
            Some(path) => {
                let key = Zeroizing::new(read_secret("--api-key-file", path)?);
                let source = format!("--api-key-file {}", path.display());
                if key.trim().is_empty() {
                    return Err(Failure::at_start(format!(
                        "{source} is empty: `countersign caller new` makes keys"
                    )));
                }
                (Some(key), source)
            }
            None => (
                std::env::var(API_KEY_VARIABLE).ok().map(Zeroizing::new),
                API_KEY_VARIABLE.to_owned(),
            ),
        };
        let Some(key) = key.filter(|key| !key.trim().is_empty()) else { return Ok(None) };
        let header = Zeroizing::new(format!("Bearer {}", key.trim()));
        let mut value = MetadataValue::try_from(header.as_str()).map_err(|_| {
            Failure::at_start(format!("{source} holds characters that no API key has"))
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn tls(&self) -> Result<ClientConfig, Failure> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(Failure::failed)?;
        let builder = builder.with_root_certificates(self.authorities()?);
        let mut config = match (&self.client_certificate_file, &self.client_key_file) {
            (Some(certificate), Some(key)) => {
                // The key is read first, so that a warning about the rights on its file is printed
                // even if the certificate is invalid.
                let pem = Zeroizing::new(read_secret("--client-key-file", key)?);
                let chain = certificates("--client-certificate-file", certificate)?;
                let private_key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
                    Failure::at_start(format!(
                        "--client-key-file {} holds no private key in PEM",
                        key.display()
                    ))
                })?;
                builder.with_client_auth_cert(chain, private_key).map_err(|error| {
                    Failure::at_start(format!(
                        "--client-key-file {} does not belong to --client-certificate-file {} \
                         ({error}): name the two files of one pair",
                        key.display(),
                        certificate.display()
                    ))
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Returns the certificate authorities that may have issued the server's certificate.
    fn authorities(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Failure::at_start(
                    "this machine knows no certificate authorities: name a file by --ca-file",
                ));
            }
            return Ok(roots);
        };
        for certificate in certificates("--ca-file", path)? {
            roots.add(certificate).map_err(|error| {
                Failure::at_start(format!("--ca-file {}: {error}", path.display()))
            })?;
        }
        Ok(roots)
    }

    /// Connects to the server's SessionService.
    pub async fn sessions(&self) -> Result<SessionServiceClient<Connection>, Failure> {
        Ok(SessionServiceClient::new(self.connect().await?))
    }

    /// Connects to the server's AuditService.
    pub async fn audit(&self) -> Result<AuditServiceClient<Connection>, Failure> {
        Ok(AuditServiceClient::new(self.connect().await?))
    }

    /// Connects to the server's KeyService.
    pub async fn keys(&self) -> Result<KeyServiceClient<Connection>, Failure> {
        Ok(KeyServiceClient::new(self.connect().await?))
    }

    /// Returns the message of a response, or explains its error.
    pub fn answer<T>(&self, answered: Result<Response<T>, Status>) -> Result<T, Failure> {
        answered.map(Response::into_inner).map_err(|status| self.refused(&status))
    }

    /// Explains the error of a call, or why there was no response.
    fn refused(&self, status: &Status) -> Failure {
        let details = status.get_error_details();
        let Some(info) = details.error_info() else { return self.without_reason(status) };
        let message = match info.reason.as_str() {
            "CALLER_UNKNOWN" => self.unknown_caller(),
            _ => status.message().to_owned(),
        };
        let violation = details.bad_request().and_then(|request| request.field_violations.first());
        Failure {
            line: format!("{message} ({})", info.reason),
            reason: Some(info.reason.clone()),
            field: violation.map(|violation| violation.field.clone()),
            ..Failure::failed(message)
        }
    }

    fn without_reason(&self, status: &Status) -> Failure {
        if let Some(mistake) = self.mistake() {
            return mistake;
        }
        let is_of_transport = std::error::Error::source(status).is_some();
        match status.code() {
            Code::Cancelled | Code::DeadlineExceeded => {
                let seconds = TIMEOUT.as_secs();
                Failure::failed(format!(
                    "no answer from {} within {seconds} s: try again",
                    self.server
                ))
            }
            _ if is_of_transport => self.unreachable(status),
            code => Failure::failed(format!("{} ({code:?})", status.message())),
        }
    }

    /// Explains how to send credentials that the server knows.
    fn unknown_caller(&self) -> String {
        let has_variable = std::env::var(API_KEY_VARIABLE).is_ok_and(|key| !key.trim().is_empty());
        let problem = match (&self.api_key_file, &self.client_certificate_file) {
            (Some(path), _) => {
                format!("the API key in --api-key-file {} is not known there", path.display())
            }
            (None, _) if has_variable => {
                format!("the API key in {API_KEY_VARIABLE} is not known there")
            }
            (None, Some(path)) if self.server.starts_with("https:") => {
                format!(
                    "no caller is configured there by a name in --client-certificate-file {}",
                    path.display()
                )
            }
            _ => "no API key was sent".to_owned(),
        };
        let server = &self.server;
        format!(
            "{server} requires a known caller, and {problem}: set {API_KEY_VARIABLE} or \
             --api-key-file to a key of `countersign caller new` that is in its configuration"
        )
    }
}

fn read(option: &str, path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::at_start(format!("{option} {}: {error}", path.display())))
}

/// Reads a file with a secret. Prints a warning if other users have rights on the file.
fn read_secret(option: &str, path: &Path) -> Result<String, Failure> {
    if let Some(exposure) = private_file::exposure(path) {
        let command = exposure.command();
        warn(&format!("{option} {0} {exposure}: run `{command} {0}`", path.display()));
    }
    fs::read_to_string(path).map_err(|error| {
        Failure::at_start(format!("{option} {}: {error}{}", path.display(), secret_hint(&error)))
    })
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = read(option, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| {
        Failure::at_start(format!("{option} {} is not PEM: {error}", path.display()))
    })?;
    if found.is_empty() {
        return Err(Failure::at_start(format!(
            "{option} {} holds no certificate in PEM",
            path.display()
        )));
    }
    Ok(found)
}

/// Converts a span to a protobuf duration.
pub fn duration(span: Duration) -> Result<prost_types::Duration, Failure> {
    prost_types::Duration::try_from(span)
        .map_err(|error| Failure::at_start(format!("a time span is too long: {error}")))
}
