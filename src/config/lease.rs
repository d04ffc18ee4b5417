//! `[lease]`: how long a replica may validate without hearing from the database, and how far clocks
//! may differ.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use crate::domain::{lease::LeaseConfig, revocation::RETENTION_MARGIN, time::brief};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLease {
    /// The duration of a lease. A revocation waits a little longer than this for a replica that is
    /// cut off from the database.
    #[serde(with = "super::span")]
    duration: Duration,
    /// The interval at which the lease is renewed.
    #[serde(with = "super::span")]
    renewal: Duration,
    /// The longest time for which a machine may be suspended while its uptime clock stands still.
    #[serde(with = "super::span")]
    margin: Duration,
    /// The most by which this machine's wall clock may differ from the clock of the database.
    #[serde(with = "super::span")]
    max_clock_skew: Duration,
}

impl Default for RawLease {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(2),
            renewal: Duration::from_millis(500),
            margin: Duration::from_millis(250),
            max_clock_skew: Duration::from_secs(5),
        }
    }
}

const SHORTEST_RENEWAL: Duration = Duration::from_millis(10);
const LONGEST_LEASE: Duration = Duration::from_secs(20);
/// The smallest number of renewals within the duration of a lease, so that a late renewal does no
/// harm.
const FEWEST_RENEWALS: u32 = 3;
/// The smallest margin. `LeaseConfig::max_validity` neglects some millionths of the duration of a
/// lease, which the margin must cover many times over.
const SHORTEST_MARGIN: Duration = Duration::from_millis(10);

impl RawLease {
    /// Checks that the values are in range and go together.
    pub fn check(&self) -> Result<LeaseConfig, ConfigError> {
        let Self { duration, renewal, margin, max_clock_skew } = *self;
        let lease_config = LeaseConfig { duration, renewal, margin, max_clock_skew };
        if renewal < SHORTEST_RENEWAL {
            return Err(invalid(
                "lease.renewal",
                format!("must be at least {}", brief(SHORTEST_RENEWAL)),
            ));
        }
        if duration < renewal.saturating_mul(FEWEST_RENEWALS) {
            let problem = format!(
                "must be at least {FEWEST_RENEWALS} times lease.renewal, so that one may be late"
            );
            return Err(invalid("lease.duration", problem));
        }
        if duration > LONGEST_LEASE {
            return Err(invalid(
                "lease.duration",
                format!("must be at most {}", brief(LONGEST_LEASE)),
            ));
        }
        if margin < SHORTEST_MARGIN || margin > duration {
            let shortest = brief(SHORTEST_MARGIN);
            return Err(invalid(
                "lease.margin",
                format!("must be from {shortest} to lease.duration"),
            ));
        }
        // The clock of the replica that sweeps may be ahead of the database's by the skew, and the
        // clock of a replica that validates may be behind by as much.
        let needed = max_clock_skew.saturating_mul(2).saturating_add(lease_config.max_validity());
        if needed > RETENTION_MARGIN {
            let problem = format!(
                "is too long: twice this and the {} that a revocation may wait must not exceed {}",
                brief(lease_config.max_validity()),
                brief(RETENTION_MARGIN)
            );
            return Err(invalid("lease.max_clock_skew", problem));
        }
        if max_clock_skew.is_zero() {
            return Err(invalid("lease.max_clock_skew", "must be more than 0s"));
        }
        Ok(lease_config)
    }
}
