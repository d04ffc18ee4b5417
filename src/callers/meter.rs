//! Limits the number of calls under way, for all callers together and for each caller. A call
//! beyond the limits is refused immediately, before it uses any resource.
//!
//! The counts are atomics. Tokio's semaphores would also do, but they take a lock whenever a permit
//! is released, and all calls to Validate would contend for that lock.

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

/// The maximum numbers of calls that may be under way at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// The number of calls of all callers together.
    pub calls: usize,
    /// The number of calls that read the database during a short burst. Under sustained load, an
    /// eighth of this number is allowed.
    pub reads: usize,
    /// The number of creations, and separately of refreshes, during a short burst. Under sustained
    /// load, a quarter of this number is allowed.
    pub writes: usize,
    /// The number of batches of tokens that are being validated under sustained load. During a
    /// short burst, eight times this number is allowed.
    pub batches: usize,
}

/// The limits of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimits {
    /// The number of calls under way at the same time.
    pub calls: usize,
    /// The number of calls that may begin in a second on average. The same number may begin all at
    /// once. `None` means no limit.
    pub per_second: Option<NonZeroU32>,
}

/// The retry delay that is suggested to a caller when too many calls are under way.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// The retry delay for calls that would have waited in a queue. It is shorter, because a queue soon
/// has room again.
pub(super) const QUEUE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The number of permits that are taken.
#[derive(Debug, Default)]
struct Permits(AtomicUsize);

impl Permits {
    /// Takes a permit unless `limit` permits are taken already.
    fn try_acquire(&self, limit: usize) -> bool {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= limit {
            let _ = self.release();
        }
        before < limit
    }

    /// Releases a permit. Returns the number of permits that were taken before.
    fn release(&self) -> usize {
        self.0.fetch_sub(1, Ordering::Relaxed)
    }

    fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The burst limit is divided by this to get the sustained limit.
const SUSTAINED_DIVISOR: usize = 8;
/// The divisor for the sustained limit of writes. It is smaller than the divisor for other calls,
/// because the more writes there are, the more of them share a commit.
const SUSTAINED_DIVISOR_OF_WRITES: usize = 4;
/// The time that a burst may last. A short burst is harmless: it occurs when many calls arrive
/// together, or when the disk pauses, and all its calls are served soon.
const BURST: Duration = Duration::from_millis(250);
/// Bursts are allowed again when no call has been refused for this long.
const COOL_DOWN: Duration = Duration::from_secs(1);

/// Limits calls that wait for the same resource. Each of them makes the calls behind it wait, so a
/// long queue is acceptable for a moment but must not last. More calls than the sustained limit are
/// therefore allowed only for [`BURST`]. After that, they are not allowed again until [`COOL_DOWN`]
/// is over.
#[derive(Debug)]
struct BurstLimiter {
    permits: Permits,
    limit: usize,
    sustained_limit: usize,
    /// The uptime since which more than `sustained_limit` permits have been taken, in microseconds;
    /// [`NO_BURST`] if there is no burst.
    burst_since: AtomicU64,
    /// The uptime at which the cool-down ends, in microseconds.
    cool_down_until: AtomicU64,
}

const NO_BURST: u64 = u64::MAX;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl BurstLimiter {
    fn new(limit: usize, sustained_divisor: usize) -> Self {
        Self {
            permits: Permits::default(),
            limit,
            sustained_limit: limit.div_ceil(sustained_divisor),
            burst_since: AtomicU64::new(NO_BURST),
            cool_down_until: AtomicU64::new(0),
        }
    }

    fn try_acquire(&self, clock: &dyn Clock) -> bool {
        let before = self.permits.0.fetch_add(1, Ordering::Relaxed);
        if before == self.sustained_limit {
            // A burst begins. Its start replaces an earlier value, because a concurrent call that
            // ends the previous burst may not have reset the value yet.
            self.burst_since.store(micros(clock.uptime()), Ordering::Relaxed);
        }
        let is_allowed = before < self.sustained_limit
            || (before < self.limit && !self.is_cooling_down(clock.uptime()));
        if !is_allowed {
            let _ = self.permits.release();
        }
        is_allowed
    }

    /// Returns whether a permit could be acquired, without keeping it.
    fn has_room(&self, clock: &dyn Clock) -> bool {
        let is_allowed = self.try_acquire(clock);
        if is_allowed {
            self.release();
        }
        is_allowed
    }

    /// Returns whether no burst is allowed now, because the current burst has lasted for too long
    /// or the cool-down is not over. If no burst is allowed, restarts the cool-down.
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
        let batches = ceilings.batches.saturating_mul(SUSTAINED_DIVISOR);
        Self {
            calls: Permits::default(),
            reads: BurstLimiter::new(ceilings.reads, SUSTAINED_DIVISOR),
            creations: BurstLimiter::new(ceilings.writes, SUSTAINED_DIVISOR_OF_WRITES),
            refreshes: BurstLimiter::new(ceilings.writes, SUSTAINED_DIVISOR_OF_WRITES),
            batches: BurstLimiter::new(batches, SUSTAINED_DIVISOR),
            ceilings,
            clock,
        }
    }

    /// Returns the number of calls under way.
    pub fn calls(&self) -> usize {
        self.calls.taken()
    }

    /// Acquires the permit for a part of a call that costs more than its admission has counted.
    /// Returns `None` if too many calls do such work already.
    pub fn acquire(self: &Arc<Self>, work: Work) -> Option<WorkPermit> {
        let is_allowed = self.limiter_of(work).try_acquire(&*self.clock);
        is_allowed.then(|| WorkPermit { concurrency: self.clone(), work })
    }

    fn limiter_of(&self, work: Work) -> &BurstLimiter {
        match work {
            Work::Batch => &self.batches,
            Work::Read => &self.reads,
        }
    }

    /// Returns the burst limiter of a class, if its calls count from their admission on. (A batch
    /// counts only while it is being validated.)
    fn burst_limiter(&self, class: CostClass) -> Option<&BurstLimiter> {
        match class {
            CostClass::Light | CostClass::Batch | CostClass::Change => None,
            CostClass::Read => Some(&self.reads),
            CostClass::Creation => Some(&self.creations),
            CostClass::Refresh => Some(&self.refreshes),
        }
    }
}

/// A part of a call that costs more than its admission has counted, because only the request shows
/// the need for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The validation of a batch of tokens.
    Batch,
    /// A query of a call that usually needs none.
    Read,
}

/// The permit of work under way. Dropping it releases the permit.
#[derive(Debug)]
pub struct WorkPermit {
    concurrency: Arc<ConcurrencyLimits>,
    work: Work,
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        self.concurrency.limiter_of(self.work).release();
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Uptime, NoOpMiddleware<Duration>>;

/// Limits the number of calls that one caller has under way, and the rate at which it begins calls.
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

    /// Returns the limits of the caller.
    pub fn limits(&self) -> CallerLimits {
        self.limits
    }

    /// Admits a call unless a limit is reached. The call counts as under way until its permit is
    /// dropped.
    pub fn begin(self: &Arc<Self>, class: CostClass) -> Result<CallPermit, Refusal> {
        if !self.calls.try_acquire(self.limits.calls) {
            return Err(Refusal::OverLimit { wait: RETRY_DELAY });
        }
        // If a check below refuses the call, the permit is dropped, which releases what has been
        // acquired so far.
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
        // A batch acquires its own permit when it is validated.
        if class == CostClass::Batch && !concurrency.batches.has_room(&*concurrency.clock) {
            return Err(Refusal::Overloaded { wait: QUEUE_RETRY_DELAY });
        }
        Ok(permit)
    }
}

/// The permit of an admitted call. Dropping it releases the permit.
#[derive(Debug)]
pub struct CallPermit {
    meter: Arc<Meter>,
    /// True if the call counts against the limit of all callers together.
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
    fn a_caller_at_its_limit_leaves_room_for_others_and_refused_calls_do_not_count() {
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
    fn reads_have_a_limit_of_their_own() {
        let concurrency = concurrency(10, 1);
        let (caller, _) = meter(&concurrency, 10, 0);
        let reading = caller.begin(CostClass::Read).unwrap();
        assert!(matches!(caller.begin(CostClass::Read), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(CostClass::Light).unwrap();
        drop(reading);
        assert!(caller.begin(CostClass::Read).is_ok());
    }

    #[test]
    fn creations_refreshes_and_revocations_do_not_block_each_other() {
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
    fn a_batch_is_refused_while_there_is_no_room_to_validate_it() {
        let concurrency = concurrency(10, 1);
        let (caller, _) = meter(&concurrency, 10, 0);
        let begun = caller.begin(CostClass::Batch).unwrap();
        let validating: Vec<_> =
            (0..SUSTAINED_DIVISOR).map(|_| concurrency.acquire(Work::Batch).unwrap()).collect();
        assert!(concurrency.acquire(Work::Batch).is_none());
        assert!(matches!(caller.begin(CostClass::Batch), Err(Refusal::Overloaded { .. })));
        let _light = caller.begin(CostClass::Light).unwrap();
        drop(validating);
        let _waits = [
            caller.begin(CostClass::Batch).unwrap(),
            caller.begin(CostClass::Batch).unwrap(),
            begun,
        ];
        assert_eq!(
            concurrency.batches.permits.taken(),
            0,
            "a batch that is not being validated takes no permit"
        );
    }

    #[test]
    fn after_a_short_burst_only_the_sustained_limit_is_allowed_until_the_cool_down_is_over() {
        let (limiter, clock) = (BurstLimiter::new(16, 8), clock());
        let acquire = |most: usize| (0..most).filter(|_| limiter.try_acquire(&*clock)).count();
        let release = |many: usize| (0..many).for_each(|_| limiter.release());
        for _ in 0..20 {
            assert_eq!(acquire(20), 16, "the burst limit");
            clock.advance(BURST / 2);
            release(16);
        }
        assert_eq!(acquire(20), 16);
        for _ in 0..9 {
            clock.advance(BURST / 10);
            release(4);
            assert_eq!(acquire(4), 4, "the burst has not lasted for too long yet");
        }
        clock.advance(BURST / 10);
        release(1);
        assert_eq!(acquire(1), 0, "the burst has lasted for too long");
        release(15);
        clock.advance(COOL_DOWN / 2);
        assert_eq!(acquire(20), 2, "the sustained limit");
        clock.advance(COOL_DOWN / 2);
        assert_eq!(acquire(1), 0, "each refused call restarts the cool-down");
        release(2);
        clock.advance(COOL_DOWN);
        assert_eq!(acquire(20), 16, "the cool-down is over");
    }

    #[test]
    fn calls_beyond_the_rate_are_refused_until_the_returned_wait_is_over() {
        let concurrency = concurrency(10, 10);
        let (caller, clock) = meter(&concurrency, 10, 4);
        for _ in 0..4 {
            caller.begin(CostClass::Light).unwrap();
        }
        let Err(Refusal::OverLimit { wait }) = caller.begin(CostClass::Light) else {
            panic!("the fifth call exceeds the rate")
        };
        assert_eq!(wait, Duration::from_millis(250));
        clock.advance(wait);
        caller.begin(CostClass::Light).unwrap();
        assert!(caller.begin(CostClass::Light).is_err());
    }
}
