//! The clocks of this machine, moved by commands.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use countersign_client::testing::Clock;
use countersign_verification::{clock::SystemClock, time::Timestamp};

/// The clocks of this machine, and by how many milliseconds they were moved.
#[derive(Debug, Default)]
pub struct MovedClock {
    wall: AtomicI64,
    uptime: AtomicI64,
}

impl MovedClock {
    /// Moves the clocks.
    pub fn advance(&self, wall_ms: i64, uptime_ms: i64) {
        self.wall.fetch_add(wall_ms, Ordering::SeqCst);
        self.uptime.fetch_add(uptime_ms, Ordering::SeqCst);
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        let moved = self.wall.load(Ordering::SeqCst);
        let span = Duration::from_millis(moved.unsigned_abs());
        let now = SystemClock.now();
        if moved < 0 { now.minus(span) } else { now.plus(span) }
    }

    fn uptime(&self) -> Duration {
        let moved = self.uptime.load(Ordering::SeqCst);
        SystemClock.uptime() + Duration::from_millis(moved.unsigned_abs())
    }
}
