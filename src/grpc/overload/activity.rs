//! Tracks the calls of a connection, so that it can be closed when it has had no calls for a while,
//! or when its client does not read its answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// The calls of a connection, and those of its answers that wait until the client reads them.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    busy: AtomicUsize,
    /// The number of the current interval.
    interval: AtomicUsize,
    /// The number of answers that are blocked now: first those that became blocked in an interval
    /// with an even number, then those that did in an interval with an odd number. An interval
    /// begins only when the count that it will use is zero, so two counts are enough.
    blocked: [AtomicUsize; 2],
}

impl Activity {
    /// Begins a call, which lasts until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> ActivityGuard {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        ActivityGuard { activity: self.clone(), blocked_since: None }
    }

    /// Completes once an answer has been blocked for a time between `timeout` and twice `timeout`.
    /// Only one task may call this, because each call advances the interval.
    pub async fn unread(&self, timeout: Duration) {
        let mut ticks = interval_at(Instant::now() + timeout, timeout);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.next_interval() {
            ticks.tick().await;
        }
    }

    /// Completes once no call has been under way for a time between `timeout` and twice `timeout`.
    pub async fn idle(&self, timeout: Duration) {
        let mut ticks = interval_at(Instant::now() + timeout, timeout);
        let mut before = self.idle_since();
        loop {
            ticks.tick().await;
            let now = self.idle_since();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    /// Begins the next interval and returns true. If an answer was blocked throughout the current
    /// interval, the interval does not end, and the result is false.
    pub(super) fn next_interval(&self) -> bool {
        let next = self.interval.load(Ordering::Relaxed).wrapping_add(1);
        let has_progress = self.blocked(next).load(Ordering::Relaxed) == 0;
        if has_progress {
            self.interval.store(next, Ordering::Relaxed);
        }
        has_progress
    }

    /// Returns the count of the blocked answers that became blocked in this interval.
    fn blocked(&self, interval: usize) -> &AtomicUsize {
        let [even, odd] = &self.blocked;
        if interval.is_multiple_of(2) { even } else { odd }
    }

    /// Returns the number of calls that have begun so far, or `None` while one is under way.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Relaxed);
        (self.busy.load(Ordering::Relaxed) == 0).then_some(begun)
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct ActivityGuard {
    activity: Arc<Activity>,
    /// The interval in which a part of its answer became blocked; `None` while none is.
    blocked_since: Option<usize>,
}

impl ActivityGuard {
    /// Records that a part of the answer waits until the client has room for it.
    pub fn mark_blocked(&mut self) {
        self.mark_progress();
        let interval = self.activity.interval.load(Ordering::Relaxed);
        self.activity.blocked(interval).fetch_add(1, Ordering::Relaxed);
        self.blocked_since = Some(interval);
    }

    /// Returns a guard for a part of the answer that is blocked. The part counts as blocked until
    /// its guard is dropped, even after the call has ended.
    pub fn begin_blocked_part(&self) -> Self {
        let mut part = self.activity.begin();
        part.mark_blocked();
        part
    }

    /// Records that the client has taken the blocked part.
    pub fn mark_progress(&mut self) {
        if let Some(interval) = self.blocked_since.take() {
            self.activity.blocked(interval).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.mark_progress();
        self.activity.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_while_no_call_is_under_way() {
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.idle_since(), Some(0));
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert_eq!(activity.idle_since(), None);
        drop(second);
        assert_eq!(activity.idle_since(), Some(2));
    }

    #[test]
    fn an_interval_ends_unless_an_answer_was_blocked_throughout_the_interval() {
        let activity = Arc::new(Activity::default());
        let (mut slow, mut quick) = (activity.begin(), activity.begin());
        for _ in 0..5 {
            assert!(activity.next_interval(), "no answer is blocked");
            quick.mark_blocked();
            slow.mark_blocked();
            assert!(activity.next_interval(), "neither was blocked for the whole interval");
            quick.mark_progress();
            slow.mark_progress();
        }
        slow.mark_blocked();
        assert!(activity.next_interval());
        quick.mark_blocked();
        assert!(!activity.next_interval(), "`quick` was blocked for the whole interval");
        assert!(!activity.next_interval(), "`quick` is still blocked");
        slow.mark_blocked();
        quick.mark_progress();
        assert!(activity.next_interval(), "the next part has only just become blocked");
        drop(slow);
        assert!(activity.next_interval() && activity.next_interval());
    }
}
