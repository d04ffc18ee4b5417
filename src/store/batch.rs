//! Group commit: writes that arrive while a transaction is in progress wait, and are committed
//! together in the next one.
//!
//! There is no timer, so an idle service adds no delay: the first write is committed at once, and
//! the writes that arrive during that commit form the next batch. Each write succeeds or fails by
//! itself.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use prometheus_client::metrics::{gauge::Gauge, histogram::Histogram};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::StoreError;
use crate::instruments::{
    Durations,
    times::{self, Part},
};

/// The limits of the batches of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The number of batches that may be in flight at once. They may be committed in any order.
    pub workers: usize,
    /// The largest number of writes in a batch, so that no batch takes long.
    pub most: usize,
}

impl Shape {
    /// The limits for a database with one writer.
    pub const SINGLE: Self = Self { workers: 1, most: 512 };
}

/// The largest number of writes that wait in a queue. Further writes are refused, so that a slow
/// database does not let the queue fill the memory.
const MAX_WAITING: usize = 8192;

/// The time for which the writes of a failed batch are tried one by one. After it, the rest of them
/// fail without another attempt.
const ALONE_FOR: Duration = Duration::from_secs(2);

/// The outcomes of the writes of a batch, in the order of the writes.
pub type BatchOutcome<O> = Vec<Result<O, Failure>>;

/// The failure of a write.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The error that the caller gets unless another attempt succeeds.
    pub error: StoreError,
    /// The further attempt that the failure allows.
    pub retry: Retry,
}

/// The further attempt that the failure of a write allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The writes of the batch that failed in this way may be tried once more, together: nothing
    /// was written, and the reason lies in other transactions.
    Together,
    /// Each write may be tried alone: as far as is known, nothing was written, and the reason may
    /// lie in another write of the batch.
    Alone,
    /// The write must not be tried again: it would fail again, or it may have been made.
    Never,
}

impl Failure {
    /// Returns the same failure for each of `writes` writes.
    pub fn of_all<O>(self, writes: usize) -> BatchOutcome<O> {
        (0..writes).map(|_| Err(self.clone())).collect()
    }
}

/// The counts of a queue since the start of the process.
#[derive(Debug)]
pub struct QueueCounts {
    /// The name of the queue in metrics.
    pub name: &'static str,
    /// The number of writes that wait.
    pub waiting: Gauge,
    /// The times that writes have waited until their batch began.
    pub waits: Durations,
    /// The number of writes in each batch.
    pub writes: Histogram,
    /// The times that batches have taken, with all their attempts.
    pub commits: Durations,
}

/// The upper bounds of the buckets of the number of writes in a batch.
const BATCH_SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

impl QueueCounts {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            waiting: Gauge::default(),
            waits: Durations::default(),
            writes: Histogram::new(BATCH_SIZES),
            commits: Durations::default(),
        }
    }
}

struct Pending<W, O> {
    write: W,
    queued_at: Instant,
    reply: oneshot::Sender<(Duration, Result<O, StoreError>)>,
}

/// The receiving end of a queue, which its workers share.
struct Consumer<W, O> {
    waiting: mpsc::Receiver<Pending<W, O>>,
    /// A write that [`Self::ready`] has taken from the channel, and that comes first in the next
    /// batch.
    next: Option<Pending<W, O>>,
}

impl<W, O> Consumer<W, O> {
    /// Waits for a write, and takes it together with all other waiting writes, up to `most` in all.
    /// Returns nothing if the queue is closed.
    async fn take(&mut self, most: usize) -> Vec<Pending<W, O>> {
        let mut batch = Vec::from_iter(self.next.take());
        if batch.is_empty() {
            self.waiting.recv_many(&mut batch, most).await;
        }
        while batch.len() < most
            && let Ok(pending) = self.waiting.try_recv()
        {
            batch.push(pending);
        }
        batch
    }

    /// Waits until there is a write to take.
    async fn ready(&mut self) {
        if self.next.is_none() {
            self.next = self.waiting.recv().await;
        }
    }
}

/// The queue of one kind of write.
pub struct GroupCommit<W, O> {
    queue: mpsc::Sender<Pending<W, O>>,
    counts: Arc<QueueCounts>,
}

impl<W, O> fmt::Debug for GroupCommit<W, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").field("free", &self.queue.capacity()).finish()
    }
}

impl<W, O> GroupCommit<W, O>
where
    W: Clone + Send + Sync + 'static,
    O: Send + 'static,
{
    /// Starts the tasks that commit batches with `commit`. They end when the queue is dropped. The
    /// name is that of the queue in metrics.
    pub fn start<F, R>(name: &'static str, shape: Shape, commit: F) -> Self
    where
        F: Fn(Arc<Vec<W>>) -> R + Send + Sync + 'static,
        R: Future<Output = BatchOutcome<O>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let (consumer, commit) =
            (Arc::new(Mutex::new(Consumer { waiting, next: None })), Arc::new(commit));
        let counts = Arc::new(QueueCounts::new(name));
        for _ in 0..shape.workers {
            tokio::spawn(run(consumer.clone(), shape.most, commit.clone(), counts.clone()));
        }
        Self { queue, counts }
    }

    /// Returns the counts of the queue.
    pub fn counts(&self) -> Arc<QueueCounts> {
        self.counts.clone()
    }

    /// Waits until the workers have stopped, after which no write succeeds any more.
    pub async fn stopped(&self) {
        self.queue.closed().await;
    }

    /// Queues a write, and waits until it is committed. If the caller goes away before the write
    /// has started, the write is not made.
    pub async fn write(&self, write: W) -> Result<O, StoreError> {
        let (reply, outcome) = oneshot::channel();
        let pending = Pending { write, queued_at: Instant::now(), reply };
        self.counts.waiting.inc();
        self.queue.try_send(pending).map_err(|error| {
            self.counts.waiting.dec();
            match error {
                mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => {
                    StoreError::Unavailable("it is being closed".to_owned())
                }
            }
        })?;
        let closed =
            |_| (Duration::ZERO, Err(StoreError::Unavailable("it is being closed".to_owned())));
        let (waited, outcome) = outcome.await.unwrap_or_else(closed);
        times::add(Part::Queue, waited);
        outcome
    }
}

async fn run<W, O, F, R>(
    consumer: Arc<Mutex<Consumer<W, O>>>,
    most: usize,
    commit: Arc<F>,
    counts: Arc<QueueCounts>,
) where
    W: Clone + Send + Sync + 'static,
    O: Send + 'static,
    F: Fn(Arc<Vec<W>>) -> R + Send + Sync + 'static,
    R: Future<Output = BatchOutcome<O>> + Send + 'static,
{
    // One idle worker holds the lock and waits for writes. The other idle workers wait for the
    // lock.
    let mut head = consumer.clone().lock_owned().await;
    loop {
        let batch = head.take(most).await;
        if batch.is_empty() {
            return;
        }
        let began = Instant::now();
        counts.waiting.dec_by(i64::try_from(batch.len()).unwrap_or(i64::MAX));
        let (writes, replies): (Vec<W>, Vec<_>) = batch
            .into_iter()
            .filter(|pending| !pending.reply.is_closed())
            .map(|pending| {
                let waited = began.duration_since(pending.queued_at);
                counts.waits.observe(waited);
                (pending.write, (waited, pending.reply))
            })
            .unzip();
        if writes.is_empty() {
            continue;
        }
        // A batch has at most some hundred writes.
        #[allow(clippy::cast_precision_loss)]
        counts.writes.observe(writes.len() as f64);
        let writes = Arc::new(writes);
        let mut committing = pin!(write_all(writes, &*commit));
        // The next worker is woken only when there is a write for it. If writes come one at a time,
        // waking it earlier would wake another thread for nothing.
        let (outcomes, kept) = tokio::select! {
            biased;
            outcomes = &mut committing => (outcomes, Some(head)),
            () = head.ready() => {
                drop(head);
                (committing.await, None)
            }
        };
        counts.commits.observe(began.elapsed());
        for ((waited, reply), outcome) in replies.into_iter().zip(outcomes) {
            // The caller may have gone away. The write stands.
            let _ = reply.send((waited, outcome));
        }
        head = match kept {
            Some(head) => head,
            None => consumer.clone().lock_owned().await,
        };
    }
}

/// Commits writes together. Then tries the failed writes again, one by one, if they may be retried.
/// If the database is slow to refuse them, this stops after [`ALONE_FOR`], so that the last writes
/// do not wait for all others.
async fn write_all<W, O, F, R>(writes: Arc<Vec<W>>, commit: &F) -> Vec<Result<O, StoreError>>
where
    W: Clone,
    F: Fn(Arc<Vec<W>>) -> R,
    R: Future<Output = BatchOutcome<O>>,
{
    let mut outcomes = write_together(&writes, commit).await;
    if let [_, _, ..] = writes.as_slice() {
        let began = Instant::now();
        for (write, outcome) in writes.iter().zip(&mut outcomes) {
            if outcome.as_ref().is_err_and(|failure| failure.retry != Retry::Never)
                && began.elapsed() <= ALONE_FOR
                && let Some(retried) =
                    write_together(&Arc::new(vec![write.clone()]), commit).await.pop()
            {
                *outcome = retried;
            }
        }
    }
    outcomes.into_iter().map(|outcome| outcome.map_err(|failure| failure.error)).collect()
}

/// Commits writes, and tries those that failed because of other transactions once more. Returns as
/// many outcomes as there are writes.
async fn write_together<W, O, F, R>(writes: &Arc<Vec<W>>, commit: &F) -> BatchOutcome<O>
where
    W: Clone,
    F: Fn(Arc<Vec<W>>) -> R,
    R: Future<Output = BatchOutcome<O>>,
{
    let mut outcomes = commit(Arc::clone(writes)).await;
    outcomes.resize_with(writes.len(), || {
        let error = StoreError::Refused("a write without an outcome".to_owned());
        Err(Failure { error, retry: Retry::Never })
    });
    let (again, failed): (Vec<W>, Vec<&mut Result<O, Failure>>) = writes
        .iter()
        .zip(&mut outcomes)
        .filter(|(_, outcome)| {
            outcome.as_ref().is_err_and(|failure| failure.retry == Retry::Together)
        })
        .map(|(write, outcome)| (write.clone(), outcome))
        .unzip();
    if !again.is_empty() {
        for (outcome, retried) in failed.into_iter().zip(commit(Arc::new(again)).await) {
            *outcome = retried;
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Semaphore;

    use super::*;

    /// A database that waits for a permit before each commit and records the sizes of the batches.
    struct Recorder {
        gate: Semaphore,
        batches: Mutex<Vec<Vec<u32>>>,
    }

    fn recorder(permits: usize) -> Arc<Recorder> {
        Arc::new(Recorder { gate: Semaphore::new(permits), batches: Mutex::default() })
    }

    /// The write 13 fails for good, and the write 77 fails because of other transactions. The write
    /// 666 makes the whole batch fail, and the write 999 makes it fail slowly.
    async fn commit(recorder: Arc<Recorder>, writes: Arc<Vec<u32>>) -> BatchOutcome<u32> {
        recorder.gate.acquire().await.unwrap().forget();
        recorder.batches.lock().unwrap().push(writes.to_vec());
        let failure = |retry| {
            let error = StoreError::Unavailable("it failed".to_owned());
            Failure { error, retry }
        };
        if writes.contains(&999) {
            tokio::time::sleep(ALONE_FOR / 2 + Duration::from_millis(1)).await;
            return failure(Retry::Alone).of_all(writes.len());
        }
        if writes.contains(&666) {
            return failure(Retry::Alone).of_all(writes.len());
        }
        let outcome = |&n: &u32| match n {
            13 => Err(failure(Retry::Never)),
            77 => Err(failure(Retry::Together)),
            n => Ok(n * 2),
        };
        writes.iter().map(outcome).collect()
    }

    fn start(recorder: &Arc<Recorder>) -> Arc<GroupCommit<u32, u32>> {
        let recorder = recorder.clone();
        Arc::new(GroupCommit::start("test", Shape::SINGLE, move |writes| {
            commit(recorder.clone(), writes)
        }))
    }

    /// Queues writes in the given order, and returns once all of them wait.
    async fn queue(
        group: &Arc<GroupCommit<u32, u32>>,
        writes: &[u32],
    ) -> Vec<tokio::task::JoinHandle<Result<u32, StoreError>>> {
        let mut handles = vec![];
        for &write in writes {
            let group = group.clone();
            handles.push(tokio::spawn(async move { group.write(write).await }));
            tokio::task::yield_now().await;
        }
        handles
    }

    #[tokio::test]
    async fn writes_that_wait_during_a_commit_are_committed_together() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let first = queue(&group, &[1]).await;
        tokio::task::yield_now().await;
        let rest = queue(&group, &[2, 3, 4]).await;
        recorder.gate.add_permits(2);
        for (handle, expected) in first.into_iter().chain(rest).zip([2, 4, 6, 8]) {
            assert_eq!(handle.await.unwrap().unwrap(), expected);
        }
        assert_eq!(*recorder.batches.lock().unwrap(), [vec![1], vec![2, 3, 4]]);
    }

    #[tokio::test]
    async fn several_workers_commit_at_once_and_no_batch_exceeds_the_largest_size() {
        const SHAPE: Shape = Shape { workers: 2, most: 3 };
        let meeting = Arc::new(tokio::sync::Barrier::new(SHAPE.workers));
        let batches = Arc::new(AtomicUsize::new(0));
        let group = Arc::new(GroupCommit::start("test", SHAPE, move |writes: Arc<Vec<u32>>| {
            let (meeting, batch) = (meeting.clone(), batches.fetch_add(1, Ordering::Relaxed));
            async move {
                assert!(writes.len() <= SHAPE.most);
                // Neither of the first two batches gets past this point before the other has
                // reached it.
                if batch < SHAPE.workers {
                    meeting.wait().await;
                }
                writes.iter().map(|&n| Ok(n * 2)).collect()
            }
        }));
        for (n, handle) in (0..).zip(queue(&group, &(0..12).collect::<Vec<_>>()).await) {
            let outcome = tokio::time::timeout(std::time::Duration::from_secs(10), handle).await;
            assert_eq!(outcome.expect("two are under way at once").unwrap().unwrap(), n * 2);
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_or_makes_its_batch_fail_does_not_make_other_writes_fail() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let handles =
            queue(&group, &[1]).await.into_iter().chain(queue(&group, &[2, 13, 666, 3]).await);
        recorder.gate.add_permits(100);
        let mut outcomes = vec![];
        for handle in handles {
            outcomes.push(handle.await.unwrap().ok());
        }
        assert_eq!(outcomes, [Some(2), Some(4), None, None, Some(6)]);
    }

    #[tokio::test]
    async fn writes_that_failed_because_of_other_transactions_are_retried_together_then_alone() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let handles =
            queue(&group, &[1]).await.into_iter().chain(queue(&group, &[77, 2, 77]).await);
        recorder.gate.add_permits(100);
        let mut outcomes = vec![];
        for handle in handles {
            outcomes.push(handle.await.unwrap().ok());
        }
        assert_eq!(outcomes, [Some(2), None, Some(4), None]);
        let batches = recorder.batches.lock().unwrap();
        assert_eq!(batches[1..3], [vec![77, 2, 77], vec![77, 77]]);
        assert_eq!(batches[3..].concat(), [77; 4], "each twice");
    }

    #[tokio::test(start_paused = true)]
    async fn writes_of_a_failed_batch_are_no_longer_tried_alone_after_two_seconds() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let handles =
            queue(&group, &[1]).await.into_iter().chain(queue(&group, &[999, 2, 999, 3, 4]).await);
        recorder.gate.add_permits(100);
        let mut outcomes = vec![];
        for handle in handles {
            outcomes.push(handle.await.unwrap().ok());
        }
        assert_eq!(outcomes, [Some(2), None, Some(4), None, None, None]);
        let singles: Vec<_> = recorder.batches.lock().unwrap()[2..].concat();
        assert_eq!(singles, [999, 2, 999]);
    }

    #[tokio::test]
    async fn a_write_whose_caller_left_before_it_started_is_not_made() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let first = queue(&group, &[1]).await;
        let abandoned = queue(&group, &[2]).await;
        for handle in abandoned {
            handle.abort();
            assert!(handle.await.is_err());
        }
        let last = queue(&group, &[3]).await;
        recorder.gate.add_permits(100);
        for handle in first.into_iter().chain(last) {
            handle.await.unwrap().unwrap();
        }
        assert_eq!(recorder.batches.lock().unwrap().concat(), [1, 3]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_further_writes() {
        let recorder = recorder(0);
        let group = start(&recorder);
        let writes = vec![1; MAX_WAITING + Shape::SINGLE.most + 1];
        let handles = queue(&group, &writes).await;
        tokio::task::yield_now().await;
        assert!(matches!(group.write(2).await, Err(StoreError::Overloaded)));
        recorder.gate.add_permits(1_000_000);
        let mut refused = 0;
        for handle in handles {
            refused += usize::from(handle.await.unwrap().is_err());
        }
        assert!(refused <= Shape::SINGLE.most + 1, "{refused}");
    }
}
