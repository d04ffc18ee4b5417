//! Limits the rate of an action that anybody can cause.

use std::{mem, sync::Arc};

use governor::{
    Quota,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};

use crate::clock::{Clock, Uptime};

type Limiter =
    governor::RateLimiter<NotKeyed, InMemoryState, Uptime, NoOpMiddleware<std::time::Duration>>;

/// Allows actions within a quota, and counts those that it refuses.
#[derive(Debug)]
pub struct RateLimiter {
    limiter: Limiter,
    left_out: i64,
}

impl RateLimiter {
    /// Creates a limiter with this quota.
    pub fn new(quota: Quota, clock: Arc<dyn Clock>) -> Self {
        Self { limiter: Limiter::direct_with_clock(quota, Uptime(clock)), left_out: 0 }
    }

    /// Requests one action. Returns `None` if the action is refused. If the action is allowed,
    /// returns the number of actions that were refused since the last allowed one.
    pub fn take(&mut self) -> Option<i64> {
        if self.limiter.check().is_err() {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        Some(mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use super::*;
    use crate::{clock::SettableClock, domain::time::Timestamp};

    #[test]
    fn a_burst_is_allowed_then_one_action_per_period_which_returns_how_many_were_refused_before_it()
    {
        let clock = Arc::new(SettableClock::at(Timestamp::from_micros(0)));
        let quota = Quota::with_period(Duration::from_secs(10)).unwrap();
        let quota = quota.allow_burst(NonZeroU32::new(3).unwrap());
        let mut limiter = RateLimiter::new(quota, clock.clone());
        let mut at = |seconds| {
            clock.advance(Duration::from_secs(seconds) - clock.uptime());
            limiter.take()
        };
        assert_eq!([at(1000), at(1000), at(1000)], [Some(0); 3]);
        assert_eq!([at(1000), at(1005), at(1009)], [None; 3]);
        assert_eq!([at(1010), at(1010), at(1020)], [Some(3), None, Some(1)]);
        assert_eq!([at(2000), at(2000), at(2000), at(2000)], [Some(0), Some(0), Some(0), None]);
    }
}
