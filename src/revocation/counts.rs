//! The counters of a replica. `metrics.rs` exports them, with names and descriptions for operators.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

/// The counters since the start of the process.
#[derive(Debug, Default)]
pub struct Counts {
    /// The number of renewals, by result.
    pub renewals: RenewalCounts,
    /// The durations of the waits for acknowledgements that have ended, by result, in seconds.
    pub acknowledgements: Acknowledgements,
    /// The position up to which the index has applied the feed.
    pub applied: Gauge,
    /// The last position of the feed at the last confirmed renewal.
    pub head: Gauge,
    /// The number of times that the lease ended before it was renewed.
    pub lapses: Counter,
    /// The number of times that this process had to join again.
    pub rejoins: Counter,
    /// The number of other replicas that this replica has removed from the table `replicas`.
    pub removals: Counter,
    /// The number of acknowledged revocations that the database has lost.
    pub lost_revocations: Counter,
}

/// The counters of the watchers.
#[derive(Debug)]
pub struct WatchCounts {
    /// The number of leases that watchers got.
    pub leases: Counter,
    /// The number of refused watchers, because there were too many.
    pub refused: Counter,
    /// The number of watchers whose stream was ended because they did not keep up.
    pub too_slow: Counter,
    /// The times for which this replica could not report what it had applied, because a watcher had
    /// not confirmed it, in seconds.
    pub held_up: Histogram,
}

impl Default for WatchCounts {
    fn default() -> Self {
        let [leases, refused, too_slow] = [(); 3].map(|()| Counter::default());
        Self { leases, refused, too_slow, held_up: Histogram::new(BUCKETS) }
    }
}

/// The number of renewals, by result.
#[derive(Debug, Default)]
pub struct RenewalCounts {
    /// The database answered, and the answer was used.
    pub confirmed: Counter,
    /// There was no answer, or it could not be used.
    pub failed: Counter,
}

/// The durations of waits for acknowledgements, by result.
#[derive(Debug)]
pub struct Acknowledgements {
    /// Every replica has applied the revocation.
    pub everywhere: Histogram,
    /// The leases of all replicas that have not applied the revocation have ended.
    pub after_wait: Histogram,
    /// It could not be determined whether every replica knows the revocation.
    pub failed: Histogram,
    /// The caller gave up before the wait had ended.
    pub given_up: Histogram,
}

/// The buckets, in seconds. A healthy acknowledgement takes some milliseconds, and the longest wait
/// some seconds.
const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Default for Acknowledgements {
    fn default() -> Self {
        let [everywhere, after_wait, failed, given_up] = [(); 4].map(|()| Histogram::new(BUCKETS));
        Self { everywhere, after_wait, failed, given_up }
    }
}
