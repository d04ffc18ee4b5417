//! `[tls]`: the certificate of the service, and whether clients need certificates.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use crate::net::tls::{ClientCertificates, Files};

/// The section before it is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "super::section::read_choice")]
    client_certificates: RawClientCertificates,
    http: bool,
}

/// The values of `client_certificates`, which says whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RawClientCertificates {
    /// Clients may present a certificate if `client_ca_file` is set.
    #[default]
    Optional,
    /// Clients must present a certificate.
    Required,
}

impl Default for RawTls {
    fn default() -> Self {
        Self {
            certificate_file: None,
            private_key_file: None,
            client_ca_file: None,
            client_certificates: RawClientCertificates::Optional,
            http: true,
        }
    }
}

/// The section, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The files of the certificate, its key and the authorities.
    pub files: Files,
    /// True if the HTTP port is encrypted too.
    pub http: bool,
}

impl RawTls {
    /// Checks the section; `None` if nothing is encrypted.
    pub fn check(&self) -> Result<Option<Tls>, ConfigError> {
        let (certificate, private_key) = match (&self.certificate_file, &self.private_key_file) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) => {
                if self.client_ca_file.is_some()
                    || self.client_certificates == RawClientCertificates::Required
                {
                    let problem =
                        "is needed, and tls.private_key_file too, if clients present certificates";
                    return Err(invalid("tls.certificate_file", problem));
                }
                return Ok(None);
            }
            (Some(_), None) => {
                return Err(invalid("tls.private_key_file", "is needed with tls.certificate_file"));
            }
            (None, Some(_)) => {
                return Err(invalid("tls.certificate_file", "is needed with tls.private_key_file"));
            }
        };
        let client_certificates = match (&self.client_ca_file, self.client_certificates) {
            (None, RawClientCertificates::Optional) => ClientCertificates::None,
            (None, RawClientCertificates::Required) => {
                return Err(invalid(
                    "tls.client_ca_file",
                    "is needed to check the certificates that are required",
                ));
            }
            (Some(_), RawClientCertificates::Optional) => ClientCertificates::Optional,
            (Some(_), RawClientCertificates::Required) => ClientCertificates::Required,
        };
        let files = Files {
            certificate,
            private_key,
            client_ca: self.client_ca_file.clone(),
            client_certificates,
        };
        Ok(Some(Tls { files, http: self.http }))
    }
}
