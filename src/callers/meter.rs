//! How much is under way, and how much of that is one caller's: beyond the limits a call is refused
//! at once, before it costs anything.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
    /// Of these, those that read the database: so many for a moment, an eighth of that for longer.
    pub reads: usize,
    /// Creations, and as many refreshes: so many for a moment, a quarter of that for longer.
    pub writes: usize,
    /// Batches of tokens that are being judged, for longer; for a moment, eight times as many.
    pub batches: usize,
}

/// What one caller may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Calls under way at once.
    pub calls: usize,
    /// Calls begun in a second, in the long run; as many may come at once. None for no limit.
    pub per_second: Option<NonZeroU32>,
}

/// When to come again after having been refused because of what others, or the caller's own calls,
/// keep busy.
const SOON: Duration = Duration::from_millis(500);
/// The same where calls wait in a queue, which is worked off sooner.
pub(super) const SOONER: Duration = Duration::from_millis(100);

/// A number that must not exceed a ceiling.
#[derive(Debug, Default)]
struct Level(AtomicUsize);

impl Level {
    fn rise(&self, ceiling: usize) -> bool {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= ceiling {
            let _ = self.fall();
        }
        before < ceiling
    }

    /// Returns what it was.
    fn fall(&self) -> usize {
        self.0.fetch_sub(1, Ordering::Relaxed)
    }
}

/// What may be there for a moment may not be there for long, but only this part of it.
const LASTING_PART: usize = 8;
/// Of writes: the more there are, the more of them share a commit.
const LASTING_PART_OF_WRITES: usize = 4;
/// For how long calls may crowd: many come together, or a disk pauses, and they are soon done.
const BURST: Duration = Duration::from_millis(250);
/// When nobody has been refused for this long, a crowd is over.
const CALM: Duration = Duration::from_secs(1);

/// Calls that wait for the same thing. Each makes those behind it wait, so what may be there for a
/// moment must not be there for long: beyond a part of the ceiling, a crowd that has lasted for
/// [`BURST`] grows no more until it is over.
#[derive(Debug)]
struct Crowd {
    level: Level,
    ceiling: usize,
    lasting_ceiling: usize,
    /// Since when there have been more than that, in microseconds; [`NOT_NOW`] if there are not.
    since: AtomicU64,
    /// Until when it is taken for a lasting one.
    lasts_until: AtomicU64,
}

const NOT_NOW: u64 = u64::MAX;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Crowd {
    fn new(ceiling: usize, lasting_part: usize) -> Self {
        let (since, lasts_until) = (AtomicU64::new(NOT_NOW), AtomicU64::new(0));
        Self {
            level: Level::default(),
            ceiling,
            lasting_ceiling: ceiling.div_ceil(lasting_part),
            since,
            lasts_until,
        }
    }

    fn rise(&self, clock: &dyn Clock) -> bool {
        let before = self.level.0.fetch_add(1, Ordering::Relaxed);
        if before == self.lasting_ceiling {
            // Whatever was left there by two who came and went at the same time.
            self.since.store(micros(clock.uptime()), Ordering::Relaxed);
        }
        let rises =
            before < self.lasting_ceiling || (before < self.ceiling && !self.lasts(clock.uptime()));
        if !rises {
            self.level.fall();
        }
        rises
    }

    fn has_room(&self, clock: &dyn Clock) -> bool {
        let rises = self.rise(clock);
        if rises {
            self.fall();
        }
        rises
    }

    fn lasts(&self, now: Duration) -> bool {
        if micros(now) >= self.lasts_until.load(Ordering::Relaxed) {
            let since = self.since.load(Ordering::Relaxed);
            if since == NOT_NOW {
                self.since.store(micros(now), Ordering::Relaxed);
            }
            if micros(now).saturating_sub(since) < micros(BURST) {
                return false;
            }
            self.since.store(NOT_NOW, Ordering::Relaxed);
        }
        self.lasts_until.store(micros(now + CALM), Ordering::Relaxed);
        true
    }

    fn fall(&self) {
        if self.level.fall() == self.lasting_ceiling + 1 {
            self.since.store(NOT_NOW, Ordering::Relaxed);
        }
    }
}

/// What is under way in all.
pub struct Gate {
    ceilings: Ceilings,
    calls: Level,
    reads: Crowd,
    creations: Crowd,
    refreshes: Crowd,
    batches: Crowd,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("ceilings", &self.ceilings)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// Lets nobody in beyond these.
    pub fn new(ceilings: Ceilings, clock: Arc<dyn Clock>) -> Self {
        Self {
            calls: Level::default(),
            reads: Crowd::new(ceilings.reads, LASTING_PART),
            creations: Crowd::new(ceilings.writes, LASTING_PART_OF_WRITES),
            refreshes: Crowd::new(ceilings.writes, LASTING_PART_OF_WRITES),
            batches: Crowd::new(ceilings.batches.saturating_mul(LASTING_PART), LASTING_PART),
            ceilings,
            clock,
        }
    }

    /// Calls under way.
    pub fn calls(&self) -> usize {
        self.calls.0.load(Ordering::Relaxed)
    }

    /// A place for a batch that is being judged, until what is returned is dropped; none if there
    /// are too many.
    pub fn batch(self: &Arc<Self>) -> Option<BatchPlace> {
        self.batches.rise(&*self.clock).then(|| BatchPlace(self.clone()))
    }

    /// What a call waits with, if it waits for something of which there is little.
    fn crowd(&self, burden: Burden) -> Option<&Crowd> {
        match burden {
            Burden::Light | Burden::Batch | Burden::Change => None,
            Burden::Read => Some(&self.reads),
            Burden::Creation => Some(&self.creations),
            Burden::Refresh => Some(&self.refreshes),
        }
    }
}

/// That a batch is being judged.
#[derive(Debug)]
pub struct BatchPlace(Arc<Gate>);

impl Drop for BatchPlace {
    fn drop(&mut self) {
        self.0.batches.fall();
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
        f.debug_struct("Meter")
            .field("allowance", &self.allowance)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
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

    /// Lets a call in, unless one too many is there already. It is under way until what is returned
    /// is dropped.
    pub fn begin(self: &Arc<Self>, burden: Burden) -> Result<UnderWay, Refusal> {
        if !self.calls.rise(self.allowance.calls) {
            return Err(Refusal::OverLimit { wait: SOON });
        }
        // From here on it is dropped, and with it all that was counted.
        let mut under_way = UnderWay { meter: self.clone(), in_gate: false, special: None };
        if let Some((limiter, clock)) = &self.rate
            && let Err(not_until) = limiter.check()
        {
            return Err(Refusal::OverLimit {
                wait: not_until.wait_time_from(clock::Clock::now(clock)),
            });
        }
        let gate = &self.gate;
        under_way.in_gate = gate.calls.rise(gate.ceilings.calls);
        if !under_way.in_gate {
            return Err(Refusal::Overloaded { wait: SOON });
        }
        if let Some(crowd) = gate.crowd(burden) {
            if !crowd.rise(&*gate.clock) {
                return Err(Refusal::Overloaded { wait: SOONER });
            }
            under_way.special = Some(burden);
        }
        // It takes its place when it is judged.
        if burden == Burden::Batch && !gate.batches.has_room(&*gate.clock) {
            return Err(Refusal::Overloaded { wait: SOONER });
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
        if let Some(crowd) = self.special.and_then(|burden| self.meter.gate.crowd(burden)) {
            crowd.fall();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::SettableClock, domain::time::Timestamp};

    fn clock() -> Arc<SettableClock> {
        Arc::new(SettableClock::at(Timestamp::from_micros(0)))
    }

    fn gate(calls: usize, reads: usize) -> Arc<Gate> {
        Arc::new(Gate::new(Ceilings { calls, reads, writes: 1, batches: 1 }, clock()))
    }

    fn meter(gate: &Arc<Gate>, calls: usize, per_second: u32) -> (Arc<Meter>, Arc<SettableClock>) {
        let clock = clock();
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
        assert_eq!((gate.calls(), gate.reads.level.0.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(
            (greedy.calls.0.load(Ordering::Relaxed), modest.calls.0.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[test]
    fn reads_have_a_ceiling_of_their_own() {
        let gate = gate(10, 1);
        let (caller, _) = meter(&gate, 10, 0);
        let reading = caller.begin(Burden::Read).unwrap();
        assert!(matches!(caller.begin(Burden::Read), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(Burden::Light).unwrap();
        drop(reading);
        assert!(caller.begin(Burden::Read).is_ok());
    }

    #[test]
    fn creations_refreshes_and_revocations_are_not_in_each_others_way() {
        let gate = gate(10, 1);
        let (caller, _) = meter(&gate, 10, 0);
        let _first = caller.begin(Burden::Creation).unwrap();
        assert!(caller.begin(Burden::Creation).is_err());
        let _other = caller.begin(Burden::Refresh).unwrap();
        assert!(caller.begin(Burden::Refresh).is_err());
        let _changes =
            [caller.begin(Burden::Change).unwrap(), caller.begin(Burden::Change).unwrap()];
    }

    #[test]
    fn a_batch_does_not_begin_while_there_is_no_room_to_judge_it() {
        let gate = gate(10, 1);
        let (caller, _) = meter(&gate, 10, 0);
        let begun = caller.begin(Burden::Batch).unwrap();
        let judged: Vec<_> = (0..LASTING_PART).map(|_| gate.batch().unwrap()).collect();
        assert!(gate.batch().is_none());
        assert!(matches!(caller.begin(Burden::Batch), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(Burden::Light).unwrap();
        drop(judged);
        let _waits =
            [caller.begin(Burden::Batch).unwrap(), caller.begin(Burden::Batch).unwrap(), begun];
        assert_eq!(
            gate.batches.level.0.load(Ordering::Relaxed),
            0,
            "what is not judged yet takes no place"
        );
    }

    #[test]
    fn many_may_come_together_but_when_they_keep_coming_only_a_part_may_wait() {
        let (crowd, clock) = (Crowd::new(16, 8), clock());
        let come = |most: usize| (0..most).filter(|_| crowd.rise(&*clock)).count();
        let go = |many: usize| (0..many).for_each(|_| crowd.fall());
        for _ in 0..20 {
            assert_eq!(come(20), 16, "all that the ceiling allows");
            clock.advance(BURST / 2);
            go(16);
        }
        assert_eq!(come(20), 16);
        for _ in 0..9 {
            clock.advance(BURST / 10);
            go(4);
            assert_eq!(come(4), 4, "more than the part, but not for long");
        }
        clock.advance(BURST / 10);
        go(1);
        assert_eq!(come(1), 0, "they have crowded for too long");
        go(15);
        clock.advance(CALM / 2);
        assert_eq!(come(20), 2, "the part");
        clock.advance(CALM / 2);
        assert_eq!(come(1), 0, "it begins to count anew with each that was refused");
        go(2);
        clock.advance(CALM);
        assert_eq!(come(20), 16, "it is over");
    }

    #[test]
    fn a_rate_holds_in_the_long_run_and_says_when_the_next_call_may_come() {
        let gate = gate(10, 10);
        let (caller, clock) = meter(&gate, 10, 4);
        for _ in 0..4 {
            caller.begin(Burden::Light).unwrap();
        }
        let Err(Refusal::OverLimit { wait }) = caller.begin(Burden::Light) else {
            panic!("the fifth is one too many")
        };
        assert_eq!(wait, Duration::from_millis(250));
        clock.advance(wait);
        caller.begin(Burden::Light).unwrap();
        assert!(caller.begin(Burden::Light).is_err());
    }
}
