//! The time as a parameter: the system's in production, a settable one in tests.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    domain::time::{Timestamp, micros},
    mutants::wall_clock_offset,
};

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump in either direction.
    fn now(&self) -> Timestamp;

    /// Time since some fixed instant. It never goes back, and goes on while the machine sleeps.
    fn uptime(&self) -> Duration;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // This is where the ban's exception lives.
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timestamp::from_micros(micros(since).saturating_add(wall_clock_offset())),
            Err(before) => Timestamp::from_micros(0).minus(before.duration()),
        }
    }

    fn uptime(&self) -> Duration {
        // CLOCK_MONOTONIC, and with it the standard library's Instant, stands still while the
        // machine sleeps.
        let since_boot = clock_gettime(ClockId::Boottime);
        Duration::new(
            since_boot.tv_sec.unsigned_abs(),
            u32::try_from(since_boot.tv_nsec).unwrap_or_default(),
        )
    }
}

/// The clock of this machine, put right by the clock of a database that other machines use, too: so
/// they judge by one time when a session expires and for how long a token may be replayed.
pub struct SharedClock {
    own: Arc<dyn Clock>,
    /// Microseconds by which the database is ahead.
    ahead: AtomicI64,
}

impl SharedClock {
    /// One that has not heard of another yet.
    pub fn new(own: Arc<dyn Clock>) -> Self {
        Self { own, ahead: AtomicI64::new(0) }
    }

    /// The clock of this machine as it is.
    pub fn own(&self) -> &Arc<dyn Clock> {
        &self.own
    }

    /// The shared time at an instant of our own clock.
    pub fn shared(&self, own: Timestamp) -> Timestamp {
        Timestamp::from_micros(own.micros().saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// Takes note of what the other clock has shown between two instants of ours. As long as that
    /// may be what we think, nothing changes, so that the time does not tremble.
    pub fn agree(&self, before: Timestamp, shared: Timestamp, after: Timestamp) {
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

/// The uptime of a clock, as `governor` measures time.
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

/// A clock that stands still until it is moved. For tests.
#[derive(Debug)]
pub struct SettableClock {
    now: AtomicI64,
    uptime_micros: AtomicU64,
}

impl SettableClock {
    /// A clock that stands at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { now: AtomicI64::new(now.micros()), uptime_micros: AtomicU64::new(0) }
    }

    /// Lets time pass.
    pub fn advance(&self, span: Duration) {
        self.now.fetch_add(micros(span), Ordering::SeqCst);
        self.uptime_micros.fetch_add(micros(span).unsigned_abs(), Ordering::SeqCst);
    }

    /// Sets the wall clock, as an administrator or NTP would: the uptime does not follow.
    pub fn jump_to(&self, now: Timestamp) {
        self.now.store(now.micros(), Ordering::SeqCst);
    }
}

impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.load(Ordering::SeqCst))
    }

    fn uptime(&self) -> Duration {
        Duration::from_micros(self.uptime_micros.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_clock_follows_as_far_as_it_must_and_no_further() {
        let own = Arc::new(SettableClock::at(Timestamp::from_seconds(1000)));
        let clock = SharedClock::new(own.clone());
        let at = |millis: u64| Timestamp::from_seconds(1000).plus(Duration::from_millis(millis));
        // It was asked at 0 ms, and the answer came at 10 ms.
        for (shared, ahead) in
            [(5, 0), (4_010, 4_000), (4_009, 4_000), (4_000, 4_000), (3_990, 3_990), (3_995, 3_990)]
        {
            clock.agree(at(0), at(shared), at(10));
            assert_eq!(clock.now(), at(ahead), "{shared}");
        }
        clock.agree(at(6_000), at(2_000), at(6_010));
        assert_eq!(clock.now(), Timestamp::from_seconds(996), "also if it is behind");
        own.advance(Duration::from_secs(1));
        assert_eq!(
            (clock.now(), clock.uptime()),
            (Timestamp::from_seconds(997), Duration::from_secs(1))
        );
    }
}
