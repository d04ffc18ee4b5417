//! Limits the bytes that are read from a connection before other tasks run.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The size of a budget in bytes. Hundreds of calls fit in it, and any message that is not a large
/// batch. A read that begins before the budget is spent may exceed it.
pub(crate) const BUDGET_BYTES: usize = 64 * 1024;

/// Counts the bytes that are read from a connection. The connection stops reading once the budget
/// is spent. There is no limit until the budget is replenished for the first time.
#[derive(Clone, Debug)]
pub struct ReadBudget(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    /// The number of bytes read so far.
    read: AtomicUsize,
    /// The value of `read` at which the budget is spent.
    spent_at: AtomicUsize,
}

impl ReadBudget {
    /// Creates a budget.
    pub(crate) fn new() -> Self {
        let (read, spent_at) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Self(Arc::new(Counters { read, spent_at }))
    }

    /// Returns the number of bytes that have been read so far.
    pub fn bytes(&self) -> usize {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Starts a new budget of `BUDGET_BYTES`. The rest of the previous budget is lost.
    pub fn replenish(&self) {
        self.0.spent_at.store(self.bytes().saturating_add(BUDGET_BYTES), Ordering::Relaxed);
    }

    pub(super) fn spend(&self, bytes: usize) {
        self.0.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.bytes() >= self.0.spent_at.load(Ordering::Relaxed)
    }
}
