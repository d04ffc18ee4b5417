//! TLS for incoming connections. The certificate and its key are read from files, which may change
//! while the service runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::aws_lc_rs::digest::{SHA256, digest};
use arc_swap::ArcSwap;
use rustls::{
    CertificateError, RootCertStore, ServerConfig, ServerConnection,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::{
    domain::{certificate_name::CertificateName, time::Timestamp},
    keys::private_file::{self, NotRead},
};

/// The use of client certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked for a certificate.
    #[default]
    None,
    /// Clients are asked for a certificate, but need not send one. If a client sends a certificate,
    /// it must be valid.
    Optional,
    /// A client without a valid certificate is refused.
    Required,
}

/// The paths of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate and the intermediate certificates, in PEM.
    pub certificate: PathBuf,
    /// The private key of the certificate, in PEM.
    pub private_key: PathBuf,
    /// The certificate authorities that issue clients' certificates, in PEM.
    pub client_ca: Option<PathBuf>,
    /// The use of client certificates.
    pub client_certificates: ClientCertificates,
}

/// The server that a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// HTTP/2 with gRPC. Clients may be asked for certificates.
    Grpc,
    /// HTTP/1.1. Clients may be asked for certificates, but never need one, because many routes are
    /// open to everybody.
    Http,
}

/// The error if TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("setting tls.{setting}: {}: {problem}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    problem: String,
}

/// The settings that were built from the files at the last load.
#[derive(Debug)]
struct Loaded {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    /// The certificate itself, without the intermediate ones.
    certificate: CertificateDer<'static>,
    begins_at: Timestamp,
    expires_at: Timestamp,
    /// The digests of the files. They show whether a file has changed.
    fingerprint: Vec<u8>,
}

/// The TLS settings of both servers. They come from the last load at which all files were valid.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    loaded: ArcSwap<Loaded>,
}

impl Tls {
    /// Reads the files. Fails if they are invalid, or if the certificate has expired.
    pub fn open(files: Files, now: Timestamp) -> Result<Self, TlsError> {
        let loaded = ArcSwap::from_pointee(load(&files, now)?);
        Ok(Self { files, loaded })
    }

    /// Reads the files again, and uses them for new connections. Returns whether the files have
    /// changed. After an error, the previous settings stay in use.
    pub fn reload(&self, now: Timestamp) -> Result<bool, TlsError> {
        let loaded = load(&self.files, now)?;
        let is_new = loaded.fingerprint != self.loaded.load().fingerprint;
        if is_new {
            self.loaded.store(Arc::new(loaded));
        }
        Ok(is_new)
    }

    /// Returns the paths of the files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Returns the certificate, without the intermediate ones.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.loaded.load().certificate.clone()
    }

    /// Returns the instant from which the certificate is valid.
    pub fn begins_at(&self) -> Timestamp {
        self.loaded.load().begins_at
    }

    /// Returns the expiry of the certificate.
    pub fn expires_at(&self) -> Timestamp {
        self.loaded.load().expires_at
    }

    /// Returns whether less than a fifth of the certificate's lifetime is left. Tools usually renew
    /// a certificate when a third of its lifetime is left.
    pub fn expires_soon(&self, now: Timestamp) -> bool {
        let loaded = self.loaded.load();
        let lifetime = loaded.expires_at.since(loaded.begins_at);
        loaded.expires_at.since(now) < lifetime / 5
    }

    /// Returns the acceptor for connections to a server.
    pub fn acceptor(&self, side: Side) -> TlsAcceptor {
        let loaded = self.loaded.load();
        TlsAcceptor::from(match side {
            Side::Grpc => loaded.grpc.clone(),
            Side::Http => loaded.http.clone(),
        })
    }
}

fn load(files: &Files, now: Timestamp) -> Result<Loaded, TlsError> {
    let certificate_failed =
        |problem: String| failed("certificate_file", &files.certificate, problem);
    let key_failed = |problem: String| failed("private_key_file", &files.private_key, problem);

    let pem = read(&files.certificate).map_err(|error| certificate_failed(error.to_string()))?;
    let chain = certificates(&pem).map_err(certificate_failed)?;
    let certificate =
        chain.first().ok_or_else(|| certificate_failed("holds no certificate".to_owned()))?.clone();
    let (begins_at, expires_at) = validity(&certificate).map_err(certificate_failed)?;
    if now >= expires_at {
        return Err(certificate_failed(format!(
            "the certificate expired at {}: renew it",
            format_rfc3339(expires_at)
        )));
    }
    let key_pem = private_file::read(&files.private_key)
        .map_err(|error: NotRead| key_failed(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|_| key_failed("holds no private key in PEM".to_owned()))?;
    let mut fingerprint = digest(&SHA256, &pem).as_ref().to_vec();
    fingerprint.extend(digest(&SHA256, &key_pem).as_ref());

    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = || {
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        builder.map_err(|error| certificate_failed(error.to_string()))
    };
    let http = builder()?.with_no_client_auth().with_single_cert(chain.clone(), key.clone_key());
    let mut http =
        http.map_err(|error| key_failed(format!("does not go with the certificate: {error}")))?;
    let mut grpc = http.clone();
    if let (Some(path), true) =
        (&files.client_ca, files.client_certificates != ClientCertificates::None)
    {
        let ca_failed = |problem: String| failed("client_ca_file", path, problem);
        let pem = read(path).map_err(|error| ca_failed(error.to_string()))?;
        fingerprint.extend(digest(&SHA256, &pem).as_ref());
        let authorities = Arc::new(roots(&pem).map_err(ca_failed)?);
        let asking = |is_required| {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider.clone());
            let verifier = if is_required { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|error| ca_failed(error.to_string()))?;
            let asking = builder()?.with_client_cert_verifier(verifier);
            let asking = asking.with_single_cert(chain.clone(), key.clone_key());
            asking.map_err(|error| key_failed(error.to_string()))
        };
        grpc = asking(files.client_certificates == ClientCertificates::Required)?;
        // Probes have no certificate, so HTTP never requires one.
        http = asking(false)?;
    }
    Ok(Loaded {
        grpc: Arc::new(with_protocol(grpc, b"h2")),
        http: Arc::new(with_protocol(http, b"http/1.1")),
        certificate,
        begins_at,
        expires_at,
        fingerprint,
    })
}

/// Reads certificate authorities from a file in PEM.
pub fn read_authorities(path: &Path) -> Result<RootCertStore, String> {
    roots(&read(path).map_err(|error| error.to_string())?)
}

/// Reads the certificates of certificate authorities.
fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem)? {
        roots.add(authority).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// Makes a configuration offer only this protocol (ALPN, RFC 7301).
fn with_protocol(mut config: ServerConfig, protocol: &[u8]) -> ServerConfig {
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

fn failed(setting: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError { setting, path: path.to_owned(), problem }
}

/// Formats an instant according to RFC 3339.
pub fn format_rfc3339(instant: Timestamp) -> String {
    jiff::Timestamp::from_second(instant.seconds())
        .map_or_else(|_| "an unknown time".to_owned(), |at| at.to_string())
}

/// The maximum size of a file with certificates, in bytes.
const MOST_BYTES: u64 = 4 << 20;

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > MOST_BYTES {
        return Err(io::Error::other(format!("has {length} bytes, at most {MOST_BYTES} are read")));
    }
    fs::read(path)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => {
            Err("holds no certificate in PEM".to_owned())
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("is not PEM: {error}")),
    }
}

/// Returns the validity period of a certificate (RFC 5280, section 4.1.2.5) as its first instant
/// and the first instant after it.
fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), String> {
    let certificate = Certificate::from_der(certificate)
        .map_err(|error| format!("holds a damaged certificate: {error}"))?;
    let validity = &certificate.tbs_certificate.validity;
    let at = |time: &x509_cert::time::Time| Timestamp::from_micros(0).plus(time.to_unix_duration());
    // The certificate is valid throughout the second that `not_after` names.
    Ok((at(&validity.not_before), at(&validity.not_after).plus(Duration::from_secs(1))))
}

/// The reason for which a handshake failed because of the client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusedCertificate {
    /// The client has sent no certificate, although one is required.
    Missing,
    /// The certificate is not valid, for this reason.
    Bad(String),
}

/// The maximum length of a logged problem with a certificate, in characters. Some of these texts
/// contain bytes of the certificate, whose number the client chooses.
const MAX_PROBLEM_CHARS: usize = 200;

/// Returns the reason if a handshake failed because of the client's certificate, and `None` if it
/// failed for another reason.
pub fn refused_certificate(error: &io::Error) -> Option<RefusedCertificate> {
    use CertificateError as E;

    let problem = match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::NoCertificatesPresented => return Some(RefusedCertificate::Missing),
        rustls::Error::InvalidCertificate(problem) => problem,
        _ => return None,
    };
    Some(RefusedCertificate::Bad(match problem {
        E::ExpiredContext { not_after, .. } => {
            let seconds = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX);
            format!(
                "it expired at {}",
                format_rfc3339(Timestamp::from_micros(seconds.saturating_mul(1_000_000)))
            )
        }
        E::Expired => "it has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        E::UnknownIssuer | E::BadSignature => {
            "it was not issued by an authority in tls.client_ca_file".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "it is not for clients (extended key usage)".to_owned()
        }
        problem => problem.to_string().chars().take(MAX_PROBLEM_CHARS).collect(),
    }))
}

/// Returns the names in the verified certificate of a client.
pub fn certificate_names(connection: &ServerConnection) -> Vec<CertificateName> {
    let shown = connection.peer_certificates().and_then(<[_]>::first);
    shown.map(subject_names).unwrap_or_default()
}

/// Returns the subject alternative names of a certificate (RFC 5280, section 4.2.1.6). If they
/// cannot be read in full, the result is empty. The common name is ignored (RFC 9525, section 2).
/// Names that the configuration of a caller cannot contain, such as wildcards and IP addresses, are
/// left out.
fn subject_names(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return vec![] };
    let Ok(Some((_, names))) = certificate.tbs_certificate.get::<SubjectAltName>() else {
        return vec![];
    };
    let names = names.0.iter().filter_map(|name| match name {
        GeneralName::DnsName(host) => CertificateName::dns(host.as_str()).ok(),
        GeneralName::UniformResourceIdentifier(uri) => CertificateName::uri(uri.as_str()).ok(),
        GeneralName::Rfc822Name(address) => CertificateName::email(address.as_str()).ok(),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

    use super::*;

    /// Returns the names that are read from a certificate that is made with `names`. For each pair
    /// in `extensions`, the certificate has one more extension for subject alternative names, with
    /// that content and criticality.
    fn names(names: Vec<SanType>, extensions: &[(&[u8], bool)]) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "gw.test");
        params.subject_alt_names = names;
        for (content, is_critical) in extensions {
            let mut extension =
                CustomExtension::from_oid_content(&[2, 5, 29, 17], content.to_vec());
            extension.set_criticality(*is_critical);
            params.custom_extensions.push(extension);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        subject_names(certificate.der()).iter().map(ToString::to_string).collect()
    }

    /// The verifier of the TLS library sees a client certificate first, but it may accept names
    /// that cannot be read here.
    #[test]
    fn a_certificate_whose_names_cannot_be_read_in_full_yields_no_names() {
        let host: &[u8] = b"\x30\x09\x82\x07gw.test";
        for is_critical in [false, true] {
            assert_eq!(names(vec![], &[(host, is_critical)]), ["dns:gw.test"]);
            for (what, content) in [
                ("cut short", &host[..8]),
                ("nothing", &[]),
                ("more than the names", b"\x30\x09\x82\x07gw.test\x00"),
                ("a name that is cut short", b"\x30\x0b\x82\x07gw.test\x82\x05"),
                ("a name that is not ASCII", b"\x30\x0c\x82\x07gw.test\x82\x01\xff"),
                ("a name of an unknown kind", b"\x30\x0c\x82\x07gw.test\x9f\x01x"),
                ("a name alone", b"\x82\x07gw.test"),
            ] {
                assert_eq!(
                    names(vec![], &[(content, is_critical)]),
                    [""; 0],
                    "{what}, critical: {is_critical}"
                );
            }
        }
        assert_eq!(names(vec![], &[(host, false), (host, false)]), [""; 0], "twice");
        assert_eq!(names(vec![], &[]), [""; 0], "the common name does not count");
        let wildcard = || SanType::DnsName("*.test".try_into().unwrap());
        assert_eq!(
            names(vec![wildcard(), SanType::URI("a:b".try_into().unwrap()), wildcard()], &[]),
            ["uri:a:b"]
        );
    }
}
