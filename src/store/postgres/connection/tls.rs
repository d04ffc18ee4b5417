//! TLS to the server, in the terms of libpq's `sslmode` and `sslrootcert` (PostgreSQL manual,
//! section 34.19).
//!
//! `prefer` and `require` accept any certificate, and use only its public key: the server must
//! prove that it has the private key. For these modes, the code here reads the public key itself,
//! whatever else the certificate contains. They cannot use webpki, which reads only certificates of
//! X.509 version 3; libpq also accepts certificates of version 1, and some images create such a
//! certificate for themselves. `verify-ca` and `verify-full` leave everything to webpki, and reject
//! version 1 with a message that says so.

use std::{path::PathBuf, sync::Arc};

use percent_encoding::percent_decode_str;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError,
    PeerMisbehaved, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject},
};
use tokio_postgres::config::SslMode as Negotiation;
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::{
    der::{self, AnyRef, Decode, Encode, Reader, SliceReader, TagNumber, asn1::ContextSpecific},
    spki::SubjectPublicKeyInfoRef,
};

/// The protection of a connection, as `sslmode` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, with any certificate.
    Prefer,
    /// TLS with any certificate.
    Require,
    /// TLS with a certificate of a known authority.
    VerifyCa,
    /// TLS with a certificate that a known authority has issued for the name of the host.
    VerifyFull,
}

/// The TLS settings of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The protection.
    pub mode: SslMode,
    /// The file with the known authorities in PEM. Without it, the authorities of the operating
    /// system are known.
    root_certificates: Option<PathBuf>,
}

impl Tls {
    /// Separates the TLS settings, which the driver does not know, from the rest of a URL, and
    /// returns both.
    pub fn take(url: &str) -> Result<(Self, String), String> {
        let (mut mode, mut root_certificates) = (None, None);
        let (start, query) = url.split_once('?').unwrap_or((url, ""));
        let mut rest = vec![];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(self::mode(value)?),
                Some(("sslrootcert", value)) => {
                    let path = percent_decode_str(value)
                        .decode_utf8()
                        .map_err(|error| error.to_string())?;
                    root_certificates = (path != "system").then(|| PathBuf::from(path.as_ref()));
                }
                _ => rest.push(pair),
            }
        }
        let mut mode = mode.unwrap_or(SslMode::Prefer);
        if mode == SslMode::Require && root_certificates.is_some() {
            // As in libpq, `require` verifies the certificate if the URL names an authority.
            mode = SslMode::VerifyCa;
        }
        let rest =
            if rest.is_empty() { start.to_owned() } else { format!("{start}?{}", rest.join("&")) };
        Ok((Self { mode, root_certificates }, rest))
    }

    /// Returns what the driver is to agree on with the server before TLS begins.
    pub fn negotiation(&self) -> Negotiation {
        match self.mode {
            SslMode::Disable => Negotiation::Disable,
            SslMode::Prefer => Negotiation::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Negotiation::Require,
        }
    }

    /// Creates the connector, which sets up TLS for each connection.
    pub fn connector(&self) -> Result<MakeRustlsConnect, String> {
        self.client_config().map(MakeRustlsConnect::new)
    }

    fn client_config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self.mode {
            SslMode::VerifyCa | SslMode::VerifyFull => {
                let webpki =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), provider)
                        .build()
                        .map_err(|error| error.to_string())?;
                let verifier =
                    KnownAuthority { webpki, checks_name: self.mode == SslMode::VerifyFull };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            SslMode::Disable | SslMode::Prefer | SslMode::Require => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        };
        Ok(config.with_no_client_auth())
    }

    /// Loads the known authorities.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match &self.root_certificates {
            Some(path) => {
                let failed = |problem: String| format!("sslrootcert {}: {problem}", path.display());
                for certificate in CertificateDer::pem_file_iter(path)
                    .map_err(|error| failed(format!("cannot be read: {error}")))?
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
                    return Err(
                        "this system knows no certificate authorities: name a file in sslrootcert"
                            .to_owned(),
                    );
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
        _ => Err(format!(
            "sslmode {value:?} is not one of disable, prefer, require, verify-ca, verify-full"
        )),
    }
}

/// Accepts a certificate of a known authority: with `verify-full` only if it is valid for the name
/// of the host, with `verify-ca` whatever name it is for.
#[derive(Debug)]
struct KnownAuthority {
    webpki: Arc<WebPkiServerVerifier>,
    checks_name: bool,
}

impl ServerCertVerifier for KnownAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            // webpki checks the name last, so everything else about the certificate is good.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            Err(_) if CertificateKey::of(end_entity).is_ok_and(|key| !key.is_version_3) => {
                Err(TlsError::Other(OtherError(Arc::new(OldVersion))))
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// The error for a certificate of a version that cannot be verified.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate is of X.509 version 1, which verify-ca and verify-full do not \
     accept: give the server one of version 3, or use sslmode=require, which verifies none"
)]
struct OldVersion;

/// Accepts any certificate, if the server proves that it has the private key. This is for `prefer`
/// and `require`.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        // A signature scheme may stand for several algorithms. As rustls does for keys in
        // certificates, this tries each of them that fits the key.
        let certified = CertificateKey::of(certificate)?;
        let mapping = self.0.signature_verification_algorithms.mapping;
        let algorithms =
            mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme).flat_map(|(_, all)| *all);
        let fitting = algorithms
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == certified.algorithm);
        let mut outcome = Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        for algorithm in fitting {
            match algorithm.verify_signature(&certified.key, message, signed.signature()) {
                Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
                Err(_) => outcome = Err(CertificateError::BadSignature.into()),
            }
        }
        outcome
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let info = SubjectPublicKeyInfoDer::from(CertificateKey::of(certificate)?.info);
        verify_tls13_signature_with_raw_key(
            message,
            &info,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The public key of a certificate.
struct CertificateKey {
    is_version_3: bool,
    /// The SubjectPublicKeyInfo (RFC 5280, section 4.1). The next two fields are its parts: the
    /// contents of the AlgorithmIdentifier, and the key.
    info: Vec<u8>,
    algorithm: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateKey {
    /// Reads the key from a certificate of any version, and ignores everything else in it.
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        Self::read(certificate).map_err(|_| CertificateError::BadEncoding.into())
    }

    fn read(certificate: &[u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(certificate)?;
        let fields: AnyRef<'_> = reader.sequence(|outer| {
            let fields = outer.decode()?;
            // Skips the algorithm and the signature of the issuer.
            outer.decode::<AnyRef<'_>>()?;
            outer.decode::<AnyRef<'_>>()?;
            Ok(fields)
        })?;
        let fields = reader.finish(fields)?;
        let (version, info) = fields.sequence(|inner| {
            let version = ContextSpecific::<u8>::decode_explicit(inner, TagNumber::N0)?
                .map(|version| version.value);
            // Skips the serial number, the algorithm, the issuer, the validity and the subject.
            for _ in 0..5 {
                inner.decode::<AnyRef<'_>>()?;
            }
            let info = inner.decode::<AnyRef<'_>>()?;
            while !inner.is_finished() {
                inner.decode::<AnyRef<'_>>()?;
            }
            Ok((version, info))
        })?;
        let info = info.to_der()?;
        let SubjectPublicKeyInfoRef { algorithm, subject_public_key } =
            SubjectPublicKeyInfoRef::from_der(&info)?;
        let mut identifier = algorithm.oid.to_der()?;
        algorithm.parameters.encode_to_vec(&mut identifier)?;
        let key = subject_public_key
            .as_bytes()
            .ok_or(der::ErrorKind::Value { tag: der::Tag::BitString })?
            .to_vec();
        // The encoding counts versions from zero.
        Ok(Self { is_version_3: version == Some(2), algorithm: identifier, key, info })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
    use rustls::{
        ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
        pki_types::PrivateKeyDer,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
        version::{TLS12, TLS13},
    };

    use super::*;

    /// Presents a certificate, even if the server does not have the key of that certificate.
    #[derive(Debug)]
    struct FixedCertificate(Arc<CertifiedKey>);

    impl ResolvesServerCert for FixedCertificate {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    /// Performs a handshake with `sslmode=require`, which does not verify certificates. The server
    /// presents a certificate of the key `certified`, and signs with the key `used`.
    fn shake_hands(
        version: &'static SupportedProtocolVersion,
        certified: &KeyPair,
        used: &KeyPair,
    ) -> Result<(), TlsError> {
        let certificate =
            CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(certified).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = provider
            .key_provider
            .load_private_key(PrivateKeyDer::try_from(used.serialize_der()).unwrap());
        let resolver = FixedCertificate(Arc::new(CertifiedKey::new(
            vec![certificate.der().clone()],
            key.unwrap(),
        )));
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap();
        let server = server.with_no_client_auth().with_cert_resolver(Arc::new(resolver));
        let (tls, _) = Tls::take("postgres://h/d?sslmode=require").unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let mut client =
            ClientConnection::new(Arc::new(tls.client_config().unwrap()), "h".try_into().unwrap())
                .unwrap();
        while client.is_handshaking() {
            let mut bytes = vec![];
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = vec![];
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_server_must_prove_that_it_has_the_key_even_if_its_certificate_is_not_verified() {
        let kinds: [&SignatureAlgorithm; 4] = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ];
        for kind in kinds {
            let [ours, other] = [0, 1].map(|_| KeyPair::generate_for(kind).unwrap());
            for version in [&TLS12, &TLS13] {
                shake_hands(version, &ours, &ours).unwrap();
                let refused = shake_hands(version, &ours, &other).unwrap_err();
                assert_eq!(refused, CertificateError::BadSignature.into(), "{kind:?} {version:?}");
            }
        }
    }

    #[test]
    fn damaged_certificates_are_refused_or_harmless() {
        let key = KeyPair::generate().unwrap();
        let good =
            CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().der().to_vec();
        let certified = CertificateKey::read(&good).unwrap();
        assert!(certified.is_version_3);
        assert_eq!(certified.key, rcgen::PublicKeyData::der_bytes(&key));
        for length in 0..good.len() {
            assert!(CertificateKey::read(&good[..length]).is_err(), "{length}");
        }
        // A changed byte may be harmless, but must not cause a panic.
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0xff;
            let _ = CertificateKey::read(&bad);
        }
    }

    fn take(url: &str) -> (SslMode, Option<PathBuf>, String) {
        let (tls, rest) = Tls::take(url).unwrap();
        (tls.mode, tls.root_certificates, rest)
    }

    #[test]
    fn tls_settings_are_removed_from_the_url() {
        let root = |path: &str| Some(PathBuf::from(path));
        assert_eq!(take("postgres://h/d"), (SslMode::Prefer, None, "postgres://h/d".to_owned()));
        assert_eq!(
            take(
                "postgres://h1,h2:5433/d?sslmode=verify-full&connect_timeout=2&sslrootcert=%2Fetc%2Fca%20x.pem"
            ),
            (
                SslMode::VerifyFull,
                root("/etc/ca x.pem"),
                "postgres://h1,h2:5433/d?connect_timeout=2".to_owned()
            )
        );
        assert_eq!(take("postgres://h?sslmode=disable").0, SslMode::Disable);
        assert_eq!(
            take("postgres://h?sslmode=require&sslrootcert=system"),
            (SslMode::Require, None, "postgres://h".to_owned())
        );
        assert!(Tls::take("postgres://h?sslmode=allow").unwrap_err().contains("verify-full"));
    }

    #[test]
    fn require_with_an_authority_means_verify_ca() {
        assert_eq!(take("postgres://h?sslmode=require&sslrootcert=ca.pem").0, SslMode::VerifyCa);
    }
}
