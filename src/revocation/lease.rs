//! Until when the index may be believed: a promise of the others, who wait for its end before they
//! say that something is revoked which this replica may not have heard of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::Clock,
    domain::{
        lease::LeaseConfig,
        time::{Timestamp, micros},
    },
};

/// The lease of this process.
pub struct Lease {
    clock: Arc<dyn Clock>,
    margin: i64,
    /// In microseconds of uptime.
    deadline: AtomicU64,
    /// The wall clock less the uptime when the lease was asked for, in microseconds.
    offset: AtomicI64,
}

/// The lease as it was when a look-up began.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    deadline: u64,
    offset: i64,
}

const OVER: u64 = 0;
const FOR_EVER: u64 = u64::MAX;

impl Held {
    /// For a look-up that needs no lease.
    pub const FOR_EVER: Self = Self { deadline: FOR_EVER, offset: 0 };
}

/// The instant from which a lease will run.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// By the clock of uptime.
    pub uptime: Duration,
    /// By the wall clock.
    pub now: Timestamp,
}

impl Lease {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>, lease_config: &LeaseConfig) -> Self {
        Self {
            clock,
            margin: micros(lease_config.margin),
            deadline: AtomicU64::new(OVER),
            offset: AtomicI64::new(0),
        }
    }

    /// Reads the clocks, before the lease is asked for.
    ///
    /// The wall clock first, so that a pause in between counts as one that has gone unnoticed.
    pub fn start(&self) -> Start {
        let now = self.clock.now();
        Start { uptime: self.clock.uptime(), now }
    }

    /// Takes the lease, if it is not over yet. The index must have applied what came with it.
    pub fn take(&self, start: Start, duration: Duration) {
        // Whoever finds the new deadline must not find an older offset.
        self.offset
            .store(start.now.micros().saturating_sub(micros(start.uptime)), Ordering::Release);
        self.deadline.store(unsigned(start.uptime + duration), Ordering::Release);
    }

    /// Takes one that does not end, because nobody else can revoke.
    pub fn take_for_ever(&self) {
        self.deadline.store(FOR_EVER, Ordering::Release);
    }

    /// Returns whether it does not end.
    pub fn is_for_ever(&self) -> bool {
        self.deadline.load(Ordering::Acquire) == FOR_EVER
    }

    /// Ends it.
    pub fn end(&self) {
        self.deadline.store(OVER, Ordering::Release);
    }

    /// The lease as it is, to be loaded *before* a look-up: one that is taken later knows of what
    /// was applied later.
    pub fn load(&self) -> Held {
        let deadline = self.deadline.load(Ordering::Acquire);
        Held { deadline, offset: self.offset.load(Ordering::Acquire) }
    }

    /// The time by the wall clock, if the lease still holds *after* the look-up.
    ///
    /// It is void, too, if the clocks have moved apart: then the machine was stopped, and the clock
    /// of uptime with it.
    pub fn check(&self, held: Held) -> Option<Timestamp> {
        if held.deadline == FOR_EVER {
            return Some(self.clock.now());
        }
        let uptime = self.clock.uptime();
        let now = self.clock.now();
        let offset = now.micros().saturating_sub(micros(uptime));
        let is_one_time = offset.abs_diff(held.offset) <= self.margin.unsigned_abs();
        (unsigned(uptime) < held.deadline && is_one_time).then_some(now)
    }

    /// Returns the rest of it; none if it is over, or void; [`Duration::MAX`] if it does not end.
    pub fn remaining(&self) -> Option<Duration> {
        let held = self.load();
        self.check(held)?;
        if held.deadline == FOR_EVER {
            return Some(Duration::MAX);
        }
        Some(Duration::from_micros(held.deadline.saturating_sub(unsigned(self.clock.uptime()))))
    }

    /// The clock of uptime.
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }
}

fn unsigned(span: Duration) -> u64 {
    micros(span).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SettableClock;

    const START: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const LEASE_CONFIG: LeaseConfig = LeaseConfig {
        duration: Duration::from_secs(2),
        renewal: Duration::from_millis(500),
        margin: Duration::from_millis(250),
        max_clock_skew: Duration::from_secs(5),
    };

    fn lease() -> (Arc<SettableClock>, Lease) {
        let clock = Arc::new(SettableClock::at(START));
        clock.advance(Duration::from_secs(100));
        let lease = Lease::new(clock.clone(), &LEASE_CONFIG);
        (clock, lease)
    }

    #[test]
    fn a_lease_ends_at_its_deadline_counted_from_before_it_was_asked_for() {
        let (clock, lease) = lease();
        assert!(lease.check(lease.load()).is_none(), "none has been taken");
        let start = lease.start();
        clock.advance(Duration::from_millis(1500));
        lease.take(start, LEASE_CONFIG.duration);
        assert_eq!(lease.remaining(), Some(Duration::from_millis(500)));
        clock.advance(Duration::from_millis(499));
        assert_eq!(lease.check(lease.load()), Some(clock.now()));
        clock.advance(Duration::from_millis(1));
        assert!(lease.check(lease.load()).is_none());
        assert_eq!(lease.remaining(), None);
    }

    #[test]
    fn what_was_looked_up_without_a_lease_is_not_judged_by_one_that_was_taken_since() {
        let (_, lease) = lease();
        let held = lease.load();
        lease.take(lease.start(), LEASE_CONFIG.duration);
        assert!(lease.check(held).is_none());
    }

    #[test]
    fn a_lease_is_void_once_the_clocks_have_moved_apart() {
        for direction in [1, -1] {
            let (clock, lease) = lease();
            lease.take(lease.start(), LEASE_CONFIG.duration);
            let micros = clock.now().micros();
            clock.jump_to(Timestamp::from_micros(micros + direction * 250_000));
            assert!(lease.check(lease.load()).is_some(), "within the margin");
            clock.jump_to(Timestamp::from_micros(micros + direction * 251_000));
            assert!(lease.check(lease.load()).is_none());
            lease.take(lease.start(), LEASE_CONFIG.duration);
            assert!(lease.check(lease.load()).is_some(), "a new one goes by the new time");
        }
    }

    #[test]
    fn a_lease_that_has_been_ended_is_over() {
        let (_, lease) = lease();
        lease.take(lease.start(), LEASE_CONFIG.duration);
        lease.end();
        assert!(lease.check(lease.load()).is_none());
        lease.take_for_ever();
        assert!(lease.check(lease.load()).is_some());
        assert_eq!(lease.remaining(), Some(Duration::MAX));
    }
}
