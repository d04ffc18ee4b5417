//! `[tokens]`: the settings of all access tokens.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use crate::domain::{
    policy::LONGEST_ACCESS_TOKEN_TTL,
    text::{Acr, Audience},
};

/// The section before it is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTokens {
    #[serde(with = "super::span")]
    leeway: Duration,
    #[serde(with = "super::span")]
    max_access_token_ttl: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_audience: Option<String>,
    verified_cache_bytes: u64,
    acr_order: Vec<String>,
    legacy_refresh_tokens: bool,
}

impl Default for RawTokens {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(5),
            max_access_token_ttl: Duration::from_secs(3600),
            default_audience: None,
            verified_cache_bytes: 32 << 20,
            acr_order: vec![],
            legacy_refresh_tokens: false,
        }
    }
}

impl RawTokens {
    /// Returns this section with the settings of `read` that can change without a restart.
    pub fn reloaded(&self, read: &Self) -> Self {
        // The cache is made when the service starts.
        Self { verified_cache_bytes: self.verified_cache_bytes, ..read.clone() }
    }
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The most by which the clock of a token's issuer may be ahead of the verifier's clock.
    pub leeway: Duration,
    /// The longest lifetime of an access token.
    pub max_access_token_ttl: Duration,
    /// The audience of sessions that are created without one.
    pub default_audience: Audience,
    /// The size of the cache of verified tokens, in bytes.
    pub verified_cache_bytes: u64,
    /// The order of `acr` values, from the weakest to the strongest.
    pub acr_order: Vec<Acr>,
    /// True if the refresh tokens of another system are accepted for sessions that were imported
    /// with them.
    pub legacy_refresh_tokens: bool,
}

/// The largest leeway: clocks that differ by more should be synchronized.
const LARGEST_LEEWAY: Duration = Duration::from_secs(60);

impl Tokens {
    /// Checks the section.
    pub fn check(raw: &RawTokens, issuer: &str) -> Result<Self, ConfigError> {
        if raw.leeway > LARGEST_LEEWAY {
            return Err(invalid(
                "tokens.leeway",
                "must be at most 1m: synchronize the clocks instead",
            ));
        }
        if raw.max_access_token_ttl > LONGEST_ACCESS_TOKEN_TTL {
            return Err(invalid("tokens.max_access_token_ttl", "must be at most 7d"));
        }
        let default_audience = raw.default_audience.clone().unwrap_or_else(|| issuer.to_owned());
        Ok(Self {
            leeway: raw.leeway,
            max_access_token_ttl: raw.max_access_token_ttl,
            default_audience: Audience::try_from(default_audience)
                .map_err(|error| invalid("tokens.default_audience", error))?,
            verified_cache_bytes: raw.verified_cache_bytes,
            acr_order: acr_order(&raw.acr_order)?,
            legacy_refresh_tokens: raw.legacy_refresh_tokens,
        })
    }
}

/// Checks the order of `acr` values, each of which is in the list once.
fn acr_order(raw: &[String]) -> Result<Vec<Acr>, ConfigError> {
    const NAME: &str = "tokens.acr_order";
    let mut order: Vec<Acr> = vec![];
    for text in raw {
        let acr = Acr::try_from(text.clone()).map_err(|error| invalid(NAME, error))?;
        if acr.is_empty() {
            return Err(invalid(NAME, "holds an empty text"));
        }
        if order.contains(&acr) {
            return Err(invalid(NAME, format!("holds {text:?} twice")));
        }
        order.push(acr);
    }
    Ok(order)
}
