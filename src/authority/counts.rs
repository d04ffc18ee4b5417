//! The counts of the use cases since the start of the process, for metrics.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{Authority, error::AuthorityError, sweep::Swept};
use crate::{
    domain::{inactive::InactiveReason, time::Timestamp},
    instruments::Counters,
    store::sizes::Sizes,
};

/// The counts of the use cases.
#[derive(Debug, Default)]
pub struct Counts {
    /// The validated tokens.
    pub validations: ValidationCounts,
    /// The refresh tokens of other systems that were exchanged, without replays.
    pub legacy_exchanges: Counter,
    /// The sweeps.
    pub sweeps: SweepCounts,
    /// The job that ends the sessions which cut-offs cover.
    pub cut_offs: CutOffCounts,
    /// The size of the database when it was last read; none before that.
    pub sizes: ArcSwapOption<Sampled>,
}

/// The size of the database at one moment.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// The sizes.
    pub sizes: Sizes,
    /// The time since the expiry of the oldest expired blacklist row.
    pub oldest_expired_for: Duration,
}

/// The number of validated tokens by outcome.
#[derive(Debug)]
pub struct ValidationCounts(Counters);

impl Default for ValidationCounts {
    fn default() -> Self {
        Self(Counters::new(1 + InactiveReason::ALL.len()))
    }
}

impl ValidationCounts {
    /// Counts a token, which is active if there is no reason why it is not.
    pub fn count(&self, inactive: Option<InactiveReason>) {
        self.0.increment(number(inactive));
    }

    /// Returns the number of tokens that were active.
    pub fn active(&self) -> u64 {
        self.0.get(number(None))
    }

    /// Returns the number of tokens that were inactive for this reason.
    pub fn inactive(&self, reason: InactiveReason) -> u64 {
        self.0.get(number(Some(reason)))
    }
}

fn number(inactive: Option<InactiveReason>) -> usize {
    inactive.map_or(0, |reason| 1 + reason as usize)
}

/// The counts of the job that ends the sessions which cut-offs cover.
#[derive(Debug, Default)]
pub struct CutOffCounts {
    /// The cut-offs whose sessions are not all ended yet, as far as the job knows.
    pub unfinished: Gauge,
    /// The sessions that the job has ended.
    pub ended_sessions: Counter,
}

/// The counts of the sweeps.
#[derive(Debug, Default)]
pub struct SweepCounts {
    /// The blacklist rows that were deleted.
    pub revocations: Counter,
    /// The sessions that were deleted.
    pub sessions: Counter,
    /// The audit records that were deleted.
    pub audit: Counter,
    /// The sessions that were recorded as expired.
    pub expired: Counter,
    /// The end of the last sweep that did all that was due, in seconds since 1970; 0 before the
    /// first one.
    pub last_success: Gauge,
}

impl SweepCounts {
    /// Counts a sweep that ended at this time.
    pub fn count(&self, swept: &Swept, now: Timestamp) {
        let counts = [
            (&self.revocations, swept.revocations),
            (&self.sessions, swept.sessions),
            (&self.audit, swept.audit),
            (&self.expired, swept.expired),
        ];
        for (counter, rows) in counts {
            counter.inc_by(u64::try_from(rows).unwrap_or(u64::MAX));
        }
        self.last_success.set(now.micros() / 1_000_000);
    }
}

impl Authority {
    /// Reads the size of the database for metrics.
    pub async fn sample_sizes(&self) -> Result<(), AuthorityError> {
        let now = match self.store.now().await? {
            Some(now) => now,
            None => self.clock.now(),
        };
        let sizes = self.store.sizes(now).await?;
        let oldest_expired_for =
            sizes.oldest_expiry.map_or(Duration::ZERO, |oldest| now.since(oldest));
        self.counts.sizes.store(Some(Arc::new(Sampled { sizes, oldest_expired_for })));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_of_a_validation_has_a_count_of_its_own() {
        let counts = ValidationCounts::default();
        counts.count(None);
        for (times, reason) in (2..).zip(InactiveReason::ALL) {
            (0..times).for_each(|_| counts.count(Some(reason)));
        }
        assert_eq!(counts.active(), 1);
        for (times, reason) in (2..).zip(InactiveReason::ALL) {
            assert_eq!(counts.inactive(reason), times);
        }
    }
}
