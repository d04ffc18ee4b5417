//! The time as a parameter: the system's in production, a settable one in tests.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
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
        // CLOCK_MONOTONIC, and with it the standard library's Instant, stands still while the machine sleeps.
        let since_boot = clock_gettime(ClockId::Boottime);
        Duration::new(since_boot.tv_sec.unsigned_abs(), u32::try_from(since_boot.tv_nsec).unwrap_or_default())
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
