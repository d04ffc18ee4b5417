//! A notion of the time for those who delete what cannot be brought back.

use std::time::Duration;

use crate::domain::time::Timestamp;

/// Never ahead of the wall clock, and never faster than twice the real time.
///
/// What is deleted is gone. If the wall clock leaps ahead and back again, this one has moved on
/// only by what really passed, times two; a leap that lasts is caught up with. See
/// `docs/decisions/0004-clock-jumps.md`.
#[derive(Debug)]
pub struct SlowClock {
    now: Timestamp,
    uptime: Duration,
}

impl SlowClock {
    /// A clock that agrees with a wall clock, at this uptime of the machine.
    pub fn at(now: Timestamp, uptime: Duration) -> Self {
        Self { now, uptime }
    }

    /// The time that it shows when the wall clock shows `now`.
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
    fn a_leap_of_the_wall_clock_moves_it_by_what_really_passed() {
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
            "a leap that lasts is caught up with"
        );

        clock.jump_to(START);
        assert_eq!(
            slow.advance(clock.now(), clock.uptime()),
            START,
            "never ahead of the wall clock"
        );
    }
}
