//! Measures what the time of a call is spent on. Code that waits adds the time to the call in which
//! it runs, through a task-local value, so that no parameter has to carry it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::{JoinError, futures::TaskLocalFuture},
    time::Instant,
};
use tracing::Instrument;

/// The parts of a call that take time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The wait of a write for its batch.
    Queue,
    /// The operations of the database, with the waits for batches.
    Store,
    /// The wait until all replicas know a revocation.
    Acknowledgement,
    /// The wait for a renewal of the lease.
    Renewal,
}

/// The times of the parts of a call. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Times(Arc<[AtomicU64; 4]>);

impl Times {
    /// Returns the time of a part so far.
    pub fn of(&self, part: Part) -> Duration {
        Duration::from_nanos(self.nanos(part).load(Ordering::Relaxed))
    }

    fn add(&self, part: Part, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos(part).fetch_add(nanos, Ordering::Relaxed);
    }

    fn nanos(&self, part: Part) -> &AtomicU64 {
        let [queue, store, acknowledgement, renewal] = &*self.0;
        match part {
            Part::Queue => queue,
            Part::Store => store,
            Part::Acknowledgement => acknowledgement,
            Part::Renewal => renewal,
        }
    }
}

tokio::task_local! {
    static TIMES: Times;
}

/// Runs a call whose parts add to these times.
pub fn measure<F: Future>(times: Times, call: F) -> TaskLocalFuture<Times, F> {
    TIMES.scope(times, call)
}

/// Adds to the time of a part of the current call. Has no effect outside a call.
pub fn add(part: Part, time: Duration) {
    // Background tasks run outside calls.
    let _ = TIMES.try_with(|times| times.add(part, time));
}

/// A part of a call that is under way. Its time is added when this is dropped, also if the call is
/// cut off.
struct Running(Part, Instant);

impl Drop for Running {
    fn drop(&mut self) {
        add(self.0, self.1.elapsed());
    }
}

/// Runs a part of a call, and adds the time that it takes.
pub async fn part<T>(part: Part, work: impl Future<Output = T>) -> T {
    let _running = Running(part, Instant::now());
    work.await
}

/// Runs a part of a call in a task of its own, which goes on if the caller goes away. The task adds
/// to the times of the call, and its log lines are in the span of the call.
pub async fn in_own_task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    let times = TIMES.try_with(Times::clone).unwrap_or_default();
    tokio::spawn(measure(times, work.in_current_span())).await
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_times_of_parts_add_up_also_those_in_other_tasks() {
        add(Part::Store, SECOND);
        let times = Times::default();
        measure(times.clone(), async {
            part(Part::Store, advance(SECOND)).await;
            in_own_task(async {
                add(Part::Queue, SECOND);
                part(Part::Store, sleep(2 * SECOND)).await;
            })
            .await
            .unwrap();
        })
        .await;
        assert_eq!((times.of(Part::Queue), times.of(Part::Store)), (SECOND, 3 * SECOND));
        assert_eq!(times.of(Part::Acknowledgement), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_cut_off_with_its_call_counts() {
        let times = Times::default();
        let call = measure(times.clone(), async {
            part(Part::Renewal, sleep(SECOND)).await;
            part(Part::Store, sleep(60 * SECOND)).await;
        });
        assert!(timeout(5 * SECOND, call).await.is_err());
        assert_eq!((times.of(Part::Renewal), times.of(Part::Store)), (SECOND, 4 * SECOND));
    }
}
