//! Runs the answers of a connection's calls, each as a task of its own; but those that are ready
//! when they are begun, as refusals are, together at the end of the connection's turn. As tasks
//! they would wait behind the very work that they refuse to add to; and one by one, as they are
//! begun, each would be sent by a system call of its own.

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

/// How the answers of one connection are run.
#[derive(Clone, Default)]
pub struct Spawner(Arc<Answers>);

#[derive(Default)]
struct Answers {
    next_is_ready: AtomicBool,
    ready: Mutex<Vec<Answering>>,
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

impl Spawner {
    /// Says that the answer that is run next is ready. Hyper runs each when it has been given it,
    /// before it takes the next call.
    pub fn next_is_ready(&self) {
        self.0.next_is_ready.store(true, Ordering::Relaxed);
    }

    /// Answers what can be answered at once. Whether there was any.
    pub fn answer_ready(&self) -> bool {
        let ready = mem::take(&mut *self.0.ready.lock().unwrap_or_else(PoisonError::into_inner));
        let were_any = !ready.is_empty();
        for mut answering in ready {
            if answering.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                // There is no room for it yet. As a task it is asked again.
                tokio::spawn(answering);
            }
        }
        were_any
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, answering: F) {
        if self.0.next_is_ready.swap(false, Ordering::Relaxed) {
            self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(answering));
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
        spawner.next_is_ready();
        spawner.execute(async { _ = done.send(()) });
        assert!(is_done.try_recv().is_err(), "not alone");
        assert!(spawner.answer_ready());
        assert!(is_done.try_recv().is_ok(), "before anything else runs");
        let (done, mut is_done) = oneshot::channel();
        spawner.execute(async { _ = done.send(()) });
        assert!(
            !spawner.answer_ready() && is_done.try_recv().is_err(),
            "it is for the next one alone"
        );
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_to_be_ready_and_is_not_is_done_when_it_is() {
        let spawner = Spawner::default();
        let ((room, has_room), (done, is_done)) = (oneshot::channel::<()>(), oneshot::channel());
        spawner.next_is_ready();
        spawner.execute(async {
            has_room.await.unwrap();
            _ = done.send(());
        });
        assert!(spawner.answer_ready());
        room.send(()).unwrap();
        timeout(Duration::from_secs(60), is_done).await.expect("it is asked again").unwrap();
    }
}
