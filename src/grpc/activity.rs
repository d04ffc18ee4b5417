//! Whether a connection is used: one on which nobody calls is closed after a while, and so is one
//! whose client does not take what it has asked for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// What goes on on a connection.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    busy: AtomicUsize,
    /// The number of the interval.
    interval: AtomicUsize,
    /// Answers that wait for their reader, by whether the interval in which they began to has an
    /// even number. Two are enough: when an interval begins, none is left of the one before the
    /// last.
    owed: [AtomicUsize; 2],
}

impl Activity {
    /// A call begins. It lasts until what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { activity: self.clone(), owed: None }
    }

    /// Begins an interval. False, if some answer has waited for its reader throughout the one that
    /// ends.
    pub fn next_interval(&self) -> bool {
        let next = self.interval.load(Ordering::Relaxed).wrapping_add(1);
        let is_taken = self.owed(next).load(Ordering::Relaxed) == 0;
        if is_taken {
            self.interval.store(next, Ordering::Relaxed);
        }
        is_taken
    }

    fn owed(&self, interval: usize) -> &AtomicUsize {
        let [even, odd] = &self.owed;
        if interval.is_multiple_of(2) { even } else { odd }
    }

    /// How many calls have begun so far, if none is under way.
    pub fn idle_since(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Relaxed);
        (self.busy.load(Ordering::Relaxed) == 0).then_some(begun)
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Busy {
    activity: Arc<Activity>,
    /// The interval since which a part of its answer waits for its reader, if one does.
    owed: Option<usize>,
}

impl Busy {
    /// A part of the answer is there, and waits until its reader has room for it.
    pub fn owe(&mut self) {
        self.taken();
        let interval = self.activity.interval.load(Ordering::Relaxed);
        self.activity.owed(interval).fetch_add(1, Ordering::Relaxed);
        self.owed = Some(interval);
    }

    /// A part of the answer that waits for its reader by itself, also when the call has ended.
    pub fn of_part(&self) -> Self {
        let mut part = self.activity.begin();
        part.owe();
        part
    }

    /// It waits no more.
    pub fn taken(&mut self) {
        if let Some(interval) = self.owed.take() {
            self.activity.owed(interval).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.taken();
        self.activity.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_while_no_call_is_under_way_and_each_call_leaves_a_trace() {
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.idle_since(), Some(0));
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert_eq!(activity.idle_since(), None);
        drop(second);
        assert_eq!(activity.idle_since(), Some(2));
    }

    #[test]
    fn an_answer_waits_for_its_reader_for_less_than_two_intervals() {
        let activity = Arc::new(Activity::default());
        let (mut slow, mut quick) = (activity.begin(), activity.begin());
        for _ in 0..5 {
            assert!(activity.next_interval(), "what nobody waits for");
            quick.owe();
            slow.owe();
            assert!(activity.next_interval(), "they have not waited throughout it");
            quick.taken();
            slow.taken();
        }
        slow.owe();
        assert!(activity.next_interval());
        quick.owe();
        assert!(!activity.next_interval(), "throughout it");
        assert!(!activity.next_interval(), "and on");
        slow.owe();
        quick.taken();
        assert!(activity.next_interval(), "the next part has waited for no time");
        drop(slow);
        assert!(activity.next_interval() && activity.next_interval());
    }
}
