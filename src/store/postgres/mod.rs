//! The PostgreSQL engine. It uses PostgreSQL's own column types, commits many writes by one
//! statement (group commit), and keeps a feed whose entries are in the order of the commits.

mod audit;
mod batch;
mod connection;
mod feed;
pub mod inspect;
pub mod open;
mod ring;
mod rows;
mod schema;
mod sessions;
mod sizes;
mod sql;

pub use self::connection::{connect, open_error};

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use self::{
    connect::{Options, Target},
    connection::{
        fault::Fault,
        origin::LatestTimeline,
        pool::{Pool, PooledConnection},
    },
    feed::{entries, renewals::PostgresRenewalClient, wake_up},
    open_error::OpenError,
    sessions::{
        covered, create, expiries, legacy_tokens, metadata, oldest_live::OldestLive, reads,
        refresh, search, sweep,
    },
};
use super::{
    Changed, CountedBatch, Created, Creation, CutOffEntry, EndedBatch, RecordedExpiries, Refreshed,
    RevocationOutcome, Store, StoreError, SweptRevocations, Walk,
    batch::{BatchOutcome, GroupCommit, Shape},
    counts::StoreCounts,
    replicas::{Members, RenewalClient},
    ring::{RingChange, SealedRing},
    sizes::Sizes,
};
use crate::domain::{
    audit::AuditEntry,
    change::SessionChange,
    cut_off::{CutOff, CutOffKey},
    ids::SessionId,
    key::RefreshKeyId,
    legacy_token::{LegacyToken, LegacyTokenHash},
    metadata::SessionMetadata,
    refresh::RefreshAttempt,
    revocation::{FeedPosition, Revocation, Seq},
    search::{AuditPlace, AuditQuery, Part, SessionQuery},
    session::{Ended, Session},
    time::Timestamp,
};

/// Two batches in flight are enough to keep the database busy. With more, batches are smaller, and
/// each write costs more. Batches of creations are small because each creation under a quota takes
/// an advisory lock, and a server has only some thousands of locks for all its clients.
const CREATIONS: Shape = Shape { workers: 2, most: 128 };
const REFRESHES: Shape = Shape { workers: 2, most: 512 };
/// Two batches in flight keep the database busy here too. They write to the feed one after the
/// other, because each batch locks the row of `feed_head` until it commits; but the reads and row
/// locks before that can overlap.
const CHANGES: Shape = Shape { workers: 2, most: 128 };
const REVOCATIONS: Shape = Shape { workers: 2, most: 512 };

/// The pause between two reads of the head of the feed while no notifications arrive. These reads
/// find the entries of other processes.
const POLL: Duration = Duration::from_millis(25);
/// The pause before the next read after the database failed.
const POLL_RETRY: Duration = Duration::from_millis(200);

/// The sessions, the blacklist, the keys and the audit in a PostgreSQL database.
pub struct PostgresStore {
    /// Stops the attempts to connect when the store is dropped.
    _open: DropGuard,
    shared: Arc<Shared>,
    target: Target,
    latest_timeline: Arc<LatestTimeline>,
    creations: GroupCommit<Creation, Created>,
    refreshes: GroupCommit<RefreshAttempt, Refreshed>,
    changes: GroupCommit<SessionChange, Changed>,
    revocations: GroupCommit<Revocation, RevocationOutcome>,
    /// The tasks that run while the store is open. Dropping them aborts them.
    _tasks: Vec<AbortOnDropHandle<()>>,
    poll_stopped: CancellationToken,
}

struct Shared {
    pool: Pool,
    oldest_live: OldestLive,
    /// The newest position of the feed that this process knows of.
    hints: watch::Sender<Seq>,
    /// The newest position of the feed that this process has committed.
    committed: watch::Sender<Seq>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to a database, and brings its schema up to date if the options allow it.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let mut target = Target::load(options).await?;
        let prepared = open::prepare(&mut target, options.migrate).await?;
        // This warning is logged after the database has been opened, because a process that waits
        // for the database calls this function again and again.
        if let Some(exposure) = target.exposure() {
            tracing::warn!(database = ?target, "{exposure}: use sslmode=verify-full");
        }

        let latest_timeline = Arc::new(LatestTimeline::default());
        let shared = Arc::new(Shared {
            pool: Pool::new(target.clone(), Arc::clone(&latest_timeline), options),
            oldest_live: OldestLive::new(options.max_clock_skew),
            hints: watch::Sender::default(),
            committed: watch::Sender::default(),
        });
        let poll_stopped = CancellationToken::new();
        let mut tasks = shared.follow_feed(&target, &poll_stopped);
        if prepared.has_detached_records {
            let target = target.clone();
            tasks.push(tokio::spawn(async move { open::attach_audit(&target).await }));
        }
        Ok(Self {
            _open: shared.pool.owner(),
            creations: shared.group(
                "creations",
                CREATIONS,
                |shared, creations| async move {
                    create::commit(&shared.pool, &shared.oldest_live, &creations).await
                },
                Created::position,
            ),
            refreshes: shared.group(
                "refreshes",
                REFRESHES,
                |shared, attempts| async move { refresh::commit(&shared.pool, &attempts).await },
                Refreshed::position,
            ),
            changes: shared.group(
                "changes",
                CHANGES,
                |shared, changes| async move { batch::commit(&shared.pool, &changes).await },
                Changed::position,
            ),
            revocations: shared.group(
                "revocations",
                REVOCATIONS,
                |shared, revocations| async move { batch::commit(&shared.pool, &revocations).await },
                |outcome: &RevocationOutcome| Some(outcome.position),
            ),
            _tasks: tasks.into_iter().map(AbortOnDropHandle::new).collect(),
            poll_stopped,
            target,
            latest_timeline,
            shared,
        })
    }
}

/// Brings the schema up to date, and returns the versions of the migrations that were run.
pub async fn migrate(options: &Options) -> Result<Vec<&'static str>, OpenError> {
    let mut target = Target::load(options).await?;
    let prepared = open::prepare(&mut target, true).await?;
    if prepared.has_detached_records {
        open::attach_audit(&target).await;
    }
    Ok(prepared.made)
}

impl Shared {
    /// Starts the tasks that learn when the feed has new entries, and that tell other replicas.
    /// Cancels `poll_stopped` once the feed is no longer read.
    fn follow_feed(
        self: &Arc<Self>,
        target: &Target,
        poll_stopped: &CancellationToken,
    ) -> Vec<JoinHandle<()>> {
        let (is_live, liveness) = watch::channel(false);
        let (shared, stopped) = (self.clone(), poll_stopped.clone().drop_guard());
        let poll = async move {
            let _stopped = stopped;
            shared.poll(liveness).await;
        };
        vec![
            tokio::spawn(poll),
            tokio::spawn(wake_up::publish(self.clone())),
            tokio::spawn(wake_up::listen(self.clone(), target.clone(), is_live)),
        ]
    }

    /// Starts the group commit of one kind of write.
    fn group<W, O, F, R>(
        self: &Arc<Self>,
        name: &'static str,
        shape: Shape,
        commit: F,
        last_entry: fn(&O) -> Option<FeedPosition>,
    ) -> GroupCommit<W, O>
    where
        W: Clone + Send + Sync + 'static,
        O: Send + 'static,
        F: Fn(Arc<Self>, Arc<Vec<W>>) -> R + Send + Sync + 'static,
        R: Future<Output = BatchOutcome<O>> + Send,
    {
        let (shared, commit) = (self.clone(), Arc::new(commit));
        GroupCommit::start(name, shape, move |writes: Arc<Vec<W>>| {
            let (shared, commit) = (shared.clone(), commit.clone());
            async move { shared.announce(commit(shared.clone(), writes).await, last_entry) }
        })
    }

    /// Announces the newest entry of a committed batch to this process and to the other replicas.
    fn announce<O>(
        &self,
        outcomes: BatchOutcome<O>,
        last_entry: fn(&O) -> Option<FeedPosition>,
    ) -> BatchOutcome<O> {
        let positions = outcomes.iter().flatten().filter_map(last_entry);
        if let Some(seq) = positions.map(|position| position.seq).max() {
            self.hint(seq);
            self.committed.send_replace(seq);
        }
        outcomes
    }

    /// Publishes a position that the feed may have reached. It replaces the last published position
    /// even if that one is higher, so that the next read of the head corrects a wrong hint.
    fn hint(&self, seq: Seq) {
        self.hints.send_if_modified(|newest| std::mem::replace(newest, seq) != seq);
    }

    /// Returns the newest position of the feed that this process knows of.
    fn newest(&self) -> Seq {
        *self.hints.borrow()
    }

    /// Reads the head of the feed again and again, but not while notifications arrive.
    async fn poll(self: Arc<Self>, mut liveness: watch::Receiver<bool>) {
        loop {
            // Whenever notifications begin or cease to arrive, the head is read once more, because
            // some notifications may have been missed.
            let is_live = *liveness.borrow_and_update();
            let wait = match self.feed_head().await {
                Ok(position) => {
                    self.hint(position.seq);
                    POLL
                }
                Err(fault) => {
                    let error = StoreError::from(fault);
                    tracing::debug!(%error, "the head of the feed cannot be read");
                    POLL_RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait), if !is_live => {}
                changed = liveness.changed() => if changed.is_err() {
                    // The listener has stopped, because the store is being closed.
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    async fn feed_head(&self) -> Result<FeedPosition, Fault> {
        let mut connection = self.pool.checkout().await?;
        let head =
            self.pool.in_time(connection.origin(), entries::feed_head(&mut connection)).await;
        connection.end(&head);
        head
    }
}

/// Checks out a connection, runs one function on it, and returns it to the pool.
///
/// The function runs in a task of its own, which goes on when the caller goes away. If the function
/// were cancelled, the server would still finish the statement, over a connection that the pool no
/// longer counts; callers that give up early would then use up all connections that the server
/// allows.
macro_rules! with_connection {
    ($store:expr, $function:path $(, $argument:expr)*) => {{
        let (mut answer, outcome) = tokio::sync::oneshot::channel();
        let shared = $store.shared.clone();
        tokio::spawn(async move {
            let checked_out = tokio::select! {
                connection = shared.pool.checkout() => connection,
                () = answer.closed() => return,
            };
            let outcome = match checked_out {
                Ok(mut connection) => {
                    let origin = connection.origin();
                    let work = $function(&mut connection $(, $argument)*);
                    let outcome = shared.pool.in_time(origin, work).await;
                    connection.end(&outcome);
                    outcome
                }
                Err(fault) => Err(fault),
            };
            // The caller may have gone away.
            let _ = answer.send(outcome);
        });
        let stopped = |_| Err(StoreError::Unavailable("it is being closed".to_owned()).into());
        Ok(outcome.await.unwrap_or_else(stopped)?)
    }};
}

use with_connection;

async fn read_ring(connection: &mut PooledConnection<'_>) -> Result<SealedRing, Fault> {
    ring::ring(connection).await
}

#[async_trait]
impl Store for PostgresStore {
    async fn create_session(&self, creation: Creation) -> Result<Created, StoreError> {
        self.creations.write(creation).await
    }

    async fn refresh_session(&self, attempt: RefreshAttempt) -> Result<Refreshed, StoreError> {
        self.refreshes.write(attempt).await
    }

    async fn change_session(&self, change: SessionChange) -> Result<Changed, StoreError> {
        self.changes.write(change).await
    }

    async fn revoke(&self, revocation: Revocation) -> Result<RevocationOutcome, StoreError> {
        self.revocations.write(revocation).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        with_connection!(self, reads::session, id)
    }

    async fn metadata_of(&self, ids: Vec<SessionId>) -> Result<Vec<SessionMetadata>, StoreError> {
        with_connection!(self, metadata::read, ids)
    }

    async fn legacy_token(&self, hash: LegacyTokenHash) -> Result<Option<LegacyToken>, StoreError> {
        with_connection!(self, legacy_tokens::find, hash)
    }

    async fn sessions(
        &self,
        query: SessionQuery,
    ) -> Result<Part<Vec<Session>, SessionId>, StoreError> {
        with_connection!(self, search::sessions, query)
    }

    async fn count_sessions(
        &self,
        query: SessionQuery,
    ) -> Result<Part<i64, SessionId>, StoreError> {
        with_connection!(self, search::count, query)
    }

    async fn audit(
        &self,
        query: AuditQuery,
    ) -> Result<Part<Vec<AuditEntry>, AuditPlace>, StoreError> {
        with_connection!(self, audit::search::records, query)
    }

    async fn unfinished(&self) -> Result<Vec<CutOffEntry>, StoreError> {
        with_connection!(self, entries::unfinished)
    }

    async fn end_covered_sessions(
        &self,
        entry: CutOffEntry,
        walk: Walk,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError> {
        with_connection!(self, covered::end, &entry, walk, limit)
    }

    async fn cut_offs(&self) -> Result<Vec<CutOffEntry>, StoreError> {
        with_connection!(self, entries::cut_offs)
    }

    async fn count_covered(
        &self,
        key: CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<CountedBatch>, StoreError> {
        with_connection!(self, covered::count, (&key, cut_off), now, after, limit)
    }

    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError> {
        with_connection!(self, sweep::end_all_sessions, &ended, until, after, limit)
    }

    fn renewal_client(&self) -> Box<dyn RenewalClient> {
        Box::new(PostgresRenewalClient::new(self.target.clone(), Arc::clone(&self.latest_timeline)))
    }

    fn revocation_hints(&self) -> watch::Receiver<Seq> {
        self.shared.hints.subscribe()
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        with_connection!(self, reads::now)
    }

    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations, StoreError> {
        with_connection!(self, sweep::delete_expired_revocations, until, limit)
    }

    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        with_connection!(self, audit::append, &entries)
    }

    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError> {
        with_connection!(self, audit::delete_old, until, limit)
    }

    async fn sizes(&self, now: Timestamp) -> Result<Sizes, StoreError> {
        with_connection!(self, sizes::read, now)
    }

    fn counts(&self) -> StoreCounts {
        let queues = [
            self.creations.counts(),
            self.refreshes.counts(),
            self.changes.counts(),
            self.revocations.counts(),
        ];
        StoreCounts { queues: queues.to_vec(), connections: Some(self.shared.pool.counts()) }
    }

    async fn stopped(&self) {
        tokio::select! {
            () = self.creations.stopped() => {}
            () = self.refreshes.stopped() => {}
            () = self.changes.stopped() => {}
            () = self.revocations.stopped() => {}
            // The polling task shares the sender of hints with other tasks, so the channel of hints
            // does not close when the polling task ends. This token is cancelled when it ends.
            () = self.poll_stopped.cancelled() => {}
        }
    }

    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries, StoreError> {
        with_connection!(self, expiries::record, until, limit, keep)
    }

    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError> {
        with_connection!(self, sweep::delete_old_sessions, until, limit)
    }

    async fn delete_old_legacy_tokens(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<usize, StoreError> {
        with_connection!(self, legacy_tokens::delete_old, until, limit)
    }

    fn members(&self) -> Option<&dyn Members> {
        Some(self)
    }

    async fn ring(&self) -> Result<SealedRing, StoreError> {
        with_connection!(self, read_ring)
    }

    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>, StoreError> {
        let changed: Result<_, StoreError> = with_connection!(self, ring::change_ring, change);
        if let Ok(Some(FeedPosition { seq, .. })) = changed {
            self.shared.hint(seq);
            self.shared.committed.send_replace(seq);
        }
        changed
    }

    async fn is_refresh_key_in_use(
        &self,
        key: RefreshKeyId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        with_connection!(self, ring::is_refresh_key_in_use, key, now)
    }
}
