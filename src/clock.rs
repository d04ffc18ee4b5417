//! The clock, which code takes as a parameter: production passes the system's clock, and tests pass
//! a clock that they can set.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

pub use countersign_verification::clock::{Clock, SettableClock, SystemClock};

use crate::domain::time::Timestamp;

/// The clock of this machine, corrected to the clock of the database. All replicas correct their
/// clocks in this way, so they agree on when a session expires and how long a token may be
/// replayed.
pub struct SharedClock {
    own: Arc<dyn Clock>,
    /// The number of microseconds by which the database is ahead of `own`.
    ahead: AtomicI64,
}

impl SharedClock {
    /// Creates a shared clock that is not corrected yet.
    pub fn new(own: Arc<dyn Clock>) -> Self {
        Self { own, ahead: AtomicI64::new(0) }
    }

    /// Returns the clock of this machine, without the correction.
    pub fn own(&self) -> &Arc<dyn Clock> {
        &self.own
    }

    /// Converts an instant of this machine's clock to the shared time.
    pub fn shared(&self, own: Timestamp) -> Timestamp {
        Timestamp::from_micros(own.micros().saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// Adjusts the correction by `shared`, the time that the database's clock showed at some
    /// instant between `before` and `after` of this machine's clock. The correction changes no more
    /// than these bounds require, so that it does not vary with the duration of the request.
    pub fn adjust_correction(&self, before: Timestamp, shared: Timestamp, after: Timestamp) {
        let least = shared.micros().saturating_sub(after.micros());
        let most = shared.micros().saturating_sub(before.micros()).max(least);
        self.ahead.store(self.ahead.load(Ordering::Relaxed).clamp(least, most), Ordering::Relaxed);
    }
}

impl fmt::Debug for SharedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedClock").field("ahead", &self.ahead).finish_non_exhaustive()
    }
}

impl Clock for SharedClock {
    fn now(&self) -> Timestamp {
        self.shared(self.own.now())
    }

    fn uptime(&self) -> Duration {
        self.own.uptime()
    }
}

/// Lets `governor` measure time by the uptime of a clock.
#[derive(Clone)]
pub struct Uptime(pub Arc<dyn Clock>);

impl governor::clock::Clock for Uptime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.uptime()
    }
}

impl fmt::Debug for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Uptime")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_clock_changes_its_correction_no_more_than_it_must() {
        let own = Arc::new(SettableClock::at(Timestamp::from_seconds(1000)));
        let clock = SharedClock::new(own.clone());
        let at = |millis: u64| Timestamp::from_seconds(1000).plus(Duration::from_millis(millis));
        // The database was asked at 0 ms, and its answer came at 10 ms.
        for (shared, ahead) in
            [(5, 0), (4_010, 4_000), (4_009, 4_000), (4_000, 4_000), (3_990, 3_990), (3_995, 3_990)]
        {
            clock.adjust_correction(at(0), at(shared), at(10));
            assert_eq!(clock.now(), at(ahead), "{shared}");
        }
        clock.adjust_correction(at(6_000), at(2_000), at(6_010));
        assert_eq!(clock.now(), Timestamp::from_seconds(996), "the database's clock is behind");
        own.advance(Duration::from_secs(1));
        assert_eq!(
            (clock.now(), clock.uptime()),
            (Timestamp::from_seconds(997), Duration::from_secs(1))
        );
    }
}
