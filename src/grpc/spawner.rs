//! Runs the answers of a connection's calls. Most are tasks of their own. Answers that are ready
//! when they begin, as refusals are, are run inline: together, when the connection has been polled.
//! As tasks they would wait behind the very work that they refuse to add to, and if each were run
//! as it begins, each would be sent by a system call of its own.

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
    /// Has the next answer run inline. Hyper hands over each answer before it takes the next call.
    pub fn run_next_inline(&self) {
        self.0.run_next_inline.store(true, Ordering::Relaxed);
    }

    /// Runs the inline answers, and returns whether there were any.
    pub fn flush_inline(&self) -> bool {
        let inline = mem::take(&mut *self.0.inline.lock().unwrap_or_else(PoisonError::into_inner));
        let were_any = !inline.is_empty();
        for mut answering in inline {
            if answering.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                // The connection has no room for it yet, so it goes on as a task.
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
    async fn what_is_ready_is_done_at_the_end_of_the_turn_and_only_what_was_said_to_be() {
        let spawner = Spawner::default();
        let (done, mut is_done) = oneshot::channel();
        spawner.run_next_inline();
        spawner.execute(async { _ = done.send(()) });
        assert!(is_done.try_recv().is_err(), "not alone");
        assert!(spawner.flush_inline());
        assert!(is_done.try_recv().is_ok(), "before anything else runs");
        let (done, mut is_done) = oneshot::channel();
        spawner.execute(async { _ = done.send(()) });
        assert!(
            !spawner.flush_inline() && is_done.try_recv().is_err(),
            "it is for the next one alone"
        );
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_to_be_ready_and_is_not_is_done_when_it_is() {
        let spawner = Spawner::default();
        let ((room, has_room), (done, is_done)) = (oneshot::channel::<()>(), oneshot::channel());
        spawner.run_next_inline();
        spawner.execute(async {
            has_room.await.unwrap();
            _ = done.send(());
        });
        assert!(spawner.flush_inline());
        room.send(()).unwrap();
        timeout(Duration::from_secs(60), is_done).await.expect("it is asked again").unwrap();
    }
}
