//! Accepts connections: no more than there is room for, and each by itself, so that nobody who is slow holds up others.

use std::{io, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Peer},
    tls::{self, Side, Tls},
};

/// How long to wait before accepting again after that failed, as without free file descriptors.
const RETRY: Duration = Duration::from_millis(100);
/// Of failures to accept, one in so many is told: each takes at least [`RETRY`].
const TELL_EVERY: u64 = 600;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections at once. One more is closed at once, so that its client turns to another replica.
    pub connections: usize,
    /// How long a client may take until it is known that it speaks the protocol.
    pub handshake: Duration,
}

/// What became of connections, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Open now.
    pub open: Gauge,
    /// Accepted.
    pub accepted: Counter,
    /// Closed at once, because there were too many.
    pub refused: Counter,
    /// Closed because they were not encrypted, or not as they must be, or too slow about it.
    pub handshakes_failed: Counter,
}

/// Where connections come in.
#[derive(Debug)]
pub struct Entrance {
    /// Where it is listened.
    pub listener: TcpListener,
    /// Whether and how they are encrypted.
    pub tls: Option<Arc<Tls>>,
    /// Which side of the service it is.
    pub side: Side,
    /// What they may take.
    pub limits: Limits,
    /// What became of them.
    pub counts: Arc<Counts>,
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: Arc<Counts>) -> Self {
        counts.accepted.inc();
        counts.open.inc();
        Self(counts)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}

impl Entrance {
    /// Serves each connection until `stop`; then waits until all of them have ended, which `serve` must see to.
    pub async fn accept<F>(
        self,
        stop: CancellationToken,
        serve: impl Fn(Connection, Peer) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let mut connections = JoinSet::new();
        let mut failures: u64 = 0;
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if failures.is_multiple_of(TELL_EVERY) {
                        tracing::warn!(%error, "a connection cannot be accepted");
                    }
                    failures += 1;
                    sleep(RETRY).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.counts.refused.inc();
                continue;
            };
            let open = Open::new(self.counts.clone());
            let (tls, serve) = (self.tls.as_ref().map(|tls| tls.acceptor(self.side)), serve.clone());
            let (handshake, counts) = (self.limits.handshake, self.counts.clone());
            connections.spawn(async move {
                match timeout(handshake, enter(stream, tls)).await {
                    Ok(Ok((connection, peer))) => serve(connection, peer).await,
                    Ok(Err(error)) => {
                        counts.handshakes_failed.inc();
                        tracing::debug!(%error, "a connection was not taken");
                    }
                    Err(_) => {
                        counts.handshakes_failed.inc();
                    }
                }
                drop((place, open));
            });
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Makes a connection of a stream, encrypted if it must be.
async fn enter(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<(Connection, Peer)> {
    stream.set_nodelay(true)?;
    let address = stream.peer_addr().ok().map(|address| address.ip().to_canonical());
    match tls {
        None => Ok((stream.into(), Peer { address, certificate_names: vec![] })),
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let certificate_names = tls::certificate_names(stream.get_ref().1);
            Ok((stream.into(), Peer { address, certificate_names }))
        }
    }
}
