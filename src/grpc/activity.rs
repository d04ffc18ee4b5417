//! Whether a connection is used: one on which nobody calls is closed after a while.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// What goes on on a connection.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    busy: AtomicUsize,
}

impl Activity {
    /// A call begins. It lasts until what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// How many calls have begun so far, if none is under way.
    pub fn idle_since(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Relaxed);
        (self.busy.load(Ordering::Relaxed) == 0).then_some(begun)
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
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
}
