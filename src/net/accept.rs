//! Accepts connections within limits. Each connection has a task of its own, so that a slow client
//! does not delay other clients.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Peer},
    refused_certificates::RefusedCertificates,
    tls::{self, Side, Tls},
};

/// The time to wait after a failure to accept a connection, for instance because no file descriptor
/// is free.
const RETRY: Duration = Duration::from_millis(100);
/// The shortest time between two log lines about failures to accept.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The limits of the connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of open connections outside the reserve. If there is no reserve, one more
    /// is closed immediately, so that its client turns to another replica.
    pub connections: usize,
    /// The reserve for connections beyond the limit, if there is one.
    pub reserve: Option<Reserve>,
    /// The time within which a client must complete the TLS handshake, if there is one.
    pub handshake: Duration,
}

/// Room for connections beyond the limit, for clients that must be answered while others fill the
/// port. The server answers only a few kinds of requests on these connections
/// ([`Connection::is_reserved`]). When the reserve is full, its oldest connection is closed to make
/// room for the next, so that no client can keep the reserve occupied.
#[derive(Clone, Copy, Debug)]
pub struct Reserve {
    /// The maximum number of open connections in the reserve.
    pub connections: usize,
    /// The time after which a connection in the reserve is closed.
    pub time: Duration,
}

/// Counts the connections of one port since the start of the process.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that are open now.
    pub open: Gauge,
    /// Connections that were accepted.
    pub accepted: Counter,
    /// Connections that were closed immediately, because too many were open.
    pub refused: Counter,
    /// Open connections that are in the reserve.
    pub reserved_open: Gauge,
    /// Accepted connections for which only the reserve had room.
    pub reserved: Counter,
    /// Connections in the reserve that were closed for a newer one.
    pub displaced: Counter,
    /// Connections that were closed because the TLS handshake failed or took too long.
    pub handshakes_failed: Counter,
}

/// Accepts the connections of one port.
#[derive(Debug)]
pub struct Acceptor {
    /// The socket.
    pub listener: TcpListener,
    /// The TLS settings; `None` if connections are not encrypted.
    pub tls: Option<Arc<Tls>>,
    /// The server that the port belongs to.
    pub side: Side,
    /// The limits.
    pub limits: Limits,
    /// The counts.
    pub counts: Arc<Counts>,
}

/// Counts a connection as open, and holds its permit, until it is dropped.
struct Open {
    counts: Arc<Counts>,
    is_reserved: bool,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(counts: Arc<Counts>, permit: OwnedSemaphorePermit, is_reserved: bool) -> Self {
        counts.accepted.inc();
        counts.open.inc();
        if is_reserved {
            counts.reserved.inc();
            counts.reserved_open.inc();
        }
        Self { counts, is_reserved, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counts.open.dec();
        if self.is_reserved {
            self.counts.reserved_open.dec();
        }
    }
}

/// Decides which failures to accept a connection are logged. A failure that lasts must not fill the
/// log.
#[derive(Debug, Default)]
struct FailureLog {
    logged_at: Option<Instant>,
}

impl FailureLog {
    /// Returns whether a failure that happens now is to be logged.
    fn is_due(&mut self) -> bool {
        let is_due = self.logged_at.is_none_or(|at| at.elapsed() >= FAILURE_LOG_INTERVAL);
        if is_due {
            self.logged_at = Some(Instant::now());
        }
        is_due
    }
}

/// The connections in the reserve.
struct Reserved {
    permits: Arc<Semaphore>,
    time: Duration,
    /// The tasks of the connections, the oldest first.
    tasks: VecDeque<AbortHandle>,
}

impl Reserved {
    fn new(reserve: Reserve) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(reserve.connections)),
            time: reserve.time,
            tasks: VecDeque::new(),
        }
    }

    /// Acquires a permit. If none is free, closes the oldest connection first.
    async fn make_room(&mut self, counts: &Counts) -> Option<OwnedSemaphorePermit> {
        self.tasks.retain(|task| !task.is_finished());
        if self.permits.available_permits() == 0
            && let Some(oldest) = self.tasks.pop_front()
        {
            oldest.abort();
            counts.displaced.inc();
        }
        // The permit becomes free, and the connection is closed, as soon as the runtime drops the
        // aborted task.
        self.permits.clone().acquire_owned().await.ok()
    }
}

impl Acceptor {
    /// Accepts connections and passes each to `serve` until `stop` is cancelled. Then waits until
    /// all connections have ended. `serve` must end its connection when `stop` is cancelled.
    pub async fn run<F>(
        self,
        stop: CancellationToken,
        serve: impl Fn(Connection, Peer) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let mut reserved = self.limits.reserve.map(Reserved::new);
        let mut connections = JoinSet::new();
        let mut failures = FailureLog::default();
        let refused_certificates = Arc::new(RefusedCertificates::default());
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if failures.is_due() {
                        tracing::warn!(%error, "a connection cannot be accepted");
                    }
                    sleep(RETRY).await;
                    continue;
                }
            };
            let (permit, reserve) = match (permits.clone().try_acquire_owned(), &mut reserved) {
                (Ok(permit), _) => (Some(permit), None),
                (Err(_), Some(reserved)) => {
                    (reserved.make_room(&self.counts).await, Some(reserved))
                }
                (Err(_), None) => (None, None),
            };
            let Some(permit) = permit else {
                self.counts.refused.inc();
                continue;
            };
            let accepted = Accepted {
                stream,
                address,
                tls: self.tls.as_ref().map(|tls| tls.acceptor(self.side)),
                handshake: self.limits.handshake,
                open: Open::new(self.counts.clone(), permit, reserve.is_some()),
                refused_certificates: refused_certificates.clone(),
                stop: stop.clone(),
            };
            let serve_connection = accepted.serve(serve.clone());
            match reserve {
                None => drop(connections.spawn(serve_connection)),
                Some(reserved) => {
                    let in_time = timeout(reserved.time, serve_connection);
                    reserved.tasks.push_back(connections.spawn(async {
                        // After a timeout the future is dropped, which closes the connection.
                        let _ = in_time.await;
                    }));
                }
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// A connection that was accepted and has not been set up.
struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    /// The time within which the client must complete the handshake.
    handshake: Duration,
    open: Open,
    refused_certificates: Arc<RefusedCertificates>,
    stop: CancellationToken,
}

impl Accepted {
    /// Sets up the connection and serves it to its end.
    async fn serve<F: Future<Output = ()> + Send>(self, serve: impl Fn(Connection, Peer) -> F) {
        let Self { stream, address, tls, handshake, open, refused_certificates, stop } = self;
        let outcome = tokio::select! {
            outcome = timeout(handshake, establish(stream, address, tls)) => outcome,
            // The client has sent no request yet.
            () = stop.cancelled() => return,
        };
        match outcome {
            Ok(Ok((mut connection, peer))) => {
                if open.is_reserved {
                    connection.mark_reserved();
                }
                serve(connection, peer).await;
            }
            Ok(Err(HandshakeFailed { error, stream })) => {
                open.counts.handshakes_failed.inc();
                match tls::refused_certificate(&error) {
                    Some(refused) => refused_certificates.warn(address.ip(), &refused),
                    None => tracing::debug!(%error, "a connection could not be set up"),
                }
                // The client has time to read the alert that names the reason.
                let mut connection = Connection::from(stream);
                tokio::select! {
                    _ = connection.shutdown() => {}
                    () = stop.cancelled() => {}
                }
            }
            Err(_) => {
                open.counts.handshakes_failed.inc();
            }
        }
    }
}

/// The TLS handshake failed, or the socket could not be set up.
struct HandshakeFailed {
    error: io::Error,
    stream: TcpStream,
}

/// Sets up a connection, after a handshake if there is an acceptor for TLS.
async fn establish(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> Result<(Connection, Peer), HandshakeFailed> {
    if let Err(error) = stream.set_nodelay(true) {
        return Err(HandshakeFailed { error, stream });
    }
    let address = Some(address.ip().to_canonical());
    match tls {
        None => Ok((stream.into(), Peer { address, certificate_names: vec![] })),
        Some(acceptor) => {
            let accepted = acceptor.accept(stream).into_fallible().await;
            let stream = accepted.map_err(|(error, stream)| HandshakeFailed { error, stream })?;
            let certificate_names = tls::certificate_names(stream.get_ref().1);
            Ok((stream.into(), Peer { address, certificate_names }))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_lasts_is_logged_once_in_each_interval() {
        let mut failures = FailureLog::default();
        assert!(failures.is_due());
        let mut logged = 0;
        for _ in 0..10 * FAILURE_LOG_INTERVAL.as_secs() {
            advance(Duration::from_secs(1)).await;
            logged += u64::from(failures.is_due());
        }
        assert_eq!(logged, 10, "a failure that lasts");
        advance(FAILURE_LOG_INTERVAL).await;
        assert!(failures.is_due(), "a failure after a pause is logged immediately");
        assert!(!failures.is_due());
    }
}
