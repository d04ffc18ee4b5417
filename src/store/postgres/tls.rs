//! TLS to the server, in the terms of libpq's `sslmode` and `sslrootcert` (PostgreSQL manual, section 34.19).

use std::{path::PathBuf, sync::Arc};

use percent_encoding::percent_decode_str;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::config::SslMode as Negotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How much a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Not at all.
    Disable,
    /// Encrypted if the server can, and then to whoever answers.
    Prefer,
    /// Encrypted, to whoever answers.
    Require,
    /// To a server with a certificate of a known authority.
    VerifyCa,
    /// To a server with a certificate of a known authority for the host's name.
    VerifyFull,
}

/// What the URL says of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// How much.
    pub mode: SslMode,
    /// The file with the known authorities in PEM; none for those that the system knows.
    root_certificates: Option<PathBuf>,
}

impl Tls {
    /// Takes from a URL what its driver does not know, and returns the rest of it.
    pub fn take(url: &str) -> Result<(Self, String), String> {
        let (mut mode, mut root_certificates) = (None, None);
        let (start, query) = url.split_once('?').unwrap_or((url, ""));
        let mut rest = vec![];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(self::mode(value)?),
                Some(("sslrootcert", value)) => {
                    let path = percent_decode_str(value).decode_utf8().map_err(|error| error.to_string())?;
                    root_certificates = (path != "system").then(|| PathBuf::from(path.as_ref()));
                }
                _ => rest.push(pair),
            }
        }
        let mut mode = mode.unwrap_or(SslMode::Prefer);
        if mode == SslMode::Require && root_certificates.is_some() {
            // As libpq has it: who names an authority wants it asked for.
            mode = SslMode::VerifyCa;
        }
        let rest = if rest.is_empty() { start.to_owned() } else { format!("{start}?{}", rest.join("&")) };
        Ok((Self { mode, root_certificates }, rest))
    }

    /// What is agreed with the server before TLS begins.
    pub fn negotiation(&self) -> Negotiation {
        match self.mode {
            SslMode::Disable => Negotiation::Disable,
            SslMode::Prefer => Negotiation::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Negotiation::Require,
        }
    }

    /// Makes what makes the connections' TLS.
    pub fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self.mode {
            SslMode::VerifyFull => builder.with_root_certificates(self.roots()?),
            SslMode::VerifyCa => {
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), provider)
                    .build()
                    .map_err(|error| error.to_string())?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
            }
            SslMode::Disable | SslMode::Prefer | SslMode::Require => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
        };
        Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
    }

    /// The authorities that are known.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match &self.root_certificates {
            Some(path) => {
                let failed = |problem: String| format!("sslrootcert {}: {problem}", path.display());
                for certificate in
                    CertificateDer::pem_file_iter(path).map_err(|error| failed(format!("cannot be read: {error}")))?
                {
                    let certificate = certificate.map_err(|error| failed(error.to_string()))?;
                    roots.add(certificate).map_err(|error| failed(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(failed("holds no certificate in PEM".to_owned()));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err("this system knows no certificate authorities: name a file in sslrootcert".to_owned());
                }
            }
        }
        Ok(roots)
    }
}

fn mode(value: &str) -> Result<SslMode, String> {
    match value {
        "disable" => Ok(SslMode::Disable),
        "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => Err(format!("sslmode {value:?} is not one of disable, prefer, require, verify-ca, verify-full")),
    }
}

/// Accepts a certificate of a known authority whatever name it is for: `verify-ca`.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: all else is good.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Accepts whoever can prove to own the certificate that is shown: `prefer` and `require`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(url: &str) -> (SslMode, Option<PathBuf>, String) {
        let (tls, rest) = Tls::take(url).unwrap();
        (tls.mode, tls.root_certificates, rest)
    }

    #[test]
    fn what_the_url_says_of_tls_is_taken_out_of_it() {
        let root = |path: &str| Some(PathBuf::from(path));
        assert_eq!(take("postgres://h/d"), (SslMode::Prefer, None, "postgres://h/d".to_owned()));
        assert_eq!(
            take("postgres://h1,h2:5433/d?sslmode=verify-full&connect_timeout=2&sslrootcert=%2Fetc%2Fca%20x.pem"),
            (SslMode::VerifyFull, root("/etc/ca x.pem"), "postgres://h1,h2:5433/d?connect_timeout=2".to_owned())
        );
        assert_eq!(take("postgres://h?sslmode=disable").0, SslMode::Disable);
        assert_eq!(
            take("postgres://h?sslmode=require&sslrootcert=system"),
            (SslMode::Require, None, "postgres://h".to_owned())
        );
        assert!(Tls::take("postgres://h?sslmode=allow").unwrap_err().contains("verify-full"));
    }

    #[test]
    fn who_names_an_authority_has_it_asked_for() {
        assert_eq!(take("postgres://h?sslmode=require&sslrootcert=ca.pem").0, SslMode::VerifyCa);
    }
}
