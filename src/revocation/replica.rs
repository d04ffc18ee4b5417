//! The state of this replica: its index, its lease, and the calls that wait for a renewal or for
//! the acknowledgement of a revocation.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Mutex, Notify, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

pub use super::progress::{AckError, Epoch};
use super::{
    counts::Counts,
    index::{Index, Snapshot},
    lease::{Held, Lease},
    progress::{AckOutcome, Progress},
    watchers::{Place, Watchers},
};
use crate::{
    clock::SharedClock,
    domain::{
        ids::Incarnation,
        lease::{LeaseConfig, WatchConfig},
        revocation::{FeedPosition, Timeline},
        time::Timestamp,
    },
};

/// The maximum number of calls that may wait for a renewal at the same time. Further calls are
/// refused.
const MAX_LAPSED: usize = 4096;

/// The time for which watchers that begin share a snapshot.
const SNAPSHOT_SHARED_FOR: Duration = Duration::from_secs(5);

/// The state of a replica at one instant, for reports and metrics.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The remaining time of the lease, if there is one; [`Duration::MAX`] if it never ends.
    pub lease: Option<Duration>,
    /// The time since the last confirmed renewal, if there was one.
    pub renewed_ago: Option<Duration>,
    /// The number of other replicas at the last confirmed renewal.
    pub others: usize,
    /// The number of revocations that wait for their acknowledgement.
    pub unacknowledged: usize,
    /// The number of calls that wait for a renewal, because there is no lease.
    pub lapsed_calls: usize,
    /// The number of entries in the index.
    pub blacklist_entries: usize,
}

/// This replica: its index, its progress through the feed, and the lease that rests on the
/// progress.
pub struct Replica {
    index: Index,
    pub(super) progress: Progress,
    /// Follows the clock of the database.
    pub(super) clock: Arc<SharedClock>,
    pub(super) lease_config: LeaseConfig,
    /// Notified when a call without a lease waits for the next renewal.
    pub(super) wanted: Notify,
    /// Notified when a call waits for the acknowledgement of a revocation.
    pub(super) revocation_waits: Notify,
    /// The number of calls that wait for the acknowledgement of a revocation.
    unacknowledged: AtomicUsize,
    lapsed: Semaphore,
    watchers: Arc<Watchers>,
    /// The last snapshot, for as long as a watcher reads it, and the uptime at which it was made.
    snapshot: Mutex<Option<(Place, Duration, Weak<Snapshot>)>>,
    counts: Counts,
    /// The second of uptime in which it was last logged that a revocation had to wait.
    last_logged: AtomicU64,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("lease_config", &self.lease_config).finish_non_exhaustive()
    }
}

impl Replica {
    /// Creates a replica with an empty index and without a lease.
    pub fn new(
        clock: Arc<SharedClock>,
        lease_config: LeaseConfig,
        watch_config: WatchConfig,
    ) -> Self {
        let own_clock = Arc::clone(clock.own());
        Self {
            watchers: Arc::new(Watchers::new(own_clock, lease_config.margin, watch_config)),
            snapshot: Mutex::default(),
            index: Index::default(),
            progress: Progress::new(Arc::clone(clock.own()), &lease_config),
            clock,
            lease_config,
            wanted: Notify::new(),
            revocation_waits: Notify::new(),
            unacknowledged: AtomicUsize::new(0),
            lapsed: Semaphore::new(MAX_LAPSED),
            counts: Counts::default(),
            last_logged: AtomicU64::new(u64::MAX),
        }
    }

    /// Returns the index. A token that the index does not stop may be accepted only under a lease
    /// that was loaded before the look-up. See [`Lease::load`].
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns the lease.
    pub fn lease(&self) -> &Lease {
        self.progress.lease()
    }

    /// Returns the time of the shared clock if `held`, which was loaded before the look-up, is
    /// still valid after the look-up. See [`Lease::check`].
    pub fn check(&self, held: Held) -> Option<Timestamp> {
        self.lease().check(held).map(|now| self.clock.shared(now))
    }

    /// Returns the watchers of this replica.
    pub fn watchers(&self) -> &Arc<Watchers> {
        &self.watchers
    }

    /// Returns all entries of the index, and a place up to which they are complete. `None` while
    /// the index is being loaded. Watchers that begin at about the same time share a snapshot.
    pub async fn snapshot(self: &Arc<Self>) -> Option<(Place, Arc<Snapshot>)> {
        let mut last = self.snapshot.lock().await;
        let uptime = self.lease().uptime();
        if let Some((place, made_at, snapshot)) = &*last
            && uptime.saturating_sub(*made_at) < SNAPSHOT_SHARED_FOR
            && self.watchers.reaches(*place)
            && let Some(snapshot) = snapshot.upgrade()
        {
            return Some((*place, snapshot));
        }
        // The place is read first, because the index may have later entries, too.
        let place = self.watchers.place()?;
        let replica = Arc::clone(self);
        let copied = spawn_blocking(move || Arc::new(replica.index.snapshot()));
        let snapshot = copied.await.ok()?;
        *last = Some((place, uptime, Arc::downgrade(&snapshot)));
        Some((place, snapshot))
    }

    /// Returns the counters of this replica.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the current state, for reports and metrics.
    pub fn standing(&self) -> Standing {
        let (others, received) = self.progress.others();
        let lease = self.lease();
        Standing {
            lease: lease.remaining(),
            renewed_ago: received.map(|received| lease.uptime().saturating_sub(received)),
            others,
            unacknowledged: self.unacknowledged.load(Ordering::SeqCst),
            lapsed_calls: MAX_LAPSED.saturating_sub(self.lapsed.available_permits()),
            blacklist_entries: self.index.len(),
        }
    }

    /// Waits for a renewal that is sent after this call and reads the feed to its end. After that,
    /// all revocations that were acknowledged before this call are in the index, so a look-up needs
    /// no lease. The result is the lease to use for that look-up.
    pub async fn renewed(&self) -> Result<Held, AckError> {
        if self.progress.is_fresh() {
            return Err(AckError::NotCurrent);
        }
        let _permit = self.lapsed.try_acquire().map_err(|_| AckError::NotCurrent)?;
        if self.lease().is_for_ever() {
            return Ok(Held::FOR_EVER);
        }
        let next = self.progress.next_renewal();
        self.wanted.notify_one();
        let confirmed = timeout(self.lease_config.duration, next.confirmed());
        confirmed.await.map_err(|_| AckError::NotCurrent)??;
        Ok(Held::FOR_EVER)
    }

    /// Returns the current epoch. It must be read before a transaction begins.
    pub fn epoch(&self) -> Epoch {
        self.progress.epoch()
    }

    /// Waits until no replica accepts the tokens that a committed transaction has revoked at
    /// `position`. This is so once each replica has applied the revocation, or its lease has ended.
    /// A call that found nothing to write passes the latest position of the feed that it read.
    ///
    /// Only a renewal that is sent from now on counts, and only in the epoch that was read before
    /// the transaction. Earlier answers may come from a database that has since been replaced or
    /// set back, so that positions had another meaning. Moreover, an old primary that was replaced
    /// does not know newer sessions, and would find nothing to revoke for them.
    ///
    /// The wait needs no lease, so it also succeeds while this machine's clock is behind. Such a
    /// clock does no harm, because the revocation also covers tokens that only seem to be live. The
    /// wait fails if the clock is too far ahead, because the call may have found nothing to revoke
    /// only because the tokens seemed to have expired.
    pub async fn acknowledged(&self, epoch: Epoch, position: FeedPosition) -> Result<(), AckError> {
        let mut waiting = self.begin_wait();
        let outcome = self.progress.acknowledged(epoch, position).await;
        let outcomes = &self.counts.acknowledgements;
        waiting.outcome = match outcome {
            Ok(AckOutcome::Everywhere) => &outcomes.everywhere,
            Ok(AckOutcome::AfterWait) => &outcomes.after_wait,
            Err(_) => &outcomes.failed,
        };
        if let Ok(AckOutcome::AfterWait) = outcome {
            self.log_wait();
        }
        outcome.map(|_| ())
    }

    fn begin_wait(&self) -> Waiting<'_> {
        self.unacknowledged.fetch_add(1, Ordering::SeqCst);
        self.revocation_waits.notify_one();
        Waiting {
            replica: self,
            since: self.lease().uptime(),
            outcome: &self.counts.acknowledgements.given_up,
        }
    }

    /// Logs, at most once a second, that a revocation had to wait.
    fn log_wait(&self) {
        let second = self.lease().uptime().as_secs();
        if self.last_logged.swap(second, Ordering::Relaxed) != second {
            tracing::warn!(
                "a revocation had to wait until the lease of every replica that had not reported \
                 it must have ended: `countersign replica list` shows which replica is late, or \
                 whether there was a failover"
            );
        }
    }

    /// Returns the timeline of the database at the last confirmed renewal.
    pub fn timeline(&self) -> Timeline {
        self.progress.timeline()
    }

    /// Waits until there is no lease.
    pub async fn lapsed(&self) {
        self.progress.lapsed().await;
    }

    /// Waits until there is a lease.
    pub async fn current(&self) {
        self.progress.current().await;
    }

    /// Ends the lease for good. Returns the incarnation whose row is in the table `replicas`, if
    /// there is one.
    pub fn stop(&self) -> Option<Incarnation> {
        self.lapsed.close();
        self.progress.stop()
    }

    /// Returns whether a revocation waits for the reports of other replicas.
    pub(super) fn is_waited_for(&self) -> bool {
        self.unacknowledged.load(Ordering::SeqCst) > 0
    }
}

/// Counts a call as waiting. When it is dropped, which also happens if the caller gives up, it
/// records the duration of the wait.
struct Waiting<'a> {
    replica: &'a Replica,
    since: Duration,
    outcome: &'a Histogram,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.replica.unacknowledged.fetch_sub(1, Ordering::SeqCst);
        let waited = self.replica.lease().uptime().saturating_sub(self.since);
        self.outcome.observe(waited.as_secs_f64());
    }
}
