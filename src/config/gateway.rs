//! `[gateway]`: how the service answers gateways that ask whether a request may pass.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use crate::gateway::{
    Settings,
    identity::{DEFAULT, IdentityHeaders},
};

/// The section before it is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawGateway {
    cookie: String,
    remove_credential: bool,
    max_header_bytes: usize,
    headers: BTreeMap<String, String>,
}

impl Default for RawGateway {
    fn default() -> Self {
        let headers = DEFAULT.map(|(header, claim)| (header.to_owned(), claim.to_owned()));
        Self {
            cookie: String::new(),
            remove_credential: false,
            max_header_bytes: 4096,
            headers: BTreeMap::from(headers),
        }
    }
}

impl RawGateway {
    /// Checks the section.
    pub fn check(&self) -> Result<Settings, ConfigError> {
        // The characters of a cookie's name (RFC 6265, section 4.1.1; RFC 9110, section 5.6.2).
        let in_name = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if !self.cookie.chars().all(in_name) {
            return Err(invalid(
                "gateway.cookie",
                "must be the name of a cookie, or empty for none",
            ));
        }
        if !(64..=16_384).contains(&self.max_header_bytes) {
            return Err(invalid("gateway.max_header_bytes", "must be from 64 to 16384"));
        }
        let headers = self.headers.iter().map(|(header, claim)| (header.as_str(), claim.as_str()));
        Ok(Settings {
            cookie: (!self.cookie.is_empty()).then(|| self.cookie.clone()),
            headers: IdentityHeaders::new(headers)
                .map_err(|problem| invalid("gateway.headers", problem))?,
            max_header_bytes: self.max_header_bytes,
            remove_credential: self.remove_credential,
        })
    }
}
