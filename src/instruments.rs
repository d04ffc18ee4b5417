//! Counters and histograms that many threads update at once without a lock. Each thread updates a
//! shard, so that threads on different processors do not contend for one cache line; a scrape adds
//! the shards up.

pub mod times;
pub mod traces;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use countersign_verification::counters::{Shards, load, zeros};
use tokio::time::Instant;

pub use countersign_verification::counters::Counters;

/// The upper bounds of the buckets of a duration, in seconds.
pub const BOUNDS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// The same bounds in nanoseconds.
const BOUND_NANOS: [u64; BOUNDS.len()] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// The durations of events of one kind, by bucket.
#[derive(Debug)]
struct Buckets {
    /// The number of durations in each bucket: those above the bound before, up to its own bound.
    /// The last bucket has those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// The sum of all durations, in nanoseconds.
    nanos: AtomicU64,
}

impl Buckets {
    fn new() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) }
    }

    fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUND_NANOS.iter().take_while(|bound| nanos > **bound).count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The distribution of durations at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// The sum of all durations, in seconds.
    pub sum: f64,
    /// The number of durations.
    pub count: u64,
    /// The upper bound of each bucket in seconds, and the number of durations in it (not
    /// cumulative). The last bound is [`f64::INFINITY`].
    pub buckets: Vec<(f64, u64)>,
}

impl Distribution {
    fn of<'a>(shards: impl Iterator<Item = &'a Buckets>) -> Self {
        let mut counts = [0; BOUNDS.len() + 1];
        let mut nanos = 0;
        for shard in shards {
            for (total, count) in counts.iter_mut().zip(&shard.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            nanos += shard.nanos.load(Ordering::Relaxed);
        }
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        Self {
            sum: Duration::from_nanos(nanos).as_secs_f64(),
            count: counts.iter().sum(),
            buckets: bounds.zip(counts).collect(),
        }
    }
}

/// The durations of events of one kind.
#[derive(Debug)]
pub struct Durations(Shards<Buckets>);

impl Default for Durations {
    fn default() -> Self {
        Self(Shards::new(Buckets::new))
    }
}

impl Durations {
    /// Adds a duration.
    pub fn observe(&self, duration: Duration) {
        if let Some(buckets) = self.0.mine() {
            buckets.observe(duration);
        }
    }

    /// Returns the distribution of all durations so far.
    pub fn distribution(&self) -> Distribution {
        Distribution::of(self.0.iter())
    }
}

/// The names and values of the labels that tell a kind of event from others.
pub type Labels = Vec<(&'static str, &'static str)>;

/// Events of several kinds, each of which ends with a code: how many there were by code, and how
/// long they took. Kinds and codes are numbered in the order of their labels and names.
#[derive(Debug)]
pub struct Events {
    kinds: Vec<Labels>,
    codes: &'static [&'static str],
    shards: Shards<Box<[KindOfEvent]>>,
}

/// Begins events. Events clone this, and so change a reference count of their own source; that of
/// [`Events`] would be contended by all sources.
#[derive(Clone, Debug)]
pub struct EventSource(Arc<Source>);

#[derive(Debug)]
struct Source {
    events: Arc<Events>,
}

impl EventSource {
    /// Creates a source of events that are counted in `events`.
    pub fn new(events: Arc<Events>) -> Self {
        Self(Arc::new(Source { events }))
    }

    /// Begins an event, which ends with `code` unless it gets another one.
    pub fn begin(&self, kind: usize, code: usize) -> Event {
        Event { source: self.clone(), kind, code, began: Instant::now() }
    }
}

/// An event under way. It ends, and is counted, when this is dropped.
#[derive(Debug)]
pub struct Event {
    source: EventSource,
    kind: usize,
    code: usize,
    began: Instant,
}

impl Event {
    /// Sets the code with which the event ends.
    pub fn set_code(&mut self, code: usize) {
        self.code = code;
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.source.0.events.observe(self.kind, self.code, self.began.elapsed());
    }
}

#[derive(Debug)]
struct KindOfEvent {
    by_code: Box<[AtomicU64]>,
    durations: Buckets,
}

impl Events {
    /// Creates the counters of kinds with these labels, and of codes with these names.
    pub fn new(kinds: Vec<Labels>, codes: &'static [&'static str]) -> Self {
        let kind = |_| KindOfEvent { by_code: zeros(codes.len()), durations: Buckets::new() };
        let shards = Shards::new(|| (0..kinds.len()).map(kind).collect());
        Self { kinds, codes, shards }
    }

    /// Returns the labels of all kinds.
    pub fn kinds(&self) -> &[Labels] {
        &self.kinds
    }

    /// Returns the names of all codes.
    pub fn codes(&self) -> &'static [&'static str] {
        self.codes
    }

    /// Counts an event.
    pub fn observe(&self, kind: usize, code: usize, duration: Duration) {
        let Some(kind) = self.shards.mine().and_then(|shard| shard.get(kind)) else { return };
        if let Some(count) = kind.by_code.get(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        kind.durations.observe(duration);
    }

    /// Returns the number of events of a kind that ended with a code.
    pub fn count(&self, kind: usize, code: usize) -> u64 {
        self.shards.sum(|shard| load(shard.get(kind).and_then(|kind| kind.by_code.get(code))))
    }

    /// Returns the distribution of the durations of a kind.
    pub fn distribution(&self, kind: usize) -> Distribution {
        let of_kind = self.shards.iter().filter_map(|shard| shard.get(kind));
        Distribution::of(of_kind.map(|kind| &kind.durations))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_many_threads_count_adds_up() {
        let kinds = vec![vec![("kind", "a")], vec![("kind", "b")]];
        let (events, counters) = (Events::new(kinds, &["x", "y", "z"]), Counters::new(2));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        events.observe(1, 2, Duration::from_micros(60));
                        counters.increment(1);
                    }
                });
            }
        });
        assert_eq!((events.count(1, 2), events.count(1, 1), events.count(0, 2)), (4000, 0, 0));
        assert_eq!((counters.get(0), counters.get(1)), (0, 4000));
        let distribution = events.distribution(1);
        assert_eq!(distribution.count, 4000);
        assert!((distribution.sum - 0.24).abs() < 1e-9, "{}", distribution.sum);
        assert_eq!(distribution.buckets[1], (0.000_1, 4000));
    }

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        for (bound, nanos) in BOUNDS.into_iter().zip(BOUND_NANOS) {
            assert_eq!(Duration::from_secs_f64(bound), Duration::from_nanos(nanos));
        }
        let durations = Durations::default();
        let counts = |durations: &Durations| {
            let buckets = durations.distribution().buckets;
            buckets.into_iter().map(|(_, count)| count).collect::<Vec<_>>()
        };
        for nanos in [0, 50_000, 50_001, 10_000_000_000, 10_000_000_001, u64::MAX / 4] {
            durations.observe(Duration::from_nanos(nanos));
        }
        let mut expected = [0; BOUNDS.len() + 1];
        (expected[0], expected[1], expected[16], expected[17]) = (2, 1, 1, 2);
        assert_eq!(counts(&durations), expected);
    }
}
