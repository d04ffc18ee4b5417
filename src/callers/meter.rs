//! How much is under way, and how much of that is one caller's: beyond the limits a call is refused at once, before it costs
//! anything.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};

use super::Refusal;
use crate::{clock::Clock, domain::permission::Burden};

/// Most calls under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Of all callers.
    pub calls: usize,
    /// Of these, those that read the database.
    pub reads: usize,
}

/// What one caller may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Calls under way at once.
    pub calls: usize,
    /// Calls begun in a second, in the long run; as many may come at once. None for no limit.
    pub per_second: Option<NonZeroU32>,
}

/// When to come again after having been refused because of what others, or the caller's own calls, keep busy.
pub(super) const SOON: Duration = Duration::from_millis(500);

/// A number that must not exceed a ceiling.
#[derive(Debug, Default)]
struct Level(AtomicUsize);

impl Level {
    fn rise(&self, ceiling: usize) -> bool {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= ceiling {
            self.fall();
        }
        before < ceiling
    }

    fn fall(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is under way in all.
#[derive(Debug)]
pub struct Gate {
    ceilings: Ceilings,
    calls: Level,
    reads: Level,
}

impl Gate {
    /// Lets nobody in beyond these.
    pub fn new(ceilings: Ceilings) -> Self {
        Self { ceilings, calls: Level::default(), reads: Level::default() }
    }

    /// Calls under way.
    pub fn calls(&self) -> usize {
        self.calls.0.load(Ordering::Relaxed)
    }

    /// What a kind of call must not exceed, besides the ceiling of all calls.
    fn of(&self, burden: Burden) -> Option<(&Level, usize)> {
        match burden {
            Burden::Light | Burden::Batch | Burden::Write => None,
            Burden::Read => Some((&self.reads, self.ceilings.reads)),
        }
    }
}

/// The service's clock, as the rate limiter wants it.
#[derive(Clone)]
struct Uptime(Arc<dyn Clock>);

impl clock::Clock for Uptime {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.uptime()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Uptime, NoOpMiddleware<Duration>>;

/// What one caller has under way, and how many calls it has begun of late.
pub struct Meter {
    allowance: Allowance,
    gate: Arc<Gate>,
    calls: Level,
    rate: Option<(Limiter, Uptime)>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("allowance", &self.allowance).field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Meter {
    /// For a caller with this allowance.
    pub fn new(allowance: Allowance, gate: Arc<Gate>, clock: Arc<dyn Clock>) -> Self {
        let rate = allowance.per_second.map(|calls| {
            let clock = Uptime(clock);
            (RateLimiter::direct_with_clock(Quota::per_second(calls), clock.clone()), clock)
        });
        Self { allowance, gate, calls: Level::default(), rate }
    }

    /// What the caller may have.
    pub fn allowance(&self) -> Allowance {
        self.allowance
    }

    /// Lets a call in, unless one too many is there already. It is under way until what is returned is dropped.
    pub fn begin(self: &Arc<Self>, burden: Burden) -> Result<UnderWay, Refusal> {
        if !self.calls.rise(self.allowance.calls) {
            return Err(Refusal::OverLimit { wait: SOON });
        }
        // From here on it is dropped, and with it all that was counted.
        let mut under_way = UnderWay { meter: self.clone(), in_gate: false, special: None };
        if let Some((limiter, clock)) = &self.rate
            && let Err(not_until) = limiter.check()
        {
            return Err(Refusal::OverLimit { wait: not_until.wait_time_from(clock::Clock::now(clock)) });
        }
        let gate = &self.gate;
        under_way.in_gate = gate.calls.rise(gate.ceilings.calls);
        if !under_way.in_gate {
            return Err(Refusal::Overloaded { wait: SOON });
        }
        if let Some((level, ceiling)) = gate.of(burden) {
            if !level.rise(ceiling) {
                return Err(Refusal::Overloaded { wait: SOON });
            }
            under_way.special = Some(burden);
        }
        Ok(under_way)
    }
}

/// A call that has been let in.
#[derive(Debug)]
pub struct UnderWay {
    meter: Arc<Meter>,
    in_gate: bool,
    /// As what it is counted besides.
    special: Option<Burden>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.meter.calls.fall();
        if self.in_gate {
            self.meter.gate.calls.fall();
        }
        if let Some((level, _)) = self.special.and_then(|burden| self.meter.gate.of(burden)) {
            level.fall();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::SettableClock, domain::time::Timestamp};

    fn gate(calls: usize, reads: usize) -> Arc<Gate> {
        Arc::new(Gate::new(Ceilings { calls, reads }))
    }

    fn meter(gate: &Arc<Gate>, calls: usize, per_second: u32) -> (Arc<Meter>, Arc<SettableClock>) {
        let clock = Arc::new(SettableClock::at(Timestamp::from_micros(0)));
        let allowance = Allowance { calls, per_second: NonZeroU32::new(per_second) };
        (Arc::new(Meter::new(allowance, gate.clone(), clock.clone())), clock)
    }

    #[test]
    fn one_callers_limit_leaves_room_for_others_and_what_was_refused_counts_for_nothing() {
        let gate = gate(3, 3);
        let ((greedy, _), (modest, _)) = (meter(&gate, 2, 0), meter(&gate, 2, 0));
        let first = greedy.begin(Burden::Light).unwrap();
        let second = greedy.begin(Burden::Read).unwrap();
        for _ in 0..10 {
            assert!(matches!(greedy.begin(Burden::Light), Err(Refusal::OverLimit { .. })));
        }
        let third = modest.begin(Burden::Read).unwrap();
        for _ in 0..10 {
            assert!(matches!(modest.begin(Burden::Light), Err(Refusal::Overloaded { .. })));
        }
        assert_eq!(gate.calls(), 3);
        drop(first);
        assert!(modest.begin(Burden::Light).is_ok());
        drop((second, third));
        assert_eq!((gate.calls(), gate.reads.0.load(Ordering::Relaxed)), (0, 0));
        assert_eq!((greedy.calls.0.load(Ordering::Relaxed), modest.calls.0.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn reads_have_a_ceiling_of_their_own() {
        let gate = gate(10, 1);
        let (caller, _) = meter(&gate, 10, 0);
        let writing = caller.begin(Burden::Read).unwrap();
        assert!(matches!(caller.begin(Burden::Read), Err(Refusal::Overloaded { .. })));
        let _reading = caller.begin(Burden::Light).unwrap();
        drop(writing);
        assert!(caller.begin(Burden::Read).is_ok());
    }

    #[test]
    fn a_rate_holds_in_the_long_run_and_says_when_the_next_call_may_come() {
        let gate = gate(10, 10);
        let (caller, clock) = meter(&gate, 10, 4);
        for _ in 0..4 {
            caller.begin(Burden::Light).unwrap();
        }
        let Err(Refusal::OverLimit { wait }) = caller.begin(Burden::Light) else { panic!("the fifth is one too many") };
        assert_eq!(wait, Duration::from_millis(250));
        clock.advance(wait);
        caller.begin(Burden::Light).unwrap();
        assert!(caller.begin(Burden::Light).is_err());
    }
}
