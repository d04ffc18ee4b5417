//! How long a replica may believe what it knows, and how long others wait for it.

use std::time::Duration;

/// How much the rates of two clocks may differ: one part in a thousand.
const DRIFT: u32 = 1000;

/// How long leases last, and what is granted to clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// How long a lease lasts, from before it was asked for.
    pub duration: Duration,
    /// How often it is asked for.
    pub renewal: Duration,
    /// How long a process may be stopped without its clock of uptime noticing.
    pub margin: Duration,
    /// How far the wall clock may be from the one of the database.
    pub max_clock_skew: Duration,
}

impl LeaseConfig {
    /// How long the others wait until every lease of this replica is over, by their own clocks.
    pub fn max_validity(&self) -> Duration {
        self.duration + self.duration * 2 / DRIFT + self.margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_for_longer_than_a_lease_lasts_by_a_clock_that_is_slow() {
        let lease_config = LeaseConfig {
            duration: Duration::from_secs(2),
            renewal: Duration::from_millis(500),
            margin: Duration::from_millis(250),
            max_clock_skew: Duration::from_secs(5),
        };
        assert_eq!(lease_config.max_validity(), Duration::from_millis(2254));
    }
}
