//! The counts of a store since the start of the process, for metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::batch::QueueCounts;

/// The counts of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreCounts {
    /// The queue of each kind of write.
    pub queues: Vec<Arc<QueueCounts>>,
    /// The pool of connections, if there is one.
    pub connections: Option<ConnectionCounts>,
}

/// The number of operations that wait for a connection. The pool counts waits only when they end,
/// and never those whose caller goes away.
#[derive(Debug, Default)]
pub struct Waiting(AtomicU32);

/// An operation that waits until this is dropped.
#[derive(Debug)]
pub struct WaitGuard<'a>(&'a Waiting);

impl Waiting {
    /// Begins to wait.
    pub fn begin(&self) -> WaitGuard<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        WaitGuard(self)
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counts of a pool of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCounts {
    /// The connections that are in use.
    pub in_use: u32,
    /// The open connections that are not in use.
    pub idle: u32,
    /// The operations that wait for a connection.
    pub waiting: u32,
    /// The number of times that a connection was asked for.
    pub checkouts: u64,
    /// The number of operations that had to wait for a connection, and got one.
    pub waits: u64,
    /// The number of operations that did not get a connection in time.
    pub timeouts: u64,
    /// The time that all operations together have waited.
    pub waited: Duration,
}

impl ConnectionCounts {
    /// Reads the counts of a pool.
    pub fn of(state: &bb8::State, waiting: &Waiting) -> Self {
        let counts = &state.statistics;
        Self {
            in_use: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waiting: waiting.0.load(Ordering::Relaxed),
            checkouts: counts.get_started,
            waits: counts.get_waited,
            timeouts: counts.get_timed_out,
            waited: counts.get_wait_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_waits_until_it_has_a_connection_or_its_caller_goes_away() {
        let waiting = Waiting::default();
        let (first, second) = (waiting.begin(), waiting.begin());
        assert_eq!(waiting.0.load(Ordering::Relaxed), 2);
        drop(first);
        drop(second);
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
    }
}
