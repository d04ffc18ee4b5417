//! The pool of connections.
//!
//! A connection is in doubt from the moment it is lent until its work has succeeded. One that comes
//! back in doubt, because a statement failed or because the caller went away in the middle, is
//! closed, which undoes what it had not committed. So is one that was made before the latest
//! failover.

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
use crate::{domain::revocation::Timeline, store::StoreError};

/// The pause before a connection that could not be made is tried again, at first and at last, each
/// with up to as much again by chance, so that replicas do not come back all at once.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(350);
/// A connection that nobody used for this long is asked whether it still answers.
const DOUBTFUL_AFTER: Duration = Duration::from_secs(5);
/// The time that it has to answer, and that work goes on at a server that has been replaced.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// The time that anything may take beyond that of a statement: the server gives up before we do.
const MARGIN: Duration = Duration::from_secs(5);
/// A connection of the pool.
pub struct Connection {
    inner: AsyncPgConnection,
    in_doubt: bool,
    /// The server may yet have to answer something.
    is_pending: bool,
    /// Set once the server has warned of something since it was lent.
    warned: Arc<AtomicBool>,
    has_locks: bool,
    used_at: Instant,
    origin: Origin,
    /// Moves its bytes.
    driver: AbortHandle,
}

impl Drop for Connection {
    /// Closes it at once if the server may yet have to answer: the driver would wait for the answer
    /// to what was given up, which may be never. Otherwise the driver takes its leave of the
    /// server, which would log a connection that just ends.
    fn drop(&mut self) {
        if self.is_pending {
            self.driver.abort();
        }
    }
}

/// Makes connections.
pub struct Manager {
    target: Target,
    latest: Arc<LatestTimeline>,
    /// Why none can be made.
    trouble: Arc<Mutex<Option<String>>>,
    /// Ends the attempts.
    closed: CancellationToken,
}

impl Manager {
    /// Takes note of why no connection can be made, and says so once.
    fn in_trouble(&self, error: &OpenError) {
        // A failure because the process ends is no trouble.
        if self.closed.is_cancelled() {
            return;
        }
        let problem = error.to_string();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_none() {
            tracing::error!(%problem, "the database is away; trying again");
        }
        *trouble = Some(problem);
    }

    fn out_of_trouble(&self) {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        if trouble.is_some() {
            tracing::info!("the database is back");
        }
    }
}

/// The pool is closed, or a connection has turned out to be.
#[derive(Debug)]
pub struct Closed;

impl bb8::ManageConnection for Manager {
    type Connection = Connection;
    type Error = Closed;

    /// Tries until there is one: whoever waits for it knows for how long.
    async fn connect(&self) -> Result<Connection, Closed> {
        let retries = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .with_jitter()
            .without_max_times();
        // The latest timeline may change while nothing is to be reached.
        let connect = async || {
            let latest = self.latest.get();
            self.target.connect_in(latest).await.map(|connected| (connected, latest))
        };
        let connecting = connect.retry(retries).notify(|error, _| self.in_trouble(error));
        let (connected, latest) = tokio::select! {
            () = self.closed.cancelled() => return Err(Closed),
            connected = connecting => connected.map_err(|_| Closed)?,
        };
        let Connected { connection: inner, warned, driver, timeline, .. } = connected;
        let origin = Origin::new(timeline.ok_or(Closed)?, latest);
        self.out_of_trouble();
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

    /// Asks only where what the driver has noticed may not be all: a firewall forgets a connection
    /// that says nothing.
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

/// The connections of a store.
pub struct Pool {
    connections: bb8::Pool<Manager>,
    latest: Arc<LatestTimeline>,
    trouble: Arc<Mutex<Option<String>>>,
    /// The time that anything may take.
    patience: Duration,
    closed: CancellationToken,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool that makes its connections when they are needed.
    pub fn new(target: Target, latest: Arc<LatestTimeline>, options: &Options) -> Self {
        let (trouble, closed) = (Arc::default(), CancellationToken::new());
        let manager = Manager {
            target,
            latest: Arc::clone(&latest),
            trouble: Arc::clone(&trouble),
            closed: closed.clone(),
        };
        let builder = bb8::Pool::builder()
            .max_size(options.max_connections)
            .connection_timeout(options.acquire_timeout)
            // The server's state of a connection that was used just now is still in the processor's
            // cache.
            .queue_strategy(QueueStrategy::Lifo)
            .test_on_check_out(true);
        Self {
            connections: builder.build_unchecked(manager),
            latest,
            trouble,
            patience: options.statement_timeout + MARGIN,
            closed,
        }
    }

    /// A guard that ends the attempts to connect when it is dropped: whoever owns the pool keeps
    /// it, because tasks that use the pool may go on for a moment.
    pub fn owner(&self) -> DropGuard {
        self.closed.clone().drop_guard()
    }

    /// The latest timeline, if it is known.
    pub fn latest(&self) -> Option<Timeline> {
        self.latest.get()
    }

    /// Gives up what takes longer than the server lets it take: then the connection is dead, and
    /// nobody says so. Once another server is known to be in charge than the one to which the
    /// connection of this origin leads, the work is given up soon.
    pub async fn in_time<T>(
        &self,
        origin: Origin,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let away = |problem: &str| Err(Fault::Away(StoreError::Unavailable(problem.to_owned())));
        let replaced = async {
            self.latest.replaced(origin).await;
            sleep(ANSWER_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            outcome = work => outcome,
            () = replaced => away("another server has taken its place"),
            () = sleep(self.patience) => away("it does not answer"),
        }
    }

    /// Lends a connection.
    pub async fn checkout(&self) -> Result<PooledConnection<'_>, Fault> {
        match self.connections.get().await {
            Ok(mut connection) => {
                (connection.in_doubt, connection.is_pending) = (true, true);
                connection.warned.store(false, Ordering::SeqCst);
                Ok(PooledConnection(connection))
            }
            Err(_) => {
                let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let busy = || "all connections are in use".to_owned();
                Err(Fault::Away(StoreError::Unavailable(trouble.unwrap_or_else(busy))))
            }
        }
    }
}

/// A connection on loan, in doubt until it is released.
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

/// Begins a transaction. Each of its statements sees what others have committed until then.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

impl PooledConnection<'_> {
    /// Runs statements that have no values. What is polled at once with others is sent without
    /// waiting for them.
    pub async fn run(&self, statements: &str) -> Result<(), Fault> {
        let mut connection: &AsyncPgConnection = self;
        Ok(connection.batch_execute(statements).await?)
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> Result<(), Fault> {
        self.run(BEGIN).await
    }

    /// Ends the transaction.
    pub async fn commit(&self) -> Result<(), Fault> {
        // A commit that fails may have been done.
        self.run("COMMIT").await.map_err(|fault| match fault {
            Fault::Final(error) => Fault::Away(error),
            other => other,
        })
    }

    /// The server that it leads to.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Returns whether the server has warned of something since the connection was lent.
    pub fn has_warned(&self) -> bool {
        self.0.warned.load(Ordering::SeqCst)
    }

    /// Returns whether the database has advisory locks.
    pub fn has_locks(&self) -> bool {
        self.0.has_locks
    }

    /// Gives the connection back: in good order if its work has succeeded, else to be closed.
    pub fn end<T>(mut self, outcome: &Result<T, Fault>) {
        self.0.in_doubt = outcome.is_err();
        self.0.is_pending = matches!(outcome, Err(Fault::Away(_)));
        self.0.used_at = Instant::now();
    }
}
