//! The durations of the lease protocol.

use std::time::Duration;

use countersign_verification::lease::DRIFT;

/// The duration of leases, and the tolerances for clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// The time for which a lease is valid. It is counted from an instant before the renewal was
    /// sent.
    pub duration: Duration,
    /// The interval between two renewals.
    pub renewal: Duration,
    /// The longest suspension of a process that its uptime clock may fail to count.
    pub margin: Duration,
    /// The largest difference between the wall clock and the clock of the database.
    pub max_clock_skew: Duration,
}

impl LeaseConfig {
    /// Returns the time after which a lease has certainly ended. Other replicas than its holder
    /// measure this time by their own clocks, so it allows for clock drift.
    pub fn max_validity(&self) -> Duration {
        self.duration + self.duration * 2 / DRIFT + self.margin
    }
}

/// The settings of watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchConfig {
    /// The longest lease of a watcher. It must not be longer than the lease of a replica.
    pub lease: Duration,
    /// The maximum number of watchers. Those whose stream has ended count until their leases are
    /// over.
    pub max_watchers: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_replicas_wait_until_a_lease_has_ended_even_by_a_slow_clock() {
        let lease_config = LeaseConfig {
            duration: Duration::from_secs(2),
            renewal: Duration::from_millis(500),
            margin: Duration::from_millis(250),
            max_clock_skew: Duration::from_secs(5),
        };
        assert_eq!(lease_config.max_validity(), Duration::from_millis(2254));
    }
}
