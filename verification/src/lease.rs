//! The lease. Until it ends, this process may validate by its index. A revocation may have to be
//! acknowledged that this process may not have applied. Before that is done, the lease of this
//! process must have ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::Clock,
    time::{Timestamp, micros},
};

/// The rates of two clocks are assumed to differ by at most one part in this number.
pub const DRIFT: u32 = 1000;

/// The lease of this process.
pub struct Lease {
    clock: Arc<dyn Clock>,
    margin: i64,
    /// The end of the lease, in microseconds of uptime.
    deadline: AtomicU64,
    /// The wall clock minus the uptime at the start of the lease, in microseconds.
    offset: AtomicI64,
}

/// The lease as it was when a look-up began.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    deadline: u64,
    offset: i64,
}

const ENDED: u64 = 0;
const FOR_EVER: u64 = u64::MAX;

impl Held {
    /// The lease for a look-up that needs no lease.
    pub const FOR_EVER: Self = Self { deadline: FOR_EVER, offset: 0 };
}

/// The instant from which a lease counts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The instant on the uptime clock.
    pub uptime: Duration,
    /// The instant on the wall clock.
    pub now: Timestamp,
}

impl Lease {
    /// Creates the lease of a process that holds none yet. `margin` is the longest suspension of
    /// the process that its uptime clock may fail to count.
    pub fn new(clock: Arc<dyn Clock>, margin: Duration) -> Self {
        Self {
            clock,
            margin: micros(margin),
            deadline: AtomicU64::new(ENDED),
            offset: AtomicI64::new(0),
        }
    }

    /// Reads the clocks. This must happen before the renewal is sent.
    ///
    /// The wall clock must be read first. If the process pauses between the two readings, it then
    /// seems to a later check that the uptime clock has stood still, so a long pause only makes the
    /// lease void. In the opposite order, a pause could hide that the uptime clock has stood still.
    pub fn start(&self) -> Start {
        let now = self.clock.now();
        Start { uptime: self.clock.uptime(), now }
    }

    /// Takes the lease that begins at `start`. Its end may already have passed. The index must have
    /// applied the entries that came with the renewal.
    pub fn take(&self, start: Start, duration: Duration) {
        // The offset is stored first, so that no reader of the new deadline gets an older offset.
        self.offset
            .store(start.now.micros().saturating_sub(micros(start.uptime)), Ordering::Release);
        self.deadline.store(unsigned(start.uptime.saturating_add(duration)), Ordering::Release);
    }

    /// Takes a lease that never ends, because no other process can revoke anything.
    pub fn take_for_ever(&self) {
        self.deadline.store(FOR_EVER, Ordering::Release);
    }

    /// Returns whether the lease never ends.
    pub fn is_for_ever(&self) -> bool {
        self.deadline.load(Ordering::Acquire) == FOR_EVER
    }

    /// Ends the lease.
    pub fn end(&self) {
        self.deadline.store(ENDED, Ordering::Release);
    }

    /// Returns the current lease. A caller must load it *before* a look-up, because a later lease
    /// may rest on entries that the look-up did not see.
    pub fn load(&self) -> Held {
        let deadline = self.deadline.load(Ordering::Acquire);
        Held { deadline, offset: self.offset.load(Ordering::Acquire) }
    }

    /// Returns the time of the wall clock if the lease is still valid. A caller must check it
    /// *after* the look-up.
    ///
    /// A lease is also void if the wall clock and the uptime clock have moved apart since it was
    /// requested, because the uptime clock may have stood still during a pause.
    pub fn check(&self, held: Held) -> Option<Timestamp> {
        if held.deadline == FOR_EVER {
            return Some(self.clock.now());
        }
        let uptime = self.clock.uptime();
        let now = self.clock.now();
        let offset = now.micros().saturating_sub(micros(uptime));
        let are_clocks_in_step = offset.abs_diff(held.offset) <= self.margin.unsigned_abs();
        (unsigned(uptime) < held.deadline && are_clocks_in_step).then_some(now)
    }

    /// Returns the remaining time of the lease. Returns `None` if the lease has ended or is void,
    /// and [`Duration::MAX`] if it never ends.
    pub fn remaining(&self) -> Option<Duration> {
        let held = self.load();
        self.check(held)?;
        if held.deadline == FOR_EVER {
            return Some(Duration::MAX);
        }
        Some(Duration::from_micros(held.deadline.saturating_sub(unsigned(self.clock.uptime()))))
    }

    /// Returns the time of the uptime clock.
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
    const DURATION: Duration = Duration::from_secs(2);
    const MARGIN: Duration = Duration::from_millis(250);

    fn lease() -> (Arc<SettableClock>, Lease) {
        let clock = Arc::new(SettableClock::at(START));
        clock.advance(Duration::from_secs(100));
        let lease = Lease::new(clock.clone(), MARGIN);
        (clock, lease)
    }

    #[test]
    fn the_duration_of_a_lease_counts_from_before_the_renewal() {
        let (clock, lease) = lease();
        assert!(lease.check(lease.load()).is_none(), "no lease has been taken");
        let start = lease.start();
        clock.advance(Duration::from_millis(1500));
        lease.take(start, DURATION);
        assert_eq!(lease.remaining(), Some(Duration::from_millis(500)));
        clock.advance(Duration::from_millis(499));
        assert_eq!(lease.check(lease.load()), Some(clock.now()));
        clock.advance(Duration::from_millis(1));
        assert!(lease.check(lease.load()).is_none());
        assert_eq!(lease.remaining(), None);
    }

    #[test]
    fn a_lease_that_is_taken_after_the_look_up_does_not_cover_the_look_up() {
        let (_, lease) = lease();
        let held = lease.load();
        lease.take(lease.start(), DURATION);
        assert!(lease.check(held).is_none());
    }

    #[test]
    fn a_lease_is_void_once_the_clocks_have_moved_apart() {
        for direction in [1, -1] {
            let (clock, lease) = lease();
            lease.take(lease.start(), DURATION);
            let micros = clock.now().micros();
            clock.jump_to(Timestamp::from_micros(micros + direction * 250_000));
            assert!(lease.check(lease.load()).is_some(), "within the margin");
            clock.jump_to(Timestamp::from_micros(micros + direction * 251_000));
            assert!(lease.check(lease.load()).is_none());
            lease.take(lease.start(), DURATION);
            assert!(lease.check(lease.load()).is_some(), "a new lease starts from the new time");
        }
    }

    #[test]
    fn a_lease_can_be_ended_early_and_taken_for_ever() {
        let (_, lease) = lease();
        lease.take(lease.start(), DURATION);
        lease.end();
        assert!(lease.check(lease.load()).is_none());
        lease.take_for_ever();
        assert!(lease.check(lease.load()).is_some());
        assert_eq!(lease.remaining(), Some(Duration::MAX));
    }
}
