//! A cautious clock for jobs that delete data, which cannot be undone.

use std::time::Duration;

use crate::domain::time::Timestamp;

/// A clock that is never ahead of the wall clock, and never runs faster than twice the uptime
/// clock.
///
/// If the wall clock leaps ahead and back again, this clock has meanwhile advanced by at most twice
/// the time that really passed, so little is deleted too early. If the wall clock does not leap
/// back, this clock catches up with it. See `docs/decisions/0004-clock-jumps.md`.
#[derive(Debug)]
pub struct SlowClock {
    now: Timestamp,
    uptime: Duration,
}

impl SlowClock {
    /// Creates a clock that starts with the time of the wall clock. `uptime` is the uptime of the
    /// machine at that time.
    pub fn at(now: Timestamp, uptime: Duration) -> Self {
        Self { now, uptime }
    }

    /// Advances the clock, given the wall clock and the uptime, and returns its time.
    pub fn advance(&mut self, now: Timestamp, uptime: Duration) -> Timestamp {
        let passed = uptime.saturating_sub(self.uptime);
        self.uptime = uptime;
        self.now = now.min(self.now.plus(passed.saturating_mul(2)));
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SettableClock};

    const START: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_slow_clock_runs_at_most_at_double_speed_after_a_leap_of_the_wall_clock() {
        let clock = SettableClock::at(START);
        let mut slow = SlowClock::at(clock.now(), clock.uptime());
        clock.advance(Duration::from_secs(60));
        assert_eq!(slow.advance(clock.now(), clock.uptime()), clock.now());

        clock.jump_to(clock.now().plus(HOUR));
        let before = slow.now;
        clock.advance(Duration::from_secs(60));
        assert_eq!(
            slow.advance(clock.now(), clock.uptime()),
            before.plus(Duration::from_secs(120))
        );

        clock.advance(HOUR);
        assert_eq!(
            slow.advance(clock.now(), clock.uptime()),
            clock.now(),
            "the clock catches up with a leap that lasts"
        );

        clock.jump_to(START);
        assert_eq!(
            slow.advance(clock.now(), clock.uptime()),
            START,
            "never ahead of the wall clock"
        );
    }
}
