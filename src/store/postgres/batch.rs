//! Commits a batch of writes, either in one transaction or in two steps: one statement makes the
//! writes of the frequent kind, and then a transaction makes the others.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::connection::{
    fault::Fault,
    pool::{Pool, PooledConnection},
};
use crate::store::{
    StoreError,
    batch::{BatchOutcome, Failure, Retry},
};

/// A write that is committed together with others of its kind.
#[async_trait]
pub trait BatchWrite: Send + Sync + Sized {
    /// The result of the write.
    type Outcome: Send + 'static;

    /// Makes all writes. A fault means that no write was made, except if the connection is lost:
    /// then it is not known whether they were made.
    async fn apply(
        connection: &mut PooledConnection<'_>,
        writes: &[Self],
    ) -> Result<Vec<Result<Self::Outcome, StoreError>>, Fault>;
}

/// If a batch took longer than this to fail, its writes are not tried one by one, because each of
/// them would take as long.
const SLOW: Duration = Duration::from_secs(2);

/// Commits a batch.
pub async fn commit<W: BatchWrite>(pool: &Pool, writes: &[W]) -> BatchOutcome<W::Outcome> {
    let began = Instant::now();
    match apply(pool, writes).await {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|outcome| outcome.map_err(|error| Failure { error, retry: Retry::Never }))
            .collect(),
        Err(fault) => {
            let failure = Failure::from(fault);
            let retry = match failure.retry {
                Retry::Alone if began.elapsed() > SLOW => Retry::Never,
                retry => retry,
            };
            Failure { retry, ..failure }.of_all(writes.len())
        }
    }
}

async fn apply<W: BatchWrite>(
    pool: &Pool,
    writes: &[W],
) -> Result<Vec<Result<W::Outcome, StoreError>>, Fault> {
    let mut connection = pool.checkout().await?;
    let mut outcomes = pool.in_time(connection.origin(), W::apply(&mut connection, writes)).await;
    // The server warns if it cancels the wait of a commit for the standbys. Such a commit is
    // visible, but may still be lost with the primary.
    if outcomes.is_ok() && connection.has_warned() {
        outcomes =
            Err(Fault::ConnectionLost(StoreError::Unavailable("it gave a warning".to_owned())));
    }
    connection.end(&outcomes);
    outcomes
}

/// Commits a batch in two steps: first all writes on the fast path, which skips those that need
/// more work, and then the skipped writes on the slow path. The first step stays committed even if
/// the second one fails.
pub async fn commit_in_two<'a, W, F, S>(
    pool: &Pool,
    writes: &'a [W],
    fast: fn(&'a W) -> F,
    slow: impl Fn(&'a W) -> S,
) -> BatchOutcome<S::Outcome>
where
    F: BatchWrite<Outcome = Option<S::Outcome>>,
    S: BatchWrite,
{
    let all: Vec<F> = writes.iter().map(fast).collect();
    let outcomes = commit(pool, &all).await;
    let left: Vec<S> = writes
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| matches!(outcome, Ok(None)))
        .map(|(write, _)| slow(write))
        .collect();
    let mut rest = match left.is_empty() {
        true => vec![],
        false => commit(pool, &left).await,
    }
    .into_iter();
    let missing = || {
        let error = StoreError::Refused("a write without an outcome".to_owned());
        Err(Failure { error, retry: Retry::Never })
    };
    outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => rest.next().unwrap_or_else(missing),
            Err(failure) => Err(failure),
        })
        .collect()
}
