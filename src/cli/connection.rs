//! Opens the connection to a server. If a well-known mistake keeps the connection from working, the
//! error explains the mistake, and names the option or setting that corrects it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{AlertDescription, CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::ServiceExt;

/// The server that a command calls, as `--server` names it.
#[derive(Clone, Debug)]
pub struct Address {
    /// The URL that was given.
    pub url: Uri,
    /// The host name or address, without the brackets of IPv6.
    host: String,
    /// True if the connection is encrypted.
    pub is_tls: bool,
}

/// The paths of the files that the command uses for TLS, for error messages.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// `--ca-file`
    pub ca: Option<String>,
    /// `--client-certificate-file`
    pub client_certificate: Option<String>,
}

/// A record of the first bytes that a server sent, and of how the connection ended.
/// [`Address::explain`] recognizes mistakes by it.
#[derive(Clone, Debug, Default)]
pub struct Observations(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// The first bytes that the server has sent.
    first: Vec<u8>,
    /// The first TLS error.
    error: Option<rustls::Error>,
    /// True if the server has closed or reset the connection.
    is_closed: bool,
}

/// The number of bytes that are kept from the start of the stream. They are enough to recognize the
/// protocol.
const FIRST_BYTES: usize = 16;

impl Observations {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_bytes(&self, bytes: &[u8]) {
        let mut seen = self.lock();
        let free = FIRST_BYTES.saturating_sub(seen.first.len());
        seen.first.extend(bytes.iter().take(free));
    }

    fn record_end(&self, error: Option<&io::Error>) {
        let mut seen = self.lock();
        seen.is_closed = true;
        if seen.error.is_none() {
            seen.error = error.and_then(tls_error).cloned();
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A stream that records the server's first bytes, and how the connection ends.
#[derive(Debug)]
pub struct Observed<S> {
    stream: S,
    observations: Observations,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        match (&read, buffer.filled().get(before..).unwrap_or_default()) {
            (Err(error), _) => self.observations.record_end(Some(error)),
            (Ok(()), []) => self.observations.record_end(None),
            (Ok(()), bytes) => self.observations.record_bytes(bytes),
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Observed<S> {
    /// Reads once if a write failed. A server may have sent the reason before it closed the
    /// connection, and the failed write must not hide that reason.
    fn after_write<T>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &written {
            let mut space = [0; 512];
            let _ = self.as_mut().poll_read(context, &mut ReadBuf::new(&mut space));
            self.observations.record_end(Some(error));
        }
        written
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after_write(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_flush(context);
        self.after_write(context, written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A plain or an encrypted stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Address {
    /// Parses `--server`; `None` if it is not the URL of a server.
    pub fn parse(text: &str) -> Option<Self> {
        let url: Uri = text.parse().ok()?;
        let is_tls = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let after_host = url.authority()?.as_str().rsplit([']', '@']).next()?;
        // Without this check, a port beyond 65535 would be ignored, and port 80 or 443 would be
        // used.
        let has_wrong_port = after_host.contains(':') && url.port_u16().is_none();
        (!host.is_empty() && !has_wrong_port).then_some(Self { url, host, is_tls })
    }

    /// Returns the URL of the server with the given scheme, without a path.
    fn with_scheme(&self, scheme: &str) -> String {
        let authority = self.url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        format!("{scheme}://{authority}")
    }

    /// Returns the URL of the server without a path, for messages.
    fn shown(&self) -> String {
        self.with_scheme(if self.is_tls { "https" } else { "http" })
    }

    /// Opens a connection, which is encrypted if `tls` is given. The error is one line of text.
    pub async fn open(
        &self,
        tls: Option<ClientConfig>,
        files: &TlsFiles,
        observations: &Observations,
        limit: Duration,
    ) -> Result<Observed<Box<dyn Stream>>, String> {
        let cannot_reach = |problem: &dyn std::fmt::Display| {
            format!(
                "cannot reach {} ({problem}): is `countersign serve` running there?",
                self.shown()
            )
        };
        let seconds = limit.as_secs();
        // The connector tries IPv6 and IPv4 addresses in parallel (RFC 8305).
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connected = timeout(limit, connector.oneshot(self.url.clone())).await;
        let stream = connected
            .map_err(|_| cannot_reach(&format_args!("no answer within {seconds} s")))?
            .map_err(|error| cannot_reach(&root_cause(&error)))?
            .into_inner();
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|_| {
                    format!("--server {}: {:?} is not a host name", self.shown(), self.host)
                })?;
                let encrypted_bytes = Observations::default();
                let observed = Observed { stream, observations: encrypted_bytes.clone() };
                let handshake = TlsConnector::from(Arc::new(config)).connect(name, observed);
                let encrypted = timeout(limit, handshake).await.map_err(|_| {
                    format!(
                        "{} does not answer the TLS handshake within {seconds} s: does it speak \
                         TLS? If not, use --server {}",
                        self.shown(),
                        self.with_scheme("http")
                    )
                })?;
                let encrypted = encrypted
                    .map_err(|error| self.explain_handshake(&error, &encrypted_bytes, files))?;
                // A server that has not agreed to HTTP/2 does not speak gRPC, and must not get the
                // API key.
                if encrypted.get_ref().1.alpn_protocol() != Some(b"h2".as_slice()) {
                    return Err(self.no_grpc());
                }
                Box::new(encrypted)
            }
        };
        Ok(Observed { stream, observations: observations.clone() })
    }

    fn explain_handshake(
        &self,
        error: &io::Error,
        seen: &Observations,
        files: &TlsFiles,
    ) -> String {
        let first = seen.lock().first.clone();
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                self.explain_certificate(problem, files)
            }
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                self.no_grpc()
            }
            Some(rustls::Error::AlertReceived(alert)) => self.explain_alert(*alert, files),
            Some(_) if first.starts_with(b"HTTP/") => format!(
                "{} does not speak TLS and answers in HTTP/1: use --server {} with the port for \
                 gRPC (setting `listen`)",
                self.shown(),
                self.with_scheme("http")
            ),
            Some(rustls::Error::InvalidMessage(_)) => self.no_tls(),
            // The cause is not known: an attacker on the network may have closed the connection. So
            // the message must not recommend a connection without encryption.
            None if first.is_empty() => format!(
                "{} closed the connection during the TLS handshake: it may be overloaded, \
                 stopping, or not speak TLS (setting tls.certificate_file)",
                self.shown()
            ),
            _ => format!("{}: the TLS handshake failed: {error}", self.shown()),
        }
    }

    fn no_tls(&self) -> String {
        format!(
            "{} does not speak TLS: use --server {}, or give the server a certificate (setting \
             tls.certificate_file)",
            self.shown(),
            self.with_scheme("http")
        )
    }

    fn no_grpc(&self) -> String {
        format!(
            "{} is no port for gRPC: use the one of the server's setting `listen` (50051 by \
             default), not that of `http_listen`",
            self.shown()
        )
    }

    fn explain_certificate(&self, problem: &CertificateError, files: &TlsFiles) -> String {
        use CertificateError as E;

        let server = self.shown();
        match problem {
            E::NotValidForName => {
                format!(
                    "the certificate of {server} is not for {:?}: use --server with a name in it",
                    self.host
                )
            }
            E::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().map(|name| readable(name)).collect();
                let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
                let host = &self.host;
                format!(
                    "the certificate of {server} is not for {host:?} but for {names}: use \
                     --server with one of these"
                )
            }
            E::Expired | E::ExpiredContext { .. } => format!(
                "the certificate of {server} has expired: renew it there (setting \
                 tls.certificate_file), and check the clock here"
            ),
            E::NotValidYet | E::NotValidYetContext { .. } => {
                format!(
                    "the certificate of {server} is not valid yet: check the clocks of both \
                     machines"
                )
            }
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
                format!(
                    "the certificate of {server} is not for servers (extended key usage): give it \
                     another one"
                )
            }
            E::UnknownIssuer | E::BadSignature | E::Other(_) => match &files.ca {
                Some(ca) => format!(
                    "the certificate of {server} is not of an authority in --ca-file {ca}: name \
                     the file with the certificate of its authority"
                ),
                None => format!(
                    "the certificate of {server} is of an authority that this machine does not \
                     know: name the file with that authority's certificate by --ca-file"
                ),
            },
            _ => format!("the certificate of {server} is not accepted: {problem}"),
        }
    }

    /// Explains the TLS alert by which a server refuses the client's certificate, or requires one.
    fn explain_alert(&self, alert: AlertDescription, files: &TlsFiles) -> String {
        use AlertDescription as A;

        let server = self.shown();
        let Some(file) = &files.client_certificate else {
            return match alert {
                A::CertificateRequired | A::HandshakeFailure | A::AccessDenied => format!(
                    "{server} wants a client certificate: name one by --client-certificate-file \
                     and --client-key-file"
                ),
                _ => format!("{server} refuses the TLS connection (alert {alert:?})"),
            };
        };
        let refuses = format!("{server} refuses --client-certificate-file {file}");
        match alert {
            A::CertificateExpired => {
                format!("{refuses}: it has expired or is not valid yet: renew it")
            }
            A::UnknownCA | A::DecryptError | A::BadCertificate => format!(
                "{refuses}: it is not of an authority that the server knows (its setting \
                 tls.client_ca_file): name another certificate"
            ),
            A::CertificateRevoked => format!("{refuses}: it has been revoked: name another one"),
            A::UnsupportedCertificate | A::CertificateUnknown => {
                format!(
                    "{refuses}: it is not a certificate for clients (alert {alert:?}): name \
                     another one"
                )
            }
            _ => format!("{server} refuses the TLS connection (alert {alert:?})"),
        }
    }

    /// Explains why a call failed without a response. Returns `None` if the cause is not a known
    /// mistake.
    pub fn explain(&self, observations: &Observations, files: &TlsFiles) -> Option<String> {
        let seen = observations.lock();
        match (&seen.error, seen.first.as_slice()) {
            (Some(rustls::Error::AlertReceived(alert)), _) => {
                Some(self.explain_alert(*alert, files))
            }
            // These bytes begin a TLS record: an alert or a handshake (RFC 8446, section 5.1).
            (_, [0x15 | 0x16, 3, ..]) if !self.is_tls => Some(format!(
                "{} speaks TLS: use --server {}",
                self.shown(),
                self.with_scheme("https")
            )),
            (_, first) if first.starts_with(b"HTTP/") => Some(self.no_grpc()),
            // A gRPC server would have sent its SETTINGS frame first (RFC 9113, section 3.4).
            (_, []) if seen.is_closed && self.is_tls && files.client_certificate.is_some() => {
                Some(format!(
                    "{} closed the connection without an answer: does it accept the certificate in \
                 --client-certificate-file? Its log says more",
                    self.shown()
                ))
            }
            (_, []) if seen.is_closed => Some(format!(
                "{} closed the connection without an answer: it is overloaded or stopping, or is \
                 no port for gRPC (use the one of the server's setting `listen`, not that of \
                 `http_listen`)",
                self.shown()
            )),
            _ => None,
        }
    }
}

/// Removes the type from a name in a certificate, which rustls writes as `DnsName("localhost")`.
fn readable(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').to_owned()
}

/// Returns the innermost cause of an error, because transport errors have no useful text of their
/// own.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .last()
        .unwrap_or(error)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_url_with_a_host() {
        let parts = |text| {
            let address = Address::parse(text)?;
            Some((address.host, address.url.port_u16(), address.is_tls))
        };
        assert_eq!(
            parts("http://127.0.0.1:50051"),
            Some(("127.0.0.1".to_owned(), Some(50051), false))
        );
        assert_eq!(parts("https://[::1]:443"), Some(("::1".to_owned(), Some(443), true)));
        assert_eq!(parts("https://[::1]"), Some(("::1".to_owned(), None, true)));
        assert_eq!(parts("https://auth.example"), Some(("auth.example".to_owned(), None, true)));
        for none in [
            "",
            "localhost",
            "localhost:50051",
            "ftp://localhost",
            "http://",
            "/path",
            "http://localhost:500511",
            "http://localhost:",
            "https://[::1]:65536",
        ] {
            assert_eq!(parts(none), None, "{none:?}");
        }
    }

    #[test]
    fn names_in_a_certificate_are_shown_without_their_type() {
        assert_eq!(readable("DnsName(\"localhost\")"), "localhost");
        assert_eq!(readable("IpAddress(127.0.0.1)"), "127.0.0.1");
        assert_eq!(readable("else"), "else");
    }
}
