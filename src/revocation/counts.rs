//! What a replica counts of its own doings. Names and meanings for people are given where it is
//! told, in `metrics.rs`.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

/// Counted since the start of the process.
#[derive(Debug, Default)]
pub struct Counts {
    /// The renewals.
    pub renewals: RenewalClient,
    /// The waits for acknowledgements that have ended, with how long they took in seconds.
    pub acknowledgements: Acknowledgements,
    /// Up to where the index has been brought.
    pub applied: Gauge,
    /// Where the feed ended when a renewal was last confirmed.
    pub head: Gauge,
    /// Times that the lease ended before it was renewed.
    pub lapses: Counter,
    /// Times that this process had to join again.
    pub rejoins: Counter,
    /// Other replicas that this one has removed from the register.
    pub removals: Counter,
    /// Revocations that were acknowledged and then lost by the database.
    pub lost_revocations: Counter,
}

/// Renewals by what came of them.
#[derive(Debug, Default)]
pub struct RenewalClient {
    /// The database has answered, and the answer counts.
    pub confirmed: Counter,
    /// It has not, or the answer does not.
    pub failed: Counter,
}

/// Waits by how they ended.
#[derive(Debug)]
pub struct Acknowledgements {
    /// Every replica has applied the revocation.
    pub everywhere: Histogram,
    /// Those that have not have no lease any more.
    pub after_wait: Histogram,
    /// It could not be told.
    pub failed: Histogram,
    /// Whoever asked did not wait for it.
    pub given_up: Histogram,
}

/// In seconds. A healthy acknowledgement takes some milliseconds, and the longest wait some
/// seconds.
const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Default for Acknowledgements {
    fn default() -> Self {
        let [everywhere, after_wait, failed, given_up] = [(); 4].map(|()| Histogram::new(BUCKETS));
        Self { everywhere, after_wait, failed, given_up }
    }
}
