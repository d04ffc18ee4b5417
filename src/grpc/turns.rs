//! Runs a connection in turns: in each it reads only so much, and sends what it has refused of
//! that, before others have theirs.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
};

use super::spawner::Spawner;
use crate::net::connection::Reading;

/// The turns of one connection.
#[derive(Debug)]
pub struct Turns {
    /// What is read of it.
    pub reading: Reading,
    /// What answers its calls.
    pub spawner: Spawner,
}

impl Turns {
    /// Runs it to its end.
    pub fn run<F: Future>(&self, mut served: Pin<&mut F>) -> impl Future<Output = F::Output> {
        poll_fn(move |context| {
            self.reading.begin_turn();
            loop {
                let polled = served.as_mut().poll(context);
                // Answers are sent when it is polled once more.
                if polled.is_ready() || !self.spawner.answer_ready() {
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
    use crate::net::connection::{Connection, TURN_BYTES};

    async fn connected() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0.into())
    }

    #[tokio::test]
    async fn in_each_turn_only_so_much_is_read_and_the_next_one_comes_by_itself() {
        let (mut client, mut connection) = connected().await;
        client.write_all(&[0; 5 * TURN_BYTES]).await.unwrap();
        client.shutdown().await.unwrap();
        let turns = Turns { reading: connection.reading(), spawner: Spawner::default() };
        let mut reading = pin!(async {
            let mut bytes = [0; TURN_BYTES / 8];
            while connection.read(&mut bytes).await.unwrap() > 0 {}
        });
        let mut reads = vec![];
        let served = poll_fn(|context| {
            let before = turns.reading.bytes();
            let polled = reading.as_mut().poll(context);
            reads.push(turns.reading.bytes() - before);
            polled
        });
        turns.run(pin!(served)).await;
        assert_eq!(reads.iter().sum::<usize>(), 5 * TURN_BYTES);
        assert!(
            reads.len() >= 5 && reads.iter().all(|read| *read < TURN_BYTES + TURN_BYTES / 8),
            "{reads:?}"
        );
    }

    #[tokio::test]
    async fn what_is_answered_in_a_turn_is_sent_in_it() {
        let (_client, connection) = connected().await;
        let spawner = Spawner::default();
        let turns = Turns { reading: connection.reading(), spawner: spawner.clone() };
        let (answer, mut answered) = oneshot::channel();
        let mut answer = Some(answer);
        let served = poll_fn(|_| {
            if let Some(answer) = answer.take() {
                spawner.next_is_ready();
                spawner.execute(async { _ = answer.send(()) });
            }
            if answered.try_recv().is_ok() { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(turns.run(pin!(served)).now_or_never().is_some());
    }
}
