//! The embedded engine, SQLite. It uses one file, one connection that writes, and a write-ahead log
//! that is synced at each commit.

mod audit;
mod audit_search;
pub mod backup;
mod change;
mod connection;
mod covered;
mod create;
pub mod error;
mod expiries;
pub mod files;
mod legacy_tokens;
mod metadata;
pub mod open;
mod renewals;
mod ring;
mod rows;
mod schema;
mod search;
mod sizes;
mod space;
mod stamp;
mod watching;
mod writes;

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use diesel::{
    Connection as _, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper,
    SqliteConnection, dsl, sql_types::Bool,
};
use diesel_async::{
    AsyncConnection, RunQueryDsl, SimpleAsyncConnection,
    pooled_connection::{
        AsyncDieselConnectionManager, ManagerConfig, PoolError, RecyclingMethod,
        bb8::{Pool, PooledConnection},
    },
    sync_connection_wrapper::SyncConnectionWrapper,
};
use tokio::sync::{Mutex, watch};

use self::{
    error::OpenError,
    renewals::SqliteRenewalClient,
    rows::{CutOffRow, SessionRow},
    schema::{blacklist, sessions},
    stamp::Stamping,
    writes::CountedRevocation,
};
use super::{
    Changed, CountedBatch, Created, Creation, CutOffEntry, EndedBatch, RecordedExpiries, Refreshed,
    RevocationOutcome, Store, StoreError, SweptRevocations, Walk,
    batch::{BatchOutcome, Failure, GroupCommit, Retry, Shape},
    counts::{ConnectionCounts, StoreCounts, Waiting},
    replicas::RenewalClient,
    ring::{RingChange, SealedRing},
    sizes::Sizes,
};
use crate::domain::{
    audit::AuditEntry,
    change::SessionChange,
    cut_off::{CutOff, CutOffKey},
    disk,
    ids::SessionId,
    key::RefreshKeyId,
    legacy_token::{LegacyToken, LegacyTokenHash},
    metadata::SessionMetadata,
    refresh::RefreshAttempt,
    revocation::{FeedPosition, Revocation, RevocationTarget, Seq, Timeline},
    revoke::UncoveredCount,
    search::{AuditPlace, AuditQuery, Part, SessionQuery},
    session::{Ended, Session},
    text::{Subject, Tenant},
    time::Timestamp,
};

type Connection = SyncConnectionWrapper<SqliteConnection>;

/// The number of connections that read the feed. They are separate from those for other reads, so
/// that a slow listing never delays an acknowledgement.
const FEED_READERS: u32 = 1;
/// The number of connections for other reads. Each of them occupies a blocking thread while it
/// reads. Further reads wait for a connection.
const READERS: u32 = 4;
/// The only timeline of the file. There is no failover in which committed writes could be lost.
const TIMELINE: Timeline = Timeline(0);
/// The longest wait of a read for a connection, after which the database counts as unavailable.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions, the blacklist, the keys and the audit in one SQLite file.
pub struct SqliteStore {
    writer: Arc<Writer>,
    readers: Pool<Connection>,
    waiting: Waiting,
    feed: Pool<Connection>,
    creations: GroupCommit<Creation, Created>,
    refreshes: GroupCommit<RefreshAttempt, Refreshed>,
    changes: GroupCommit<SessionChange, Changed>,
    revocations: GroupCommit<CountedRevocation, RevocationOutcome>,
    /// The lock file, which is kept open to hold the lock. A batch that is being written when the
    /// store is dropped goes on after that, but no caller waits for its answer.
    _lock: File,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.writer.path).finish_non_exhaustive()
    }
}

impl From<diesel::result::Error> for StoreError {
    fn from(error: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind, Error};
        match error {
            // Diesel reports a lock, a full disk, an I/O error and a missing file as these kinds,
            // because it has no specific kind for any of them.
            Error::DatabaseError(
                DatabaseErrorKind::Unknown | DatabaseErrorKind::ClosedConnection,
                info,
            ) => Self::Unavailable(disk::explain(info.message()).into_owned()),
            Error::DeserializationError(error) => Self::Damaged(error.to_string()),
            Error::BrokenTransactionManager
            | Error::AlreadyInTransaction
            | Error::RollbackErrorOnCommit { .. } => Self::Unavailable(error.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Brings the schema of a file up to date, and returns the migrations that were run. Creates the
/// file if it does not exist.
pub async fn migrate(path: &Path) -> Result<Vec<String>, OpenError> {
    Ok(prepare(path, true).await?.migrations)
}

/// A file that has been locked and checked.
struct Prepared {
    /// The path of the file, with a symbolic link resolved.
    path: PathBuf,
    lock: File,
    /// The migrations that were run.
    migrations: Vec<String>,
}

/// Resolves the name of the file and takes the lock. Then checks and migrates the file.
async fn prepare(path: &Path, may_migrate: bool) -> Result<Prepared, OpenError> {
    let owned = path.to_owned();
    let preparing = tokio::task::spawn_blocking(move || {
        let path = files::resolve(&owned)?;
        let lock = files::lock(&path)?;
        let migrations = open::prepare(&path, may_migrate)?;
        Ok(Prepared { path, lock, migrations })
    });
    preparing
        .await
        .map_err(|error| OpenError::Other { path: path.to_owned(), problem: error.to_string() })?
}

impl SqliteStore {
    /// Opens the file, or creates it if it does not exist, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, true).await
    }

    /// Opens the file without migrating it. Fails if the file does not have the newest schema.
    pub async fn open_migrated(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, false).await
    }

    async fn open_with(path: &Path, may_migrate: bool) -> Result<Self, OpenError> {
        let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
        let Prepared { path, lock, .. } = prepare(path, may_migrate).await?;

        let readers = pool(&path, READERS).await.map_err(|error| other(error.to_string()))?;
        let feed = pool(&path, FEED_READERS).await.map_err(|error| other(error.to_string()))?;

        let (hints, _) = watch::channel(Seq::default());
        let stamping = Arc::new(std::sync::Mutex::new(Stamping::new()));
        let writer = Arc::new(Writer { path, connection: Mutex::default(), stamping, hints });
        Ok(Self {
            creations: writer.group("creations", create::create_all, Created::position),
            refreshes: writer.group(
                "refreshes",
                |connection, attempts| apply_each(connection, attempts, writes::refresh),
                Refreshed::position,
            ),
            changes: writer.group(
                "changes",
                |connection, changes| apply_each(connection, changes, change::change),
                Changed::position,
            ),
            revocations: writer.group(
                "revocations",
                |connection, revocations| apply_each(connection, revocations, writes::revoke),
                |outcome| Some(outcome.position),
            ),
            writer,
            readers,
            waiting: Waiting::default(),
            feed,
            _lock: lock,
        })
    }

    /// Counts the live sessions of a tenant or of a subject that its blacklist entry does not
    /// cover. Covered sessions have ended already, although their rows may not be marked as ended
    /// yet. For a subject, one session may be left out of the count.
    async fn count_uncovered(
        &self,
        tenant: Tenant,
        subject: Option<(Subject, Option<SessionId>)>,
        now: Timestamp,
    ) -> Result<UncoveredCount, StoreError> {
        let mut reader = self.reader().await?;
        let count = move |connection: &mut SqliteConnection| {
            let (subject, except) = subject.unzip();
            writes::count_uncovered(connection, &tenant, subject.as_ref(), except.flatten(), now)
        };
        reader.spawn_blocking(move |connection| Ok(count(connection))).await?
    }

    async fn reader(&self) -> Result<PooledConnection<'_, Connection>, StoreError> {
        let _waiting = self.waiting.begin();
        connection(&self.readers).await
    }
}

/// Applies writes one after the other.
fn apply_each<W, O>(
    connection: &mut SqliteConnection,
    writes: &[W],
    apply: fn(&mut SqliteConnection, &W) -> Result<O, StoreError>,
) -> Result<Vec<O>, StoreError> {
    writes.iter().map(|write| apply(connection, write)).collect()
}

/// Creates a pool of connections that read a file.
async fn pool(path: &Path, size: u32) -> Result<Pool<Connection>, PoolError> {
    let mut config = ManagerConfig::default();
    // A connection to a file does not break by itself, so it is not tested before each use.
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(|path| {
        Box::pin(async move {
            let mut connection = <Connection as AsyncConnection>::establish(path).await?;
            let settings = connection.batch_execute(connection::READER_SETTINGS).await;
            let settings = match settings {
                Ok(()) => connection.spawn_blocking(search::register_functions).await,
                Err(error) => Err(error),
            };
            settings.map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
            Ok(connection)
        })
    });
    let manager = AsyncDieselConnectionManager::new_with_config(path.to_string_lossy(), config);
    Pool::builder().max_size(size).connection_timeout(READER_TIMEOUT).build(manager).await
}

async fn connection(
    pool: &Pool<Connection>,
) -> Result<PooledConnection<'_, Connection>, StoreError> {
    pool.get().await.map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// The only connection that writes.
struct Writer {
    path: PathBuf,
    /// The connection, if there is one. It is taken out while it is used, and put back only after
    /// success, so that a connection on which an error occurred is never used again.
    connection: Mutex<Option<Connection>>,
    /// The state of the stamp of the file. The stamp shows that the log beside the file belongs to
    /// the file.
    stamping: Arc<std::sync::Mutex<Stamping>>,
    /// The newest position that was committed to the feed. A change of this position wakes the
    /// renewer.
    hints: watch::Sender<Seq>,
}

impl Writer {
    /// Runs a transaction to its end, even if the caller goes away in the meantime.
    async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => {
                let path = self.path.clone();
                let opened = tokio::task::spawn_blocking(move || connection::writer(&path)).await;
                Connection::new(
                    opened.map_err(|error| StoreError::Unavailable(error.to_string()))??,
                )
            }
        };
        let (path, stamping) = (self.path.clone(), self.stamping.clone());
        let transact = move |connection: &mut SqliteConnection| {
            let mut stamping = stamping.lock().unwrap_or_else(PoisonError::into_inner);
            if stamping.is_due() {
                stamping.renew(&path, connection);
            }
            drop(stamping);
            Ok(writes::transaction(connection, work))
        };
        let outcome = connection.spawn_blocking(transact).await;
        let outcome = outcome.map_err(StoreError::from).flatten();
        if outcome.is_ok() {
            *slot = Some(connection);
        }
        outcome
    }

    /// Starts the group commit of one kind of write.
    fn group<W, O>(
        self: &Arc<Self>,
        name: &'static str,
        apply: fn(&mut SqliteConnection, &[W]) -> Result<Vec<O>, StoreError>,
        last_entry: fn(&O) -> Option<FeedPosition>,
    ) -> GroupCommit<W, O>
    where
        W: Clone + Send + Sync + 'static,
        O: Send + 'static,
    {
        let writer = self.clone();
        GroupCommit::start(name, Shape::SINGLE, move |writes: Arc<Vec<W>>| {
            let writer = writer.clone();
            async move {
                let count = writes.len();
                let outcomes: BatchOutcome<O> =
                    match writer.transaction(move |connection| apply(connection, &writes)).await {
                        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                        Err(error) => Failure { error, retry: Retry::Alone }.of_all(count),
                    };
                let newest = outcomes
                    .iter()
                    .flatten()
                    .filter_map(last_entry)
                    .map(|position| position.seq)
                    .max();
                if let Some(seq) = newest {
                    writer.hint(seq);
                }
                outcomes
            }
        })
    }

    fn hint(&self, seq: Seq) {
        self.hints.send_modify(|newest| *newest = seq.max(*newest));
    }
}

#[async_trait]
impl Store for SqliteStore {
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
        let at = revocation.ended.at;
        let uncovered = match &revocation.target {
            RevocationTarget::Tenant(tenant) => {
                Some(self.count_uncovered(tenant.clone(), None, at).await?)
            }
            RevocationTarget::Subject { tenant, subject, except } => {
                let subject = Some((subject.clone(), *except));
                Some(self.count_uncovered(tenant.clone(), subject, at).await?)
            }
            RevocationTarget::Session(_)
            | RevocationTarget::Token { .. }
            | RevocationTarget::Subjects { .. }
            | RevocationTarget::Sessions { .. }
            | RevocationTarget::Lost(_) => None,
        };
        self.revocations.write(CountedRevocation { revocation, uncovered }).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let row = sessions::table
            .find(id.bytes().to_vec())
            .select(SessionRow::as_select())
            .get_result(&mut self.reader().await?)
            .await
            .optional()?;
        row.map(Session::try_from).transpose()
    }

    async fn metadata_of(&self, ids: Vec<SessionId>) -> Result<Vec<SessionMetadata>, StoreError> {
        let mut reader = self.reader().await?;
        metadata::read(&mut reader, &ids).await
    }

    async fn legacy_token(&self, hash: LegacyTokenHash) -> Result<Option<LegacyToken>, StoreError> {
        let mut reader = self.reader().await?;
        reader.spawn_blocking(move |connection| Ok(legacy_tokens::find(connection, &hash))).await?
    }

    async fn sessions(
        &self,
        query: SessionQuery,
    ) -> Result<Part<Vec<Session>, SessionId>, StoreError> {
        search::sessions(&mut *self.reader().await?, query).await
    }

    async fn count_sessions(
        &self,
        query: SessionQuery,
    ) -> Result<Part<i64, SessionId>, StoreError> {
        search::count(&mut *self.reader().await?, query).await
    }

    async fn audit(
        &self,
        query: AuditQuery,
    ) -> Result<Part<Vec<AuditEntry>, AuditPlace>, StoreError> {
        audit_search::search(&mut *self.reader().await?, query).await
    }

    async fn unfinished(&self) -> Result<Vec<CutOffEntry>, StoreError> {
        let rows = blacklist::table
            .filter(dsl::sql::<Bool>("unfinished"))
            .order(blacklist::seq.asc())
            .select(CutOffRow::as_select())
            .load(&mut self.reader().await?)
            .await?;
        rows.into_iter().map(CutOffEntry::try_from).collect()
    }

    async fn end_covered_sessions(
        &self,
        entry: CutOffEntry,
        walk: Walk,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError> {
        self.writer
            .transaction(move |connection| covered::end(connection, &entry, walk, limit))
            .await
    }

    async fn cut_offs(&self) -> Result<Vec<CutOffEntry>, StoreError> {
        let rows = blacklist::table
            .filter(dsl::sql::<Bool>("(unfinished OR walked_at IS NOT NULL)"))
            .order(blacklist::seq.desc())
            .select(CutOffRow::as_select())
            .load(&mut self.reader().await?)
            .await?;
        rows.into_iter().map(CutOffEntry::try_from).collect()
    }

    async fn count_covered(
        &self,
        key: CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<CountedBatch>, StoreError> {
        let count = move |connection: &mut SqliteConnection| {
            Ok(covered::count(connection, (&key, cut_off), now, after, limit))
        };
        self.reader().await?.spawn_blocking(count).await?
    }

    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError> {
        self.writer
            .transaction(move |connection| {
                writes::end_all_sessions(connection, &ended, until, after, limit)
            })
            .await
    }

    fn renewal_client(&self) -> Box<dyn RenewalClient> {
        Box::new(SqliteRenewalClient::new(self.feed.clone()))
    }

    fn revocation_hints(&self) -> watch::Receiver<Seq> {
        self.writer.hints.subscribe()
    }

    async fn newest(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut reader = self.reader().await?;
        reader.spawn_blocking(|connection| Ok(writes::newest(connection))).await?
    }

    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations, StoreError> {
        self.writer
            .transaction(move |connection| {
                writes::delete_expired_revocations(connection, until, limit)
            })
            .await
    }

    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries, StoreError> {
        self.writer
            .transaction(move |connection| expiries::record(connection, until, limit, keep))
            .await
    }

    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError> {
        self.writer
            .transaction(move |connection| writes::delete_old_sessions(connection, until, limit))
            .await
    }

    async fn delete_old_legacy_tokens(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<usize, StoreError> {
        self.writer
            .transaction(move |connection| legacy_tokens::delete_old(connection, until, limit))
            .await
    }

    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        self.writer.transaction(move |connection| audit::append(connection, &entries)).await
    }

    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError> {
        self.writer.transaction(move |connection| audit::delete_old(connection, until, limit)).await
    }

    async fn release_space(&self) -> Result<bool, StoreError> {
        // A reading connection counts the free pages, so that the writer is not needed while there
        // is nothing to do.
        let mut reader = self.reader().await?;
        let surplus = reader.spawn_blocking(|connection| Ok(space::surplus(connection))).await??;
        drop(reader);
        if surplus > 0 {
            self.writer.transaction(move |connection| space::release(connection, surplus)).await?;
        }
        Ok(surplus > space::RELEASED_AT_ONCE)
    }

    async fn begin_watching(&self, validity: Duration) -> Result<(), StoreError> {
        self.writer.transaction(move |connection| watching::begin(connection, validity)).await
    }

    async fn watched(&self) -> Result<Option<Duration>, StoreError> {
        self.reader().await?.spawn_blocking(|connection| Ok(watching::read(connection))).await?
    }

    async fn end_watching(&self) -> Result<(), StoreError> {
        self.writer.transaction(watching::end).await
    }

    async fn sizes(&self, now: Timestamp) -> Result<Sizes, StoreError> {
        let mut reader = self.reader().await?;
        reader.spawn_blocking(move |connection| Ok(sizes::read(connection, now))).await?
    }

    fn counts(&self) -> StoreCounts {
        let queues = [
            self.creations.counts(),
            self.refreshes.counts(),
            self.changes.counts(),
            self.revocations.counts(),
        ];
        StoreCounts {
            queues: queues.to_vec(),
            connections: Some(ConnectionCounts::of(&self.readers.state(), &self.waiting)),
        }
    }

    async fn stopped(&self) {
        tokio::select! {
            () = self.creations.stopped() => {}
            () = self.refreshes.stopped() => {}
            () = self.changes.stopped() => {}
            () = self.revocations.stopped() => {}
        }
    }

    async fn ring(&self) -> Result<SealedRing, StoreError> {
        let mut reader = self.reader().await?;
        // The keys and the version are read in one transaction, so that they belong together.
        let read = reader.spawn_blocking(|connection| Ok(connection.transaction(ring::ring))).await;
        read.map_err(StoreError::from).flatten()
    }

    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>, StoreError> {
        let writer = self.writer.clone();
        // The change runs to its end even if the caller goes away, because this process must read
        // the keys again once they have changed.
        let changing = tokio::spawn(async move {
            let position =
                writer.transaction(move |connection| ring::change_ring(connection, change)).await?;
            if let Some(FeedPosition { seq, .. }) = position {
                writer.hint(seq);
            }
            Ok(position)
        });
        changing.await.map_err(|error| StoreError::Unavailable(error.to_string()))?
    }

    async fn is_refresh_key_in_use(
        &self,
        key: RefreshKeyId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let held = move |connection: &mut SqliteConnection| {
            Ok(ring::is_refresh_key_in_use(connection, key, now))
        };
        self.reader().await?.spawn_blocking(held).await?
    }
}
