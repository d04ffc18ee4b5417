//! Measures what the time of a call is spent on: its parts add their times to the call under which
//! they run, wherever in the code they are.

use std::{cell::Cell, time::Duration};

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

/// The times of the parts of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The time of [`Part::Queue`].
    pub queue: Duration,
    /// The time of [`Part::Store`].
    pub store: Duration,
    /// The time of [`Part::Acknowledgement`].
    pub acknowledgement: Duration,
    /// The time of [`Part::Renewal`].
    pub renewal: Duration,
}

tokio::task_local! {
    static TIMES: Cell<Times>;
}

/// A call whose parts are measured.
pub type Measured<F> = TaskLocalFuture<Cell<Times>, F>;

/// Measures the parts of a call. The call's times can be taken with [`taken`].
pub fn measure<F: Future>(call: F) -> Measured<F> {
    TIMES.scope(Cell::default(), call)
}

/// Returns the times of a call so far, whether it has ended or not.
pub fn taken<F: Future>(call: std::pin::Pin<&mut Measured<F>>) -> Times {
    call.take_value().map(Cell::into_inner).unwrap_or_default()
}

/// Adds to the time of a part of the current call. Has no effect outside a call.
pub fn add(part: Part, time: Duration) {
    // Background tasks run outside calls.
    let _ = TIMES.try_with(|cell| {
        let mut times = cell.get();
        let total = match part {
            Part::Queue => &mut times.queue,
            Part::Store => &mut times.store,
            Part::Acknowledgement => &mut times.acknowledgement,
            Part::Renewal => &mut times.renewal,
        };
        *total = total.saturating_add(time);
        cell.set(times);
    });
}

/// Runs a part of a call, and adds the time that it takes.
pub async fn part<T>(part: Part, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let outcome = work.await;
    add(part, began.elapsed());
    outcome
}

/// Runs a part of a call in a task of its own, which goes on if the caller goes away. Its times are
/// added to the call, and its log lines are in the span of the call.
pub async fn in_own_task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    let measured = async {
        let mut measured = Box::pin(measure(work));
        let outcome = measured.as_mut().await;
        (outcome, taken(measured.as_mut()))
    };
    let (outcome, times) = tokio::spawn(measured.in_current_span()).await?;
    add(Part::Queue, times.queue);
    add(Part::Store, times.store);
    add(Part::Acknowledgement, times.acknowledgement);
    add(Part::Renewal, times.renewal);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::{advance, sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_times_of_parts_add_up_also_those_in_other_tasks() {
        add(Part::Store, SECOND);
        let mut call = pin!(measure(async {
            part(Part::Store, advance(SECOND)).await;
            in_own_task(async {
                add(Part::Queue, SECOND);
                part(Part::Store, sleep(2 * SECOND)).await;
            })
            .await
            .unwrap();
        }));
        call.as_mut().await;
        let times = taken(call);
        assert_eq!((times.queue, times.store), (SECOND, 3 * SECOND));
        assert_eq!((times.acknowledgement, times.renewal), (Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_cut_off_has_the_times_of_the_parts_that_ended() {
        let mut call = pin!(measure(async {
            part(Part::Renewal, sleep(SECOND)).await;
            part(Part::Store, sleep(60 * SECOND)).await;
        }));
        assert!(timeout(5 * SECOND, call.as_mut()).await.is_err());
        assert_eq!(taken(call), Times { renewal: SECOND, ..Times::default() });
    }
}
