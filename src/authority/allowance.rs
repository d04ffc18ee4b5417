//! How often something may be done that anybody can bring about.

use std::{mem, time::Duration};

/// Allows some at once, and then one each time that a span has passed. Counts what it has not
/// allowed.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    every: Duration,
    /// How far `used_until` may be ahead of the time.
    slack: Duration,
    /// When all that was allowed will have been given back.
    used_until: Duration,
    left_out: i64,
}

impl Allowance {
    /// Allows `at_once`, at least one, and one more after `every`.
    pub const fn new(at_once: u32, every: Duration) -> Self {
        let slack = every.saturating_mul(at_once.saturating_sub(1));
        Self { every, slack, used_until: Duration::ZERO, left_out: 0 }
    }

    /// Whether it may be done now, by a clock that never goes back; if so, how often it was not
    /// allowed since it last was.
    pub fn take(&mut self, uptime: Duration) -> Option<i64> {
        let used_until = self.used_until.max(uptime);
        if used_until.saturating_sub(uptime) > self.slack {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.used_until = used_until.saturating_add(self.every);
        Some(mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_pass_at_once_and_then_one_at_a_time_with_the_count_of_the_others() {
        let mut allowance = Allowance::new(3, Duration::from_secs(10));
        let mut at = |seconds| allowance.take(Duration::from_secs(seconds));
        assert_eq!([at(1000), at(1000), at(1000)], [Some(0); 3]);
        assert_eq!([at(1000), at(1005), at(1009)], [None; 3]);
        assert_eq!([at(1010), at(1010), at(1020)], [Some(3), None, Some(1)]);
        assert_eq!([at(2000), at(2000), at(2000), at(2000)], [Some(0), Some(0), Some(0), None]);
    }
}
