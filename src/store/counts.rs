//! The counts of a store since the start of the process, for metrics.

use std::{sync::Arc, time::Duration};

use super::batch::QueueCounts;

/// The counts of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreCounts {
    /// The queue of each kind of write.
    pub queues: Vec<Arc<QueueCounts>>,
    /// The pool of connections, if there is one.
    pub connections: Option<ConnectionCounts>,
}

/// The counts of a pool of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCounts {
    /// The connections that are in use.
    pub in_use: u32,
    /// The open connections that are not in use.
    pub idle: u32,
    /// The calls that wait for a connection.
    pub waiting: u64,
    /// How often a connection was asked for.
    pub checkouts: u64,
    /// How often a call had to wait for a connection, and got one.
    pub waits: u64,
    /// How often a call did not get a connection in time.
    pub timeouts: u64,
    /// How long calls have waited altogether.
    pub waited: Duration,
}

impl ConnectionCounts {
    /// Reads the counts of a pool.
    pub fn of(state: &bb8::State) -> Self {
        let counts = &state.statistics;
        let done = counts.get_direct + counts.get_waited + counts.get_timed_out;
        Self {
            in_use: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waiting: counts.get_started.saturating_sub(done),
            checkouts: counts.get_started,
            waits: counts.get_waited,
            timeouts: counts.get_timed_out,
            waited: counts.get_wait_time,
        }
    }
}
