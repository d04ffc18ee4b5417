//! Connections, and what their errors mean for a batch of writes.
//!
//! A connection is in doubt from the moment it is lent until its work has succeeded. One that comes
//! back in doubt, because a statement failed or because the caller went away in the middle, is
//! closed, which undoes what it had not committed. So is one that was made before the latest
//! failover.

use std::{
    fmt,
    future::pending,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use bb8::QueueStrategy;
use diesel::result::Error;
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection, pooled_connection::PoolableConnection,
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connect::{Connected, Options, Target},
    open_error::OpenError,
    sqlstate::Class,
};
use crate::{
    domain::revocation::Timeline,
    store::{StoreError, batch::BatchOutcome},
};

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
/// A batch that failed only after this long is not tried again write by write: that would take as
/// long each time.
const SLOW: Duration = Duration::from_secs(2);

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
    async fn replaced(&self, origin: Origin) {
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
    /// Returns whether another server is in charge, by the latest timeline. One that is newer than
    /// that may have taken over just now, until something newer is known.
    fn is_replaced(self, latest: Option<Timeline>) -> bool {
        match latest {
            None => false,
            Some(known) if known == self.timeline => false,
            Some(known) => latest != self.latest || self.timeline.0 < known.0,
        }
    }
}

/// The way in which work has failed.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing was written, because of others who wrote at the same time: worth another try.
    Again(StoreError),
    /// The connection is lost, or there was none. Whether a commit that was under way took effect
    /// is not known.
    Away(StoreError),
    /// Nothing was written, and the same again would fail again, at once at least.
    Final(StoreError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::DatabaseError(_, information) => information.message().to_owned(),
            other => other.to_string(),
        };
        match Class::of(&error) {
            Class::Retry | Class::Outdated => Self::Again(StoreError::Unavailable(message)),
            Class::Unavailable => Self::Final(StoreError::Unavailable(message)),
            Class::Lost | Class::Rejected => Self::Away(StoreError::Unavailable(message)),
            Class::Bug if matches!(error, Error::DeserializationError(_)) => {
                Self::Final(StoreError::Damaged(message))
            }
            Class::Bug => Self::Final(StoreError::Refused(message)),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Again(error) | Fault::Away(error) | Fault::Final(error) => error,
        }
    }
}

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
        let origin = Origin { timeline: timeline.ok_or(Closed)?, latest };
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

/// A write that is made together with others of its kind.
#[async_trait]
pub trait BatchWrite: Send + Sync + Sized {
    /// The result of it.
    type Outcome: Send + 'static;

    /// Makes all of them. A fault means that none has been made, or, if the connection is lost,
    /// that nobody knows.
    async fn apply(
        connection: &mut PooledConnection<'_>,
        writes: &[Self],
    ) -> Result<Vec<Result<Self::Outcome, StoreError>>, Fault>;
}

/// Commits a batch. An error means that nothing was written and that each may be tried by itself.
pub async fn commit<W: BatchWrite>(pool: &Pool, writes: &[W]) -> BatchOutcome<W::Outcome> {
    let started = Instant::now();
    let mut is_first_try = true;
    loop {
        let fault = match apply(pool, writes).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(fault) => fault,
        };
        let is_slow = started.elapsed() > SLOW;
        match fault {
            Fault::Again(_) if is_first_try && !is_slow => is_first_try = false,
            Fault::Again(error) | Fault::Final(error) if !is_slow => return Err(error),
            // One by one they would wait as long, or do again what was done without our knowing.
            other => {
                let error = StoreError::from(other);
                return Ok(writes.iter().map(|_| Err(error.clone())).collect());
            }
        }
    }
}

async fn apply<W: BatchWrite>(
    pool: &Pool,
    writes: &[W],
) -> Result<Vec<Result<W::Outcome, StoreError>>, Fault> {
    let mut connection = pool.checkout().await?;
    let mut outcomes = pool.in_time(connection.origin(), W::apply(&mut connection, writes)).await;
    // It may be a commit whose wait for the standbys was cancelled: that is visible, and may yet be
    // lost with the primary.
    if outcomes.is_ok() && connection.0.warned.load(Ordering::SeqCst) {
        outcomes = Err(Fault::Away(StoreError::Unavailable("it gave a warning".to_owned())));
    }
    connection.end(&outcomes);
    outcomes
}

/// Commits a batch in two steps: all of it the swift way, which leaves out what is not plain, and
/// that the careful way. What the first step has committed is committed, whatever becomes of the
/// second.
pub async fn commit_in_two<'a, W, S, C>(
    pool: &Pool,
    writes: &'a [W],
    swift: fn(&'a W) -> S,
    careful: impl Fn(&'a W) -> C,
) -> BatchOutcome<C::Outcome>
where
    S: BatchWrite<Outcome = Option<C::Outcome>>,
    C: BatchWrite,
{
    let all: Vec<S> = writes.iter().map(swift).collect();
    let mut outcomes = commit(pool, &all).await?;
    let is_left = |outcome: &Result<Option<C::Outcome>, StoreError>| matches!(outcome, Ok(None));
    let left = writes.iter().zip(&outcomes).filter(|(_, outcome)| is_left(outcome));
    let left: Vec<C> = left.map(|(write, _)| careful(write)).collect();
    if !left.is_empty() {
        let mut rest = commit_each(pool, &left).await.into_iter();
        for outcome in outcomes.iter_mut().filter(|outcome| is_left(outcome)) {
            *outcome = rest.next().transpose();
        }
    }
    let missing = || StoreError::Refused("a write without an outcome".to_owned());
    Ok(outcomes.into_iter().map(|outcome| outcome?.ok_or_else(missing)).collect())
}

/// Commits a batch, and, if it fails as a whole, each of its writes by itself.
async fn commit_each<W: BatchWrite>(
    pool: &Pool,
    writes: &[W],
) -> Vec<Result<W::Outcome, StoreError>> {
    let error = match commit(pool, writes).await {
        Ok(outcomes) => return outcomes,
        Err(error) => error,
    };
    if writes.len() == 1 {
        return vec![Err(error)];
    }
    let started = Instant::now();
    let mut outcomes = Vec::with_capacity(writes.len());
    for write in writes.chunks(1) {
        // If the database takes its time to say no, the rest do not wait for it one after the
        // other.
        outcomes.push(match started.elapsed() > SLOW {
            true => Err(error.clone()),
            false => commit(pool, write)
                .await
                .and_then(|mut outcome| outcome.pop().unwrap_or(Err(error.clone()))),
        });
    }
    outcomes
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
