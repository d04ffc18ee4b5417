//! Polls a connection. Each poll reads a limited number of bytes, and sends the refusals of the
//! calls in them, before other tasks run.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
};

use super::spawner::Spawner;
use crate::net::read_budget::ReadBudget;

/// Drives one connection.
#[derive(Debug)]
pub struct ConnectionDriver {
    /// The budget of bytes that one poll may read.
    pub read_budget: ReadBudget,
    /// Runs the answers to the calls of the connection.
    pub spawner: Spawner,
}

impl ConnectionDriver {
    /// Runs the connection to its end.
    pub fn run<F: Future>(&self, mut served: Pin<&mut F>) -> impl Future<Output = F::Output> {
        poll_fn(move |context| {
            self.read_budget.replenish();
            loop {
                let polled = served.as_mut().poll(context);
                // The connection is polled again, because only a poll writes the inline answers.
                if polled.is_ready() || !self.spawner.flush_inline() {
                    return polled;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use futures_util::FutureExt;
    use hyper::rt::Executor;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::oneshot,
    };

    use super::*;
    use crate::net::{connection::Connection, read_budget::BUDGET_BYTES};

    async fn connected() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0.into())
    }

    #[tokio::test]
    async fn a_poll_reads_at_most_the_budget_and_schedules_the_next_poll() {
        let (mut client, mut connection) = connected().await;
        client.write_all(&[0; 5 * BUDGET_BYTES]).await.unwrap();
        client.shutdown().await.unwrap();
        let driver =
            ConnectionDriver { read_budget: connection.read_budget(), spawner: Spawner::default() };
        let mut reading = pin!(async {
            let mut bytes = [0; BUDGET_BYTES / 8];
            while connection.read(&mut bytes).await.unwrap() > 0 {}
        });
        let mut reads = vec![];
        let served = poll_fn(|context| {
            let before = driver.read_budget.bytes();
            let polled = reading.as_mut().poll(context);
            reads.push(driver.read_budget.bytes() - before);
            polled
        });
        driver.run(pin!(served)).await;
        assert_eq!(reads.iter().sum::<usize>(), 5 * BUDGET_BYTES);
        assert!(
            reads.len() >= 5 && reads.iter().all(|read| *read < BUDGET_BYTES + BUDGET_BYTES / 8),
            "{reads:?}"
        );
    }

    #[tokio::test]
    async fn an_inline_answer_is_sent_in_the_same_poll() {
        let (_client, connection) = connected().await;
        let spawner = Spawner::default();
        let driver =
            ConnectionDriver { read_budget: connection.read_budget(), spawner: spawner.clone() };
        let (answer, mut answered) = oneshot::channel();
        let mut answer = Some(answer);
        let served = poll_fn(|_| {
            if let Some(answer) = answer.take() {
                spawner.run_next_inline();
                spawner.execute(async { _ = answer.send(()) });
            }
            if answered.try_recv().is_ok() { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(driver.run(pin!(served)).now_or_never().is_some());
    }
}
