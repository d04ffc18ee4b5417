//! The clock, which code takes as a parameter: production passes the system's clock, and tests pass
//! a clock that they can set.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};

use crate::time::{Timestamp, micros};

/// The clock that goes on while the machine sleeps. On macOS this is CLOCK_MONOTONIC.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UPTIME: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const UPTIME: ClockId = ClockId::Monotonic;

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the time of the wall clock, which may jump in either direction.
    fn now(&self) -> Timestamp;

    /// Returns the time since some fixed instant. It never goes back, and it advances while the
    /// machine sleeps.
    fn uptime(&self) -> Duration;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // All other code must use `Clock`.
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timestamp::from_micros(micros(since)),
            Err(before) => Timestamp::from_micros(0).minus(before.duration()),
        }
    }

    fn uptime(&self) -> Duration {
        // `Instant` of the standard library cannot be used: it reads a clock that stands still while
        // the machine sleeps.
        let since_boot = clock_gettime(UPTIME);
        Duration::new(
            since_boot.tv_sec.unsigned_abs(),
            u32::try_from(since_boot.tv_nsec).unwrap_or_default(),
        )
    }
}

/// A clock for tests, which stands still until it is moved.
#[derive(Debug)]
pub struct SettableClock {
    now: AtomicI64,
    uptime_micros: AtomicU64,
}

impl SettableClock {
    /// Creates a clock that stands at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { now: AtomicI64::new(now.micros()), uptime_micros: AtomicU64::new(0) }
    }

    /// Moves the wall clock and the uptime forward.
    pub fn advance(&self, span: Duration) {
        self.now.fetch_add(micros(span), Ordering::SeqCst);
        self.uptime_micros.fetch_add(micros(span).unsigned_abs(), Ordering::SeqCst);
    }

    /// Sets the wall clock, as an administrator or NTP would. The uptime does not change.
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
