//! The durations of the lease protocol.

use std::time::Duration;

/// The rates of two clocks may differ by one part in this number.
const DRIFT: u32 = 1000;

/// The duration of leases, and the tolerances for clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// The time for which a lease is valid. It counts from before the renewal was sent.
    pub duration: Duration,
    /// The interval between two renewals.
    pub renewal: Duration,
    /// The longest time for which a process may be suspended without its uptime clock noticing.
    pub margin: Duration,
    /// The largest difference between the wall clock and the clock of the database.
    pub max_clock_skew: Duration,
}

impl LeaseConfig {
    /// Returns the time after which every lease of this replica has ended. The other replicas
    /// measure it by their own clocks, so it allows for drift.
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
