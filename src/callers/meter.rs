//! Limits how many calls are under way, in all and of one caller. A call beyond the limits is
//! refused at once, before it costs anything.
//!
//! The counts are atomics. The semaphores of tokio would do the same, but they take a lock whenever
//! a permit is given back, and all calls to Validate would share it.

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
use crate::{
    clock::{Clock, Uptime},
    domain::permission::CostClass,
};

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

/// The limits of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimits {
    /// Calls under way at once.
    pub calls: usize,
    /// Calls begun in a second, in the long run; as many may come at once. `None` is no limit.
    pub per_second: Option<NonZeroU32>,
}

/// The wait that is suggested to a caller who was refused because of calls of others, or of its
/// own, that are under way.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// The same where calls wait in a queue, which is worked off sooner.
pub(super) const QUEUE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Counts the permits that are taken.
#[derive(Debug, Default)]
struct Permits(AtomicUsize);

impl Permits {
    /// Takes a permit unless `limit` are taken already.
    fn try_acquire(&self, limit: usize) -> bool {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= limit {
            let _ = self.release();
        }
        before < limit
    }

    /// Gives a permit back, and returns how many were taken with it.
    fn release(&self) -> usize {
        self.0.fetch_sub(1, Ordering::Relaxed)
    }

    fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The part of a burst limit that may be taken for longer.
const SUSTAINED_PART: usize = 8;
/// The same for writes: the more there are, the more of them share a commit.
const SUSTAINED_PART_OF_WRITES: usize = 4;
/// The time that a burst may last: many calls come together, or a disk pauses, and they are soon
/// done.
const BURST: Duration = Duration::from_millis(250);
/// Bursts are allowed again when no call has been refused for this long.
const COOL_DOWN: Duration = Duration::from_secs(1);

/// Limits calls that wait for the same thing. Each makes those behind it wait, so as many as may
/// wait for a moment must not wait for long: more than the sustained limit are allowed for
/// [`BURST`] only, and then not before the [`COOL_DOWN`] is over.
#[derive(Debug)]
struct BurstLimiter {
    permits: Permits,
    limit: usize,
    sustained_limit: usize,
    /// The time since which more than `sustained_limit` permits are taken, in microseconds;
    /// [`NO_BURST`] if no more are.
    burst_since: AtomicU64,
    /// The end of the cool-down, in microseconds.
    cool_down_until: AtomicU64,
}

const NO_BURST: u64 = u64::MAX;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl BurstLimiter {
    fn new(limit: usize, sustained_part: usize) -> Self {
        Self {
            permits: Permits::default(),
            limit,
            sustained_limit: limit.div_ceil(sustained_part),
            burst_since: AtomicU64::new(NO_BURST),
            cool_down_until: AtomicU64::new(0),
        }
    }

    fn try_acquire(&self, clock: &dyn Clock) -> bool {
        let before = self.permits.0.fetch_add(1, Ordering::Relaxed);
        if before == self.sustained_limit {
            // A call that has come and gone at the same time may have left another value here.
            self.burst_since.store(micros(clock.uptime()), Ordering::Relaxed);
        }
        let is_allowed = before < self.sustained_limit
            || (before < self.limit && !self.is_cooling_down(clock.uptime()));
        if !is_allowed {
            let _ = self.permits.release();
        }
        is_allowed
    }

    /// Returns whether a permit could be acquired, and keeps none.
    fn has_room(&self, clock: &dyn Clock) -> bool {
        let is_allowed = self.try_acquire(clock);
        if is_allowed {
            self.release();
        }
        is_allowed
    }

    /// Returns whether a burst has lasted for too long, and if so begins the cool-down anew.
    fn is_cooling_down(&self, now: Duration) -> bool {
        if micros(now) >= self.cool_down_until.load(Ordering::Relaxed) {
            let since = self.burst_since.load(Ordering::Relaxed);
            if since == NO_BURST {
                self.burst_since.store(micros(now), Ordering::Relaxed);
            }
            if micros(now).saturating_sub(since) < micros(BURST) {
                return false;
            }
            self.burst_since.store(NO_BURST, Ordering::Relaxed);
        }
        self.cool_down_until.store(micros(now + COOL_DOWN), Ordering::Relaxed);
        true
    }

    fn release(&self) {
        if self.permits.release() == self.sustained_limit + 1 {
            self.burst_since.store(NO_BURST, Ordering::Relaxed);
        }
    }
}

/// Limits the calls of all callers together.
pub struct ConcurrencyLimits {
    ceilings: Ceilings,
    calls: Permits,
    reads: BurstLimiter,
    creations: BurstLimiter,
    refreshes: BurstLimiter,
    batches: BurstLimiter,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for ConcurrencyLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimits")
            .field("ceilings", &self.ceilings)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl ConcurrencyLimits {
    /// Creates limits with these ceilings.
    pub fn new(ceilings: Ceilings, clock: Arc<dyn Clock>) -> Self {
        let batches = ceilings.batches.saturating_mul(SUSTAINED_PART);
        Self {
            calls: Permits::default(),
            reads: BurstLimiter::new(ceilings.reads, SUSTAINED_PART),
            creations: BurstLimiter::new(ceilings.writes, SUSTAINED_PART_OF_WRITES),
            refreshes: BurstLimiter::new(ceilings.writes, SUSTAINED_PART_OF_WRITES),
            batches: BurstLimiter::new(batches, SUSTAINED_PART),
            ceilings,
            clock,
        }
    }

    /// Calls under way.
    pub fn calls(&self) -> usize {
        self.calls.taken()
    }

    /// Acquires the permit for a batch that is being judged; `None` if there are too many.
    pub fn acquire_batch(self: &Arc<Self>) -> Option<BatchPermit> {
        self.batches.try_acquire(&*self.clock).then(|| BatchPermit(self.clone()))
    }

    /// The limiter of a class of calls that wait for a scarce resource.
    fn burst_limiter(&self, class: CostClass) -> Option<&BurstLimiter> {
        match class {
            CostClass::Light | CostClass::Batch | CostClass::Change => None,
            CostClass::Read => Some(&self.reads),
            CostClass::Creation => Some(&self.creations),
            CostClass::Refresh => Some(&self.refreshes),
        }
    }
}

/// The permit of a batch that is being judged. It is given back when it is dropped.
#[derive(Debug)]
pub struct BatchPermit(Arc<ConcurrencyLimits>);

impl Drop for BatchPermit {
    fn drop(&mut self) {
        self.0.batches.release();
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Uptime, NoOpMiddleware<Duration>>;

/// Limits the calls of one caller, by how many are under way and by how many began of late.
pub struct Meter {
    limits: CallerLimits,
    concurrency: Arc<ConcurrencyLimits>,
    calls: Permits,
    rate: Option<(Limiter, Uptime)>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("limits", &self.limits)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Meter {
    /// Creates the meter of a caller with these limits.
    pub fn new(
        limits: CallerLimits,
        concurrency: Arc<ConcurrencyLimits>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let rate = limits.per_second.map(|calls| {
            let clock = Uptime(clock);
            (RateLimiter::direct_with_clock(Quota::per_second(calls), clock.clone()), clock)
        });
        Self { limits, concurrency, calls: Permits::default(), rate }
    }

    /// The limits of the caller.
    pub fn limits(&self) -> CallerLimits {
        self.limits
    }

    /// Lets a call in unless a limit is reached. It counts as under way until its permit is
    /// dropped.
    pub fn begin(self: &Arc<Self>, class: CostClass) -> Result<CallPermit, Refusal> {
        if !self.calls.try_acquire(self.limits.calls) {
            return Err(Refusal::OverLimit { wait: RETRY_DELAY });
        }
        // A refusal from here on drops the permit, which gives back all that was acquired.
        let mut permit = CallPermit { meter: self.clone(), is_counted: false, burst_limited: None };
        if let Some((limiter, clock)) = &self.rate
            && let Err(not_until) = limiter.check()
        {
            return Err(Refusal::OverLimit {
                wait: not_until.wait_time_from(clock::Clock::now(clock)),
            });
        }
        let concurrency = &self.concurrency;
        permit.is_counted = concurrency.calls.try_acquire(concurrency.ceilings.calls);
        if !permit.is_counted {
            return Err(Refusal::Overloaded { wait: RETRY_DELAY });
        }
        if let Some(limiter) = concurrency.burst_limiter(class) {
            if !limiter.try_acquire(&*concurrency.clock) {
                return Err(Refusal::Overloaded { wait: QUEUE_RETRY_DELAY });
            }
            permit.burst_limited = Some(class);
        }
        // A batch acquires its own permit when it is judged.
        if class == CostClass::Batch && !concurrency.batches.has_room(&*concurrency.clock) {
            return Err(Refusal::Overloaded { wait: QUEUE_RETRY_DELAY });
        }
        Ok(permit)
    }
}

/// The permit of a call that has been let in. It is given back when it is dropped.
#[derive(Debug)]
pub struct CallPermit {
    meter: Arc<Meter>,
    /// Set if the call counts among those of all callers.
    is_counted: bool,
    /// The class whose burst limiter counts the call, if one does.
    burst_limited: Option<CostClass>,
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        let Meter { calls, concurrency, .. } = &*self.meter;
        let _ = calls.release();
        if self.is_counted {
            let _ = concurrency.calls.release();
        }
        if let Some(limiter) = self.burst_limited.and_then(|class| concurrency.burst_limiter(class))
        {
            limiter.release();
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

    fn concurrency(calls: usize, reads: usize) -> Arc<ConcurrencyLimits> {
        Arc::new(ConcurrencyLimits::new(Ceilings { calls, reads, writes: 1, batches: 1 }, clock()))
    }

    fn meter(
        concurrency: &Arc<ConcurrencyLimits>,
        calls: usize,
        per_second: u32,
    ) -> (Arc<Meter>, Arc<SettableClock>) {
        let clock = clock();
        let limits = CallerLimits { calls, per_second: NonZeroU32::new(per_second) };
        (Arc::new(Meter::new(limits, concurrency.clone(), clock.clone())), clock)
    }

    #[test]
    fn one_callers_limit_leaves_room_for_others_and_what_was_refused_counts_for_nothing() {
        let concurrency = concurrency(3, 3);
        let ((greedy, _), (modest, _)) = (meter(&concurrency, 2, 0), meter(&concurrency, 2, 0));
        let first = greedy.begin(CostClass::Light).unwrap();
        let second = greedy.begin(CostClass::Read).unwrap();
        for _ in 0..10 {
            assert!(matches!(greedy.begin(CostClass::Light), Err(Refusal::OverLimit { .. })));
        }
        let third = modest.begin(CostClass::Read).unwrap();
        for _ in 0..10 {
            assert!(matches!(modest.begin(CostClass::Light), Err(Refusal::Overloaded { .. })));
        }
        assert_eq!(concurrency.calls(), 3);
        drop(first);
        assert!(modest.begin(CostClass::Light).is_ok());
        drop((second, third));
        assert_eq!((concurrency.calls(), concurrency.reads.permits.taken()), (0, 0));
        assert_eq!((greedy.calls.taken(), modest.calls.taken()), (0, 0));
    }

    #[test]
    fn reads_have_a_ceiling_of_their_own() {
        let concurrency = concurrency(10, 1);
        let (caller, _) = meter(&concurrency, 10, 0);
        let reading = caller.begin(CostClass::Read).unwrap();
        assert!(matches!(caller.begin(CostClass::Read), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(CostClass::Light).unwrap();
        drop(reading);
        assert!(caller.begin(CostClass::Read).is_ok());
    }

    #[test]
    fn creations_refreshes_and_revocations_are_not_in_each_others_way() {
        let concurrency = concurrency(10, 1);
        let (caller, _) = meter(&concurrency, 10, 0);
        let _first = caller.begin(CostClass::Creation).unwrap();
        assert!(caller.begin(CostClass::Creation).is_err());
        let _other = caller.begin(CostClass::Refresh).unwrap();
        assert!(caller.begin(CostClass::Refresh).is_err());
        let _changes =
            [caller.begin(CostClass::Change).unwrap(), caller.begin(CostClass::Change).unwrap()];
    }

    #[test]
    fn a_batch_does_not_begin_while_there_is_no_room_to_judge_it() {
        let concurrency = concurrency(10, 1);
        let (caller, _) = meter(&concurrency, 10, 0);
        let begun = caller.begin(CostClass::Batch).unwrap();
        let judged: Vec<_> =
            (0..SUSTAINED_PART).map(|_| concurrency.acquire_batch().unwrap()).collect();
        assert!(concurrency.acquire_batch().is_none());
        assert!(matches!(caller.begin(CostClass::Batch), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(CostClass::Light).unwrap();
        drop(judged);
        let _waits = [
            caller.begin(CostClass::Batch).unwrap(),
            caller.begin(CostClass::Batch).unwrap(),
            begun,
        ];
        assert_eq!(concurrency.batches.permits.taken(), 0, "what is not judged yet takes no place");
    }

    #[test]
    fn many_may_come_together_but_when_they_keep_coming_only_a_part_may_wait() {
        let (limiter, clock) = (BurstLimiter::new(16, 8), clock());
        let come = |most: usize| (0..most).filter(|_| limiter.try_acquire(&*clock)).count();
        let go = |many: usize| (0..many).for_each(|_| limiter.release());
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
        assert_eq!(come(1), 0, "the burst has lasted for too long");
        go(15);
        clock.advance(COOL_DOWN / 2);
        assert_eq!(come(20), 2, "the part");
        clock.advance(COOL_DOWN / 2);
        assert_eq!(come(1), 0, "it begins to count anew with each that was refused");
        go(2);
        clock.advance(COOL_DOWN);
        assert_eq!(come(20), 16, "it is over");
    }

    #[test]
    fn a_rate_holds_in_the_long_run_and_says_when_the_next_call_may_come() {
        let concurrency = concurrency(10, 10);
        let (caller, clock) = meter(&concurrency, 10, 4);
        for _ in 0..4 {
            caller.begin(CostClass::Light).unwrap();
        }
        let Err(Refusal::OverLimit { wait }) = caller.begin(CostClass::Light) else {
            panic!("the fifth is one too many")
        };
        assert_eq!(wait, Duration::from_millis(250));
        clock.advance(wait);
        caller.begin(CostClass::Light).unwrap();
        assert!(caller.begin(CostClass::Light).is_err());
    }
}
