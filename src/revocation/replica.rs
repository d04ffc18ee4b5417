//! The state of this replica: its index and its lease, and the waits for renewals and for
//! acknowledgements of revocations.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::timeout,
};

use super::{
    counts::Counts,
    index::Index,
    lease::{Held, Lease},
};
use crate::{
    clock::SharedClock,
    domain::{
        ids::Incarnation,
        lease::LeaseConfig,
        revocation::{FeedPosition, Seq, Timeline},
        time::Timestamp,
    },
    store::FeedEntry,
};

/// The number of calls that may wait for a renewal at the same time. More are refused.
const MAX_LAPSED: usize = 4096;
/// The time within which a committed entry must reach our own index.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a wait for a renewal or an acknowledgement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// This replica may not know the latest revocations.
    #[error("this replica may not know the latest revocations")]
    NotCurrent,
    /// It cannot be determined whether every replica knows a revocation.
    #[error("it cannot be determined whether every replica knows the revocation")]
    NotAcknowledged,
}

/// A span in which this process was one member of one database that was not set back. If the
/// epoch before a transaction is still the current one afterwards, positions in the feed still have
/// the same meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The result of comparing the wall clock with that of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClockCheck {
    /// They agree within `lease.max_clock_skew`.
    #[default]
    Right,
    /// Our clock is further behind.
    Behind,
    /// Our clock is further ahead. By it, tokens may seem expired that other replicas still accept.
    Ahead,
}

/// The state at the last confirmed renewal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The epoch. It ends when this process is removed as gone, or the database was set back.
    pub epoch: Epoch,
    /// The number of that renewal among all that were sent; zero before the index is loaded.
    pub confirmed: u64,
    /// The number of the last confirmed renewal at which the wall clock was right, so that the time
    /// of tokens can be checked.
    pub renewal: u64,
    /// The result of comparing the clocks at that renewal.
    pub clock: ClockCheck,
    /// The position up to which the index has applied the feed.
    pub applied: FeedPosition,
    /// The position up to which every replica has applied the feed.
    pub everywhere: Seq,
    /// The time after which all leases that any replica took up to then have ended.
    pub max_validity: Duration,
    /// The number of other replicas.
    pub others: usize,
    /// The uptime at which its answer was received.
    pub received: Option<Duration>,
}

impl Progress {
    /// Returns whether this process is still starting: it has not loaded the index with a right
    /// clock yet, which may take a while.
    fn is_fresh(&self) -> bool {
        self.epoch == Epoch::default() && self.renewal == 0
    }
}

/// The state of a replica at one instant, for reports and metrics.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The remaining time of the lease, if there is one; [`Duration::MAX`] if it never ends.
    pub lease: Option<Duration>,
    /// The time since the last confirmed renewal, if there was one.
    pub renewed_ago: Option<Duration>,
    /// The number of other replicas at that renewal.
    pub others: usize,
    /// The number of revocations that wait for their acknowledgement.
    pub unacknowledged: usize,
    /// The number of calls that wait for a renewal, because there is no lease.
    pub lapsed_calls: usize,
    /// The number of entries in the index.
    pub blacklist_entries: usize,
}

/// The reason why a revocation is effective on every replica.
#[derive(Clone, Copy, Debug)]
enum AckOutcome {
    /// Every replica has applied it.
    Everywhere,
    /// The leases of all replicas that have not applied it have ended.
    AfterWait,
}

/// This replica: its index, its lease, and its progress through the feed.
pub struct Replica {
    index: Index,
    lease: Lease,
    /// Follows the clock of the database.
    pub(super) clock: Arc<SharedClock>,
    pub(super) lease_config: LeaseConfig,
    pub(super) progress: watch::Sender<Progress>,
    /// The number of the last renewal that was sent or is about to be sent.
    sent: AtomicU64,
    /// Notified when a call without a lease waits for the next renewal.
    pub(super) wanted: Notify,
    /// Notified when a call waits for the acknowledgement of a revocation.
    pub(super) revocation_waits: Notify,
    /// The number of calls that wait for the acknowledgement of a revocation.
    unacknowledged: AtomicUsize,
    lapsed: Semaphore,
    /// Wakes the job that ends the sessions of revoked tenants and subjects.
    all_revoked: Notify,
    /// Notified when the keys need attention at once.
    keys_wanted: Notify,
    /// The incarnation whose row is in the table `replicas`, if there is one.
    incarnation: Mutex<Option<Incarnation>>,
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
    pub fn new(clock: Arc<SharedClock>, lease_config: LeaseConfig) -> Self {
        Self {
            index: Index::default(),
            lease: Lease::new(Arc::clone(clock.own()), &lease_config),
            clock,
            lease_config,
            progress: watch::Sender::default(),
            sent: AtomicU64::new(0),
            wanted: Notify::new(),
            revocation_waits: Notify::new(),
            unacknowledged: AtomicUsize::new(0),
            lapsed: Semaphore::new(MAX_LAPSED),
            all_revoked: Notify::new(),
            keys_wanted: Notify::new(),
            incarnation: Mutex::default(),
            counts: Counts::default(),
            last_logged: AtomicU64::new(u64::MAX),
        }
    }

    /// Returns the index. Tokens that it does not stop may be accepted only under a lease that was
    /// loaded before, see [`Lease::load`].
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns the lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns the time of the shared clock if a lease that was loaded before the look-up is still
    /// valid after it, see [`Lease::check`].
    pub fn check(&self, held: Held) -> Option<Timestamp> {
        self.lease.check(held).map(|now| self.clock.shared(now))
    }

    /// Returns its counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns its current state.
    pub fn standing(&self) -> Standing {
        let progress = *self.progress.borrow();
        Standing {
            lease: self.lease.remaining(),
            renewed_ago: progress
                .received
                .map(|received| self.lease.uptime().saturating_sub(received)),
            others: progress.others,
            unacknowledged: self.unacknowledged.load(Ordering::SeqCst),
            lapsed_calls: MAX_LAPSED.saturating_sub(self.lapsed.available_permits()),
            blacklist_entries: self.index.len(),
        }
    }

    /// Waits for a renewal that was sent after this call and has read the feed to its end. All
    /// revocations that were acknowledged before the call are in the index then, so a look-up needs
    /// no lease.
    pub async fn renewed(&self) -> Result<Held, AckError> {
        if self.progress.borrow().is_fresh() {
            return Err(AckError::NotCurrent);
        }
        let _permit = self.lapsed.try_acquire().map_err(|_| AckError::NotCurrent)?;
        if self.lease.is_for_ever() {
            return Ok(Held::FOR_EVER);
        }
        let before = self.sent.load(Ordering::SeqCst);
        self.wanted.notify_one();
        let mut progress = self.progress.subscribe();
        let renewed = progress.wait_for(|progress| progress.renewal > before);
        match timeout(self.lease_config.duration, renewed).await {
            Ok(Ok(_)) => Ok(Held::FOR_EVER),
            Ok(Err(_)) | Err(_) => Err(AckError::NotCurrent),
        }
    }

    /// Returns the current epoch. It must be read before a transaction begins.
    pub fn epoch(&self) -> Epoch {
        self.progress.borrow().epoch
    }

    /// Waits until no replica accepts the tokens that were revoked at `position` by a committed
    /// transaction: every replica has applied the revocation, or the leases of those that have not
    /// have ended. A call that found nothing to write passes the latest position of the feed that
    /// it read.
    ///
    /// Only a renewal that is sent from now on counts, and only in the epoch that was read before
    /// the transaction. Earlier answers may come from a database that was replaced or set back
    /// meanwhile, so that its positions have another meaning. Moreover, an old primary that was
    /// replaced does not know newer sessions, so it finds nothing to revoke for them.
    ///
    /// This needs no lease, so a clock that is behind does no harm: tokens that seem live by it are
    /// stopped even if they have expired. A clock that is too far ahead makes the wait fail: the
    /// call may have found nothing to revoke, because the tokens seemed expired.
    pub async fn acknowledged(&self, epoch: Epoch, position: FeedPosition) -> Result<(), AckError> {
        let mut waiting = self.begin_wait();
        let outcome = self.wait_for_outcome(epoch, position).await;
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

    async fn wait_for_outcome(
        &self,
        epoch: Epoch,
        position: FeedPosition,
    ) -> Result<AckOutcome, AckError> {
        let mut progress = self.progress.subscribe();
        let ours = timeout(REACH_TIMEOUT, self.wait_until_applied(&mut progress, epoch, position));
        let begun = ours.await.map_err(|_| AckError::NotAcknowledged)??;
        // All leases that were requested before now have ended by this time.
        let over = self.lease.uptime() + begun.max_validity;
        loop {
            let current = *progress.borrow_and_update();
            if current.epoch != epoch || current.applied.timeline != position.timeline {
                return Err(AckError::NotAcknowledged);
            }
            if current.everywhere >= position.seq {
                return Ok(AckOutcome::Everywhere);
            }
            let rest = over.saturating_sub(self.lease.uptime());
            if rest.is_zero() {
                return Ok(AckOutcome::AfterWait);
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| AckError::NotAcknowledged)?,
                // The timer may fire earlier than the uptime clock says. In that case the loop goes
                // round once more.
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Waits until a renewal that is sent from now on has brought the index to a position.
    async fn wait_until_applied(
        &self,
        progress: &mut watch::Receiver<Progress>,
        epoch: Epoch,
        position: FeedPosition,
    ) -> Result<Progress, AckError> {
        let sent = self.sent.load(Ordering::SeqCst);
        let is_over = |progress: &Progress| progress.epoch != epoch;
        let is_void = |progress: &Progress| {
            progress.applied.timeline != position.timeline || progress.clock == ClockCheck::Ahead
        };
        let reached = progress.wait_for(|progress| {
            let is_new = progress.confirmed > sent;
            is_over(progress)
                || (is_new && (is_void(progress) || progress.applied.seq >= position.seq))
        });
        let reached = *reached.await.map_err(|_| AckError::NotAcknowledged)?;
        match is_over(&reached) || is_void(&reached) {
            true => Err(AckError::NotAcknowledged),
            false => Ok(reached),
        }
    }

    fn begin_wait(&self) -> Waiting<'_> {
        self.unacknowledged.fetch_add(1, Ordering::SeqCst);
        self.revocation_waits.notify_one();
        Waiting {
            replica: self,
            since: self.lease.uptime(),
            outcome: &self.counts.acknowledgements.given_up,
        }
    }

    /// Logs that a revocation had to wait, at most once a second.
    fn log_wait(&self) {
        let second = self.lease.uptime().as_secs();
        if self.last_logged.swap(second, Ordering::Relaxed) != second {
            tracing::warn!(
                "a revocation had to wait until every lease was over that a replica may have had \
                 which did not report: `countersign replica list` shows which one is late, or \
                 whether there was a failover"
            );
        }
    }

    /// Returns the timeline of the database at the last confirmed renewal.
    pub fn timeline(&self) -> Timeline {
        self.progress.borrow().applied.timeline
    }

    /// Waits until an entry of a tenant or a subject has been applied to the index since the last
    /// call.
    pub async fn all_revoked(&self) {
        self.all_revoked.notified().await;
    }

    /// Waits until the keys need attention before the next scheduled run.
    pub async fn keys_wanted(&self) {
        self.keys_wanted.notified().await;
    }

    /// Wakes the task that waits in [`Self::keys_wanted`].
    pub(super) fn want_keys(&self) {
        self.keys_wanted.notify_one();
    }

    /// Waits until there is no lease.
    pub async fn lapsed(&self) {
        let mut progress = self.progress.subscribe();
        while let Some(remaining) = self.lease.remaining() {
            tokio::select! {
                _ = progress.changed() => {}
                () = tokio::time::sleep(remaining) => {}
            }
        }
    }

    /// Waits until there is a lease.
    pub async fn current(&self) {
        let mut progress = self.progress.subscribe();
        while self.lease.remaining().is_none() {
            // The sender lives as long as `self`, so this cannot fail.
            let _ = progress.changed().await;
        }
    }

    /// Ends the lease for good. Returns the incarnation whose row is in the table `replicas`, if
    /// there is one.
    pub fn stop(&self) -> Option<Incarnation> {
        self.lapsed.close();
        self.lease.end();
        self.incarnation.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Adds an entry to the index.
    pub(super) fn apply(&self, entry: &FeedEntry) {
        self.index.apply(entry);
        if entry.revoked.cut_off().is_some() {
            self.all_revoked.notify_one();
        }
    }

    /// Counts a renewal that is about to be sent, and returns its number.
    pub(super) fn count_renewal(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns whether a revocation waits for the reports of other replicas.
    pub(super) fn is_waited_for(&self) -> bool {
        self.unacknowledged.load(Ordering::SeqCst) > 0
    }

    /// Notes that this process has joined as this incarnation.
    pub(super) fn begin_membership(&self, incarnation: Incarnation) {
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = Some(incarnation);
    }

    /// Returns whether this process was a member before.
    pub(super) fn has_rejoined(&self) -> bool {
        self.progress.borrow().epoch != Epoch::default()
    }

    /// Ends the lease and the epoch, because this process is no member any more. The index is kept,
    /// because its entries are still revoked.
    pub(super) fn end_membership(&self) {
        self.lease.end();
        self.incarnation.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.progress.send_modify(|progress| {
            *progress = Progress {
                epoch: progress.epoch.next(),
                received: progress.received,
                ..Progress::default()
            };
        });
    }
}

/// Counts a waiting call. When it is dropped, which also happens if the caller goes away, it
/// records the duration of the wait.
struct Waiting<'a> {
    replica: &'a Replica,
    since: Duration,
    outcome: &'a Histogram,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.replica.unacknowledged.fetch_sub(1, Ordering::SeqCst);
        let waited = self.replica.lease.uptime().saturating_sub(self.since);
        self.outcome.observe(waited.as_secs_f64());
    }
}
