//! The server that a connection leads to, and whether another one has taken its place since.

use std::future::pending;

use tokio::sync::watch;

use crate::domain::revocation::Timeline;

/// The timeline that the lease was last renewed in. A connection made before may still lead to a
/// primary that has been replaced, which goes on telling what was true there.
#[derive(Debug, Default)]
pub struct LatestTimeline(watch::Sender<Option<Timeline>>);

impl LatestTimeline {
    /// Takes note of it.
    pub fn set(&self, timeline: Timeline) {
        self.0.send_if_modified(|latest| latest.replace(timeline) != Some(timeline));
    }

    /// Takes note that it is not known any more: the database does not know this replica, so it may
    /// be in any history.
    pub fn forget(&self) {
        self.0.send_replace(None);
    }

    /// The latest timeline, if it is known.
    pub fn get(&self) -> Option<Timeline> {
        *self.0.borrow()
    }

    /// Returns once a connection of this origin leads to a server that was replaced.
    pub async fn replaced(&self, origin: Origin) {
        let mut latest = self.0.subscribe();
        if latest.wait_for(|latest| origin.is_replaced(*latest)).await.is_err() {
            pending().await
        }
    }
}

/// The server that a connection leads to, by its history.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The timeline of the server.
    timeline: Timeline,
    /// The timeline that was the latest one when the connection was made.
    latest: Option<Timeline>,
}

impl Origin {
    /// Describes a connection to a server on `timeline`, made while `latest` was the latest one.
    pub fn new(timeline: Timeline, latest: Option<Timeline>) -> Self {
        Self { timeline, latest }
    }

    /// Returns whether another server is in charge, by the latest timeline. One that is newer than
    /// that may have taken over just now, until something newer is known.
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

    /// It may have been lent just before the failover was noticed, and used just after.
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
        assert!(!is_replaced(origin(2, Some(1))), "it may have taken over just now");
        latest.set(Timeline(3));
        for (timeline, made_under, replaced) in
            [(1, Some(1), true), (2, Some(1), true), (2, Some(3), true), (3, Some(1), false)]
        {
            assert_eq!(is_replaced(origin(timeline, made_under)), replaced, "{timeline}");
        }
        // Files of an earlier history were put back.
        latest.forget();
        assert!(!is_replaced(origin(1, None)));
        latest.set(Timeline(1));
        assert_eq!([is_replaced(origin(1, None)), is_replaced(origin(3, Some(3)))], [false, true]);
    }
}
