//! The server that a connection leads to, and whether another server has replaced it since.

use std::future::pending;

use tokio::sync::watch;

use crate::domain::revocation::Timeline;

/// The timeline in which the lease was last renewed. A connection that was made earlier may lead to
/// a former primary, which still answers reads from its old data.
#[derive(Debug, Default)]
pub struct LatestTimeline(watch::Sender<Option<Timeline>>);

impl LatestTimeline {
    /// Records the timeline of a renewal.
    pub fn set(&self, timeline: Timeline) {
        self.0.send_if_modified(|latest| latest.replace(timeline) != Some(timeline));
    }

    /// Records that no timeline is known. The database does not know this replica any more, so it
    /// may have been set back to any history.
    pub fn forget(&self) {
        self.0.send_replace(None);
    }

    /// Returns the latest timeline, if it is known.
    pub fn get(&self) -> Option<Timeline> {
        *self.0.borrow()
    }

    /// Waits until the latest timeline shows that the server of this origin was replaced.
    pub async fn replaced(&self, origin: Origin) {
        let mut latest = self.0.subscribe();
        if latest.wait_for(|latest| origin.is_replaced(*latest)).await.is_err() {
            pending().await
        }
    }
}

/// The server that a connection leads to, identified by its timeline.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The timeline of the server.
    timeline: Timeline,
    /// The latest timeline at the time when the connection was made, if it was known.
    latest: Option<Timeline>,
}

impl Origin {
    /// Describes a connection to a server on `timeline`. The connection was made while `latest` was
    /// the latest timeline.
    pub fn new(timeline: Timeline, latest: Option<Timeline>) -> Self {
        Self { timeline, latest }
    }

    /// Returns whether the latest timeline shows that another server is the primary now. A server
    /// on a timeline after the latest one may have taken over just now. It counts as replaced only
    /// once the latest timeline has changed to one that is not the server's own.
    pub fn is_replaced(self, latest: Option<Timeline>) -> bool {
        match latest {
            None => false,
            Some(known) if known == self.timeline => false,
            Some(known) => latest != self.latest || self.timeline.0 < known.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A failover may be noticed between the checkout of a connection and its use.
    #[test]
    fn a_connection_is_replaced_once_the_latest_timeline_is_not_its_own() {
        let latest = LatestTimeline::default();
        let origin = |timeline, latest: Option<i64>| Origin {
            timeline: Timeline(timeline),
            latest: latest.map(Timeline),
        };
        let is_replaced = |origin| latest.replaced(origin).now_or_never().is_some();
        assert!(!is_replaced(origin(1, None)), "no timeline is known");
        latest.set(Timeline(1));
        assert!(!is_replaced(origin(1, None)));
        assert!(!is_replaced(origin(2, Some(1))), "the server may have taken over just now");
        latest.set(Timeline(3));
        for (timeline, made_under, replaced) in
            [(1, Some(1), true), (2, Some(1), true), (2, Some(3), true), (3, Some(1), false)]
        {
            assert_eq!(is_replaced(origin(timeline, made_under)), replaced, "{timeline}");
        }
        // The database was restored from files of an earlier history.
        latest.forget();
        assert!(!is_replaced(origin(1, None)));
        latest.set(Timeline(1));
        assert_eq!([is_replaced(origin(1, None)), is_replaced(origin(3, Some(3)))], [false, true]);
    }
}
