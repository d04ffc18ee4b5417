//! Runs the futures that answer a connection's calls. Most become tasks of their own. Answers that
//! are ready immediately, such as refusals, run inline: all together, after the connection has been
//! polled. As tasks they would wait behind the calls that keep the server busy. If each ran as soon
//! as hyper hands it over, each would be sent by a system call of its own.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
};

use hyper::rt::Executor;

type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs the answers of one connection.
#[derive(Clone, Default)]
pub struct Spawner(Arc<Answers>);

#[derive(Default)]
struct Answers {
    run_next_inline: AtomicBool,
    inline: Mutex<Vec<Answering>>,
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

impl Spawner {
    /// Makes the next answer run inline. Hyper hands over the answer to a call before it accepts
    /// the next call.
    pub fn run_next_inline(&self) {
        self.0.run_next_inline.store(true, Ordering::Relaxed);
    }

    /// Runs the inline answers, and returns whether there were any.
    pub fn flush_inline(&self) -> bool {
        let inline = mem::take(&mut *self.0.inline.lock().unwrap_or_else(PoisonError::into_inner));
        let were_any = !inline.is_empty();
        for mut answering in inline {
            if answering.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                // The connection has no room for the answer yet, so a task continues it.
                tokio::spawn(answering);
            }
        }
        were_any
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, answering: F) {
        if self.0.run_next_inline.swap(false, Ordering::Relaxed) {
            self.0.inline.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(answering));
        } else {
            tokio::spawn(answering);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn only_the_next_answer_runs_inline_and_only_when_flushed() {
        let spawner = Spawner::default();
        let (done, mut is_done) = oneshot::channel();
        spawner.run_next_inline();
        spawner.execute(async { _ = done.send(()) });
        assert!(is_done.try_recv().is_err(), "the answer waits for the flush");
        assert!(spawner.flush_inline());
        assert!(is_done.try_recv().is_ok(), "the flush runs the answer before it returns");
        let (done, mut is_done) = oneshot::channel();
        spawner.execute(async { _ = done.send(()) });
        assert!(
            !spawner.flush_inline() && is_done.try_recv().is_err(),
            "only the next answer was to run inline"
        );
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn an_inline_answer_that_is_not_ready_becomes_a_task() {
        let spawner = Spawner::default();
        let ((room, has_room), (done, is_done)) = (oneshot::channel::<()>(), oneshot::channel());
        spawner.run_next_inline();
        spawner.execute(async {
            has_room.await.unwrap();
            _ = done.send(());
        });
        assert!(spawner.flush_inline());
        room.send(()).unwrap();
        timeout(Duration::from_secs(60), is_done).await.expect("a task polls it again").unwrap();
    }
}
