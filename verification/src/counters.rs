//! Counters that many threads update at once without a lock. Each thread updates a shard, so that
//! threads on different processors do not contend for one cache line; a reader adds the shards up.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// The most shards. More threads than this share them.
const MAX_SHARDS: usize = 16;

thread_local! {
    /// The number of this thread, in the order in which threads first updated anything.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of threads that have updated anything so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of this thread.
fn thread_number() -> usize {
    THREAD.get().unwrap_or_else(|| {
        let number = THREADS.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(number));
        number
    })
}

/// Copies of a value. Threads are spread over them, so that few threads update the same one.
#[derive(Debug)]
pub struct Shards<T>(Box<[CachePadded<T>]>);

impl<T> Shards<T> {
    /// Creates the shards.
    pub fn new(shard: impl Fn() -> T) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = processors.min(MAX_SHARDS);
        Self((0..shards).map(|_| CachePadded::new(shard())).collect())
    }

    /// Returns the shard of this thread.
    pub fn mine(&self) -> Option<&T> {
        self.0.get(thread_number() % self.0.len()).map(|shard| &**shard)
    }

    /// Adds up a count of all shards.
    pub fn sum(&self, count: impl Fn(&T) -> u64) -> u64 {
        self.iter().map(count).sum()
    }

    /// Returns all shards.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &**shard)
    }
}

/// Several counters, which are numbered.
#[derive(Debug)]
pub struct Counters(Shards<Box<[AtomicU64]>>);

impl Counters {
    /// Creates this number of counters.
    pub fn new(counters: usize) -> Self {
        Self(Shards::new(|| zeros(counters)))
    }

    /// Adds one to a counter.
    pub fn increment(&self, counter: usize) {
        if let Some(counter) = self.0.mine().and_then(|shard| shard.get(counter)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the value of a counter.
    pub fn get(&self, counter: usize) -> u64 {
        self.0.sum(|shard| load(shard.get(counter)))
    }
}

/// Returns counters that are all zero.
pub fn zeros(counters: usize) -> Box<[AtomicU64]> {
    (0..counters).map(|_| AtomicU64::new(0)).collect()
}

/// Returns the value of a counter, or zero if there is no such counter.
pub fn load(counter: Option<&AtomicU64>) -> u64 {
    counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
}
