//! The pool of connections.
//!
//! A connection is in doubt from its checkout until its work has succeeded. The pool closes a
//! connection that is returned in doubt, because a statement failed or the caller went away in the
//! middle; this rolls back what the connection had not committed. The pool also closes a connection
//! that was made before the latest failover.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use bb8::QueueStrategy;
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection, pooled_connection::PoolableConnection,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connect::{Connected, Options, Target},
    fault::Fault,
    open_error::OpenError,
    origin::{LatestTimeline, Origin},
};
use crate::{
    domain::revocation::Timeline,
    store::{
        StoreError,
        counts::{ConnectionCounts, Waiting},
    },
};

/// The first and the longest pause between two attempts to connect. A random time, at most as long
/// as the pause, is added to it, so that the replicas do not all connect at once.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(350);
/// The idle time after which a connection is tested before it is used.
const DOUBTFUL_AFTER: Duration = Duration::from_secs(5);
/// The time within which a connection that is tested must answer. It is also the time for which
/// work may go on at a server that has been replaced.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// The difference between the time-out of this process and the shorter one of the server, so that
/// the server gives up first.
const MARGIN: Duration = Duration::from_secs(5);

/// A connection of the pool.
pub struct Connection {
    inner: AsyncPgConnection,
    in_doubt: bool,
    /// True if the server may still have to answer a statement.
    is_pending: bool,
    /// True if the server has sent a warning since the checkout.
    warned: Arc<AtomicBool>,
    has_locks: bool,
    used_at: Instant,
    origin: Origin,
    /// The task that sends and receives the bytes of the connection.
    driver: AbortHandle,
}

impl Drop for Connection {
    /// Closes the connection at once if the server may still have to answer, because the driver
    /// would wait for that answer, perhaps for ever. Otherwise leaves it to the driver to end the
    /// session in an orderly way. If the connection just broke off, the server would log that.
    fn drop(&mut self) {
        if self.is_pending {
            self.driver.abort();
        }
    }
}

/// Makes the connections of the pool.
pub struct Manager {
    target: Target,
    latest: Arc<LatestTimeline>,
    /// The reason why no connection can be made at present, if there is one.
    failure: Arc<Mutex<Option<String>>>,
    /// Is cancelled to end the attempts to connect.
    closed: CancellationToken,
}

impl Manager {
    /// Records why no connection can be made, and logs it unless a failure is already recorded.
    fn record_failure(&self, error: &OpenError) {
        // A failure while the pool is being closed does not count.
        if self.closed.is_cancelled() {
            return;
        }
        let problem = error.to_string();
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            tracing::error!(%problem, "the database is away; trying again");
        }
        *failure = Some(problem);
    }

    fn record_success(&self) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if failure.is_some() {
            tracing::info!("the database is back");
        }
    }
}

/// The error for a pool that is closed, or a connection that cannot be used any more.
#[derive(Debug)]
pub struct Closed;

impl bb8::ManageConnection for Manager {
    type Connection = Connection;
    type Error = Closed;

    /// Tries until a connection has been made. Each caller limits how long it waits for one.
    async fn connect(&self) -> Result<Connection, Closed> {
        let retries = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .with_jitter()
            .without_max_times();
        // The latest timeline is read for each attempt, because it may change while no server can
        // be reached.
        let connect = async || {
            let latest = self.latest.get();
            self.target.connect_in(latest).await.map(|connected| (connected, latest))
        };
        let connecting = connect.retry(retries).notify(|error, _| self.record_failure(error));
        let (connected, latest) = tokio::select! {
            () = self.closed.cancelled() => return Err(Closed),
            connected = connecting => connected.map_err(|_| Closed)?,
        };
        let Connected { connection: inner, warned, driver, timeline, .. } = connected;
        let origin = Origin::new(timeline.ok_or(Closed)?, latest);
        self.record_success();
        let has_locks = self.target.has_locks;
        let (in_doubt, is_pending) = (false, false);
        Ok(Connection {
            inner,
            in_doubt,
            is_pending,
            warned,
            has_locks,
            used_at: Instant::now(),
            origin,
            driver,
        })
    }

    /// Tests a connection that was idle for a long time. Such a connection may be dead without the
    /// driver's knowledge, because a firewall drops idle connections without notice.
    async fn is_valid(&self, connection: &mut Connection) -> Result<(), Closed> {
        if connection.used_at.elapsed() > DOUBTFUL_AFTER {
            (connection.in_doubt, connection.is_pending) = (true, true);
            let answer = timeout(ANSWER_TIMEOUT, connection.inner.batch_execute("")).await;
            let is_good = matches!(answer, Ok(Ok(())));
            (connection.in_doubt, connection.is_pending) = (!is_good, !is_good);
        }
        if self.has_broken(connection) { Err(Closed) } else { Ok(()) }
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.in_doubt
            || connection.origin.is_replaced(self.latest.get())
            || connection.inner.is_broken()
    }
}

/// The pool of connections of a store.
pub struct Pool {
    connections: bb8::Pool<Manager>,
    latest: Arc<LatestTimeline>,
    failure: Arc<Mutex<Option<String>>>,
    waiting: Waiting,
    /// The longest time that work on a connection may take.
    work_timeout: Duration,
    closed: CancellationToken,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Creates a pool that makes its connections when they are needed.
    pub fn new(target: Target, latest: Arc<LatestTimeline>, options: &Options) -> Self {
        let (failure, closed) = (Arc::default(), CancellationToken::new());
        let manager = Manager {
            target,
            latest: Arc::clone(&latest),
            failure: Arc::clone(&failure),
            closed: closed.clone(),
        };
        let builder = bb8::Pool::builder()
            .max_size(options.max_connections)
            .connection_timeout(options.acquire_timeout)
            // The most recently used connection is reused first, because the state of its server
            // process is still in the processor's cache.
            .queue_strategy(QueueStrategy::Lifo)
            .test_on_check_out(true);
        Self {
            connections: builder.build_unchecked(manager),
            latest,
            failure,
            waiting: Waiting::default(),
            work_timeout: options.statement_timeout + MARGIN,
            closed,
        }
    }

    /// Returns a guard that ends the attempts to connect when it is dropped. The owner of the pool
    /// keeps the guard. Dropping the pool would not end them, because tasks that share the pool may
    /// go on for a moment.
    pub fn owner(&self) -> DropGuard {
        self.closed.clone().drop_guard()
    }

    /// Returns the counts of the connections.
    pub fn counts(&self) -> ConnectionCounts {
        ConnectionCounts::of(&self.connections.state(), &self.waiting)
    }

    /// Returns the latest timeline, if it is known.
    pub fn latest(&self) -> Option<Timeline> {
        self.latest.get()
    }

    /// Runs work with a time-out. The time-out is longer than the server's own, so a connection on
    /// which it passes must be dead. The work is also ended, after a short while, once the latest
    /// timeline shows that another server has replaced the one of this origin.
    pub async fn in_time<T>(
        &self,
        origin: Origin,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let connection_lost =
            |problem: &str| Err(Fault::ConnectionLost(StoreError::Unavailable(problem.to_owned())));
        let replaced = async {
            self.latest.replaced(origin).await;
            sleep(ANSWER_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            outcome = work => outcome,
            () = replaced => connection_lost("another server has taken its place"),
            () = sleep(self.work_timeout) => connection_lost("it does not answer"),
        }
    }

    /// Checks out a connection.
    pub async fn checkout(&self) -> Result<PooledConnection<'_>, Fault> {
        let got = {
            let _waiting = self.waiting.begin();
            self.connections.get().await
        };
        match got {
            Ok(mut connection) => {
                (connection.in_doubt, connection.is_pending) = (true, true);
                connection.warned.store(false, Ordering::SeqCst);
                Ok(PooledConnection(connection))
            }
            Err(_) => {
                let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let busy = || "all connections are in use".to_owned();
                Err(Fault::ConnectionLost(StoreError::Unavailable(failure.unwrap_or_else(busy))))
            }
        }
    }
}

/// A connection that is checked out. It is in doubt until [`Self::end`] reports success.
pub struct PooledConnection<'a>(bb8::PooledConnection<'a, Manager>);

impl Deref for PooledConnection<'_> {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &AsyncPgConnection {
        &self.0.inner
    }
}

impl DerefMut for PooledConnection<'_> {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.0.inner
    }
}

/// Begins a transaction in which each statement sees what other transactions committed before that
/// statement.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

impl PooledConnection<'_> {
    /// Runs statements that have no values. If several calls are polled together, they are
    /// pipelined: each is sent without waiting for the answers to the others.
    pub async fn run(&self, statements: &str) -> Result<(), Fault> {
        let mut connection: &AsyncPgConnection = self;
        Ok(connection.batch_execute(statements).await?)
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> Result<(), Fault> {
        self.run(BEGIN).await
    }

    /// Commits the transaction.
    pub async fn commit(&self) -> Result<(), Fault> {
        // A commit that fails may have taken effect all the same.
        self.run("COMMIT").await.map_err(|fault| match fault {
            Fault::Failed(error) => Fault::ConnectionLost(error),
            other => other,
        })
    }

    /// Returns the server that the connection leads to.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Returns whether the server has sent a warning since the checkout.
    pub fn has_warned(&self) -> bool {
        self.0.warned.load(Ordering::SeqCst)
    }

    /// Returns whether the database has advisory locks.
    pub fn has_locks(&self) -> bool {
        self.0.has_locks
    }

    /// Returns the connection to the pool. The pool keeps the connection if its work has succeeded,
    /// and closes it otherwise.
    pub fn end<T>(mut self, outcome: &Result<T, Fault>) {
        self.0.in_doubt = outcome.is_err();
        self.0.is_pending = matches!(outcome, Err(Fault::ConnectionLost(_)));
        self.0.used_at = Instant::now();
    }
}
