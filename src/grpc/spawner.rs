//! Runs the answers of a connection's calls, each as a task of its own; but one that is ready is sent at once. Else a refusal would
//! wait behind the very work that it refuses to add to.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
};

use hyper::rt::Executor;

/// How the answers of one connection are run.
#[derive(Clone, Debug, Default)]
pub struct Spawner(Arc<AtomicBool>);

impl Spawner {
    /// Says that the answer that is run next is ready. Hyper runs each when it has been given it, before it takes the next call.
    pub fn next_is_ready(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, answering: F) {
        if !self.0.swap(false, Ordering::Relaxed) {
            tokio::spawn(answering);
            return;
        }
        let mut answering = Box::pin(answering);
        if answering.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            // There is no room for it yet. As a task it is asked again.
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
    async fn what_is_ready_is_done_at_once_and_only_what_was_said_to_be() {
        let spawner = Spawner::default();
        let (done, mut is_done) = oneshot::channel();
        spawner.next_is_ready();
        spawner.execute(async { _ = done.send(()) });
        assert!(is_done.try_recv().is_ok(), "before anything else runs");
        let (done, mut is_done) = oneshot::channel();
        spawner.execute(async { _ = done.send(()) });
        assert!(is_done.try_recv().is_err(), "it is for the next one alone");
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
        room.send(()).unwrap();
        timeout(Duration::from_secs(60), is_done).await.expect("it is asked again").unwrap();
    }
}
