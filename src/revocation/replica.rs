//! This process among those that serve from one database: what it knows, how long it may believe
//! that, and when all know it.

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
    mutants::broken,
    store::FeedEntry,
};

/// Calls that may wait for a renewal at once; more are refused.
const MAX_LAPSED: usize = 4096;
/// The time that a committed entry has to reach our own index.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a caller waited in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The latest revocations are not known here.
    #[error("the latest revocations are not known here")]
    NotCurrent,
    /// It cannot be told whether all know of a revocation.
    #[error("whether every replica knows of the revocation cannot be told")]
    NotAcknowledged,
}

/// A span of time in which this process was one member of one database, which was not set back.
/// Taken before a transaction, it tells afterwards whether a position in the feed still means what
/// it meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The wall clock compared with the one of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClockCheck {
    /// They agree within `lease.max_clock_skew`.
    #[default]
    Right,
    /// Ours is further behind.
    Behind,
    /// Ours is further ahead. It may take for expired what is still accepted elsewhere.
    Ahead,
}

/// The state that the last confirmed renewal has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Ends when this process is taken for gone, or the database was set back.
    pub epoch: Epoch,
    /// Number of that renewal among all that were sent; zero before the index is loaded.
    pub confirmed: u64,
    /// The same of the last one by which the wall clock was right, so that the time of a token
    /// could be judged.
    pub renewal: u64,
    /// The wall clock, as that renewal has shown it.
    pub clock: ClockCheck,
    /// Up to where the index has applied the feed.
    pub applied: FeedPosition,
    /// Up to where every replica has.
    pub everywhere: Seq,
    /// After how long what any replica did up to then holds no more.
    pub max_validity: Duration,
    /// The number of other replicas.
    pub others: usize,
    /// The instant at which its answer was received, by the clock of uptime.
    pub received: Option<Duration>,
}

impl Progress {
    /// Returns whether nothing is known yet, which may take a while.
    fn is_fresh(&self) -> bool {
        self.epoch == Epoch::default() && self.renewal == 0
    }
}

/// The state of a replica at one instant, to be told.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The rest of the lease, if there is one; [`Duration::MAX`] if it does not end.
    pub lease: Option<Duration>,
    /// The time since the last confirmed renewal, if there was one.
    pub renewed_ago: Option<Duration>,
    /// Other replicas in the register, as that renewal has shown.
    pub others: usize,
    /// Revocations that wait until all know of them.
    pub unacknowledged: usize,
    /// Calls that wait for a renewal, because there is no lease.
    pub lapsed_calls: usize,
    /// Entries of the index.
    pub blacklist_entries: usize,
}

/// Why a revocation holds.
#[derive(Clone, Copy, Debug)]
enum AckOutcome {
    /// Every replica has applied it.
    Everywhere,
    /// Those that have not have stopped answering.
    AfterWait,
}

/// A replica as others see it: the index, and what is certain of it.
pub struct Replica {
    index: Index,
    lease: Lease,
    /// Follows the clock of the database.
    pub(super) clock: Arc<SharedClock>,
    pub(super) lease_config: LeaseConfig,
    pub(super) progress: watch::Sender<Progress>,
    /// The number of the last renewal that was sent, or is about to be.
    sent: AtomicU64,
    /// Somebody without a lease waits for the next renewal.
    pub(super) wanted: Notify,
    /// Somebody waits until all know of a revocation.
    pub(super) revocation_waits: Notify,
    /// The number of those who wait until all know of a revocation.
    unacknowledged: AtomicUsize,
    lapsed: Semaphore,
    /// Wakes the job that ends the sessions of revoked tenants and subjects.
    all_revoked: Notify,
    /// Something is to be done about the keys.
    keys_wanted: Notify,
    /// The life whose row there is.
    incarnation: Mutex<Option<Incarnation>>,
    counts: Counts,
    /// The second of uptime in which it was last said that a revocation had to wait.
    complained: AtomicU64,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("terms", &self.lease_config).finish_non_exhaustive()
    }
}

impl Replica {
    /// One that knows nothing yet.
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
            complained: AtomicU64::new(u64::MAX),
        }
    }

    /// The index. What it does not stop is only good by a lease that was loaded before, see
    /// [`Lease::load`].
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The time, if a lease that was loaded before the look-up still holds after it, as
    /// [`Lease::check`] has it.
    pub fn check(&self, held: Held) -> Option<Timestamp> {
        self.lease.check(held).map(|now| self.clock.shared(now))
    }

    /// Its counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Its state now.
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

    /// Waits for a renewal that was sent after this call and has come to the end of the feed. What
    /// was acknowledged before the call is in the index then, and a look-up needs no lease.
    pub async fn renewed(&self) -> Result<Held, AckError> {
        if self.progress.borrow().is_fresh() {
            return Err(AckError::NotCurrent);
        }
        let _place = self.lapsed.try_acquire().map_err(|_| AckError::NotCurrent)?;
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

    /// The epoch of a transaction that is about to begin.
    pub fn epoch(&self) -> Epoch {
        self.progress.borrow().epoch
    }

    /// Waits until no replica accepts any more what was revoked at `position` by a transaction that
    /// has ended: every one has applied it, or so much time has passed that those who have not have
    /// stopped answering. A call that found nothing to write gives the position to which the feed
    /// had come.
    ///
    /// Only a renewal that is sent from now on counts, and only in the epoch that was taken before
    /// the transaction. What is known from before may be of a database that was replaced or set
    /// back meanwhile, whose positions mean something else; and a primary that was replaced says of
    /// sessions that were created since that there is nothing to revoke.
    ///
    /// It takes no lease, so a clock that is behind does no harm: what it takes for live may have
    /// expired, and is stopped all the same. A clock that is further ahead than it may be is
    /// another matter: the call may have found nothing to revoke, because by that clock it had
    /// expired.
    pub async fn acknowledged(&self, epoch: Epoch, position: FeedPosition) -> Result<(), AckError> {
        let mut waiting = self.waiting();
        let certain = self.certain(epoch, position).await;
        let outcomes = &self.counts.acknowledgements;
        waiting.outcome = match certain {
            Ok(AckOutcome::Everywhere) => &outcomes.everywhere,
            Ok(AckOutcome::AfterWait) => &outcomes.after_wait,
            Err(_) => &outcomes.failed,
        };
        if let Ok(AckOutcome::AfterWait) = certain {
            self.complain();
        }
        certain.map(|_| ())
    }

    async fn certain(&self, epoch: Epoch, position: FeedPosition) -> Result<AckOutcome, AckError> {
        let mut progress = self.progress.subscribe();
        let ours = timeout(REACH_TIMEOUT, self.reached(&mut progress, epoch, position));
        let begun = ours.await.map_err(|_| AckError::NotAcknowledged)??;
        // Nothing that was asked for before this instant holds longer.
        let over = self.lease.uptime() + begun.max_validity;
        loop {
            let current = *progress.borrow_and_update();
            if !is_same_epoch(current.epoch, epoch) || current.applied.timeline != position.timeline
            {
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
                // May wake a little early, or long before the clock of uptime: then it is looked at
                // once more.
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Waits until a renewal that is sent from now on has shown that the index has applied a
    /// position.
    async fn reached(
        &self,
        progress: &mut watch::Receiver<Progress>,
        epoch: Epoch,
        position: FeedPosition,
    ) -> Result<Progress, AckError> {
        let sent = self.sent.load(Ordering::SeqCst);
        let is_over = |progress: &Progress| !is_same_epoch(progress.epoch, epoch);
        let is_void = |progress: &Progress| {
            progress.applied.timeline != position.timeline || progress.clock == ClockCheck::Ahead
        };
        let reached = progress.wait_for(|progress| {
            let is_new = progress.confirmed > sent || broken("earlier-renewal-counts");
            is_over(progress)
                || (is_new && (is_void(progress) || progress.applied.seq >= position.seq))
        });
        let reached = *reached.await.map_err(|_| AckError::NotAcknowledged)?;
        match is_over(&reached) || is_void(&reached) {
            true => Err(AckError::NotAcknowledged),
            false => Ok(reached),
        }
    }

    fn waiting(&self) -> Waiting<'_> {
        self.unacknowledged.fetch_add(1, Ordering::SeqCst);
        self.revocation_waits.notify_one();
        Waiting {
            replica: self,
            since: self.lease.uptime(),
            outcome: &self.counts.acknowledgements.given_up,
        }
    }

    /// Says that a revocation had to wait, but only once a second.
    fn complain(&self) {
        let second = self.lease.uptime().as_secs();
        if self.complained.swap(second, Ordering::Relaxed) != second {
            tracing::warn!(
                "a revocation had to wait until every lease was over that a replica may have had \
                 which did not report: `countersign replica list` shows which one is late, or \
                 whether there was a failover"
            );
        }
    }

    /// The history that the last confirmed renewal was in.
    pub fn timeline(&self) -> Timeline {
        self.progress.borrow().applied.timeline
    }

    /// Waits until the entry of a tenant or of a subject has been applied, if none has since the
    /// last time.
    pub async fn all_revoked(&self) {
        self.all_revoked.notified().await;
    }

    /// Waits until something is to be done about the keys at once.
    pub async fn keys_wanted(&self) {
        self.keys_wanted.notified().await;
    }

    /// Lets whoever waits for that know.
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

    /// Ends the lease, for good. Returns the life whose row there is.
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

    /// Returns whether somebody waits for what others report.
    pub(super) fn is_waited_for(&self) -> bool {
        self.unacknowledged.load(Ordering::SeqCst) > 0
    }

    /// Takes note that this process has joined.
    pub(super) fn begin_life(&self, incarnation: Incarnation) {
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = Some(incarnation);
    }

    /// Returns whether this process was a member before.
    pub(super) fn has_rejoined(&self) -> bool {
        self.progress.borrow().epoch != Epoch::default()
    }

    /// Takes note that this process is no member any more. It knows what it knew, but nothing is
    /// certain of it.
    pub(super) fn end_life(&self) {
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

fn is_same_epoch(one: Epoch, other: Epoch) -> bool {
    one == other || broken("epoch-not-compared")
}

/// Counts among those that wait, and when it is dropped, among those that have waited: whoever
/// asked may go away.
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
