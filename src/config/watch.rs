//! `[watch]`: processes that verify access tokens themselves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid},
    limits::Limits,
};
use crate::domain::lease::{LeaseConfig, WatchConfig};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWatch {
    /// The longest lease of a watcher. A lease never lasts longer than that of the replica, so at
    /// most `lease.duration`.
    #[serde(with = "super::span")]
    pub lease: Duration,
}

impl Default for RawWatch {
    fn default() -> Self {
        Self { lease: Duration::from_secs(2) }
    }
}

/// With a shorter lease, watchers would send renewals all the time.
const SHORTEST_LEASE: Duration = Duration::from_millis(500);
const LONGEST_LEASE: Duration = Duration::from_secs(20);

impl RawWatch {
    /// Checks the section. On SQLite, revocations wait for as long as a lease of the replica would
    /// last, so a lease of a watcher must not be longer, either.
    pub fn check(&self, limits: &Limits, lease: &LeaseConfig) -> Result<WatchConfig, ConfigError> {
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&self.lease) {
            return Err(invalid("watch.lease", "must be from 500ms to 20s"));
        }
        Ok(WatchConfig { lease: self.lease.min(lease.duration), max_watchers: limits.max_watchers })
    }
}
