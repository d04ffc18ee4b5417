//! The server, which speaks HTTP/2 on each connection, keeps it within limits, and shuts down
//! gracefully.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    overload::{
        activity::Activity, connection_driver::ConnectionDriver, frame_budget::FrameBudget,
        spawner::Spawner,
    },
    services::{ConnectionService, Services},
};
use crate::net::{
    accept::Acceptor,
    connection::{Connection, Peer},
};

/// The length of the connection preface with which a client begins (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// The most streams of a connection that may be reset because of errors of its client, over its
/// whole life.
const MAX_ERROR_RESETS: usize = 16 << 10;

/// The time that a client has to read its GOAWAY.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// The most bytes of metadata in a call.
    pub metadata_bytes: u32,
    /// The most calls under way.
    pub streams: u32,
    /// The time within which a client must send its connection preface.
    pub handshake: Duration,
    /// The time for which a connection may be without a call.
    pub idle: Duration,
    /// The time within which a client must take an answer.
    pub answer: Duration,
    /// The silence after which the client is sent a PING.
    pub keepalive_interval: Duration,
    /// The time within which the client must answer the PING.
    pub keepalive_timeout: Duration,
}

/// Serves until `stop` is cancelled, then lets the calls under way finish.
pub async fn serve(
    acceptor: Acceptor,
    services: Services,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let (services, stopping) = (Arc::new(services), stop.clone());
    let serve = move |connection, peer| {
        serve_connection(connection, peer, services.clone(), limits, stopping.clone())
    };
    acceptor.run(stop, serve).await;
}

fn http2(limits: &ConnectionLimits, spawner: Spawner) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(limits.metadata_bytes)
        .max_concurrent_streams(limits.streams)
        // The most calls that a client may cancel before the server has accepted them; one more
        // closes the connection with all calls on it. The limit is that of calls under way, because
        // the deadlines of all of them may pass at once if the server stalls. The default is 20.
        .max_pending_accept_reset_streams(usize::try_from(limits.streams).unwrap_or(usize::MAX))
        // One more error closes the connection with all calls on it. Few errors occur, because the
        // messages of refused calls are read. The default is 1024.
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

async fn serve_connection(
    connection: Connection,
    peer: Peer,
    services: Arc<Services>,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let (spawner, activity) = (Spawner::default(), Arc::new(Activity::default()));
    let driver =
        ConnectionDriver { read_budget: connection.read_budget(), spawner: spawner.clone() };
    let service = ConnectionService::new(services, peer, activity.clone(), spawner.clone());
    let progress = connection.write_progress();
    let connection = FrameBudget::new(connection);
    let exceeded = connection.exceeded();
    let mut served =
        pin!(http2(&limits, spawner).serve_connection(TokioIo::new(connection), service));
    let mut abused = pin!(async {
        tokio::select! {
            // Unread answers fill the memory. A client can keep them from being sent by its HTTP/2
            // flow-control windows, or by not reading from its socket.
            () = activity.unread(limits.answer) => {}
            () = progress.stalled(limits.answer) => {}
            // A TCP reset, which the kernel sends when it closes a connection with unread bytes,
            // may overtake the GOAWAY.
            () = exceeded.wait() => sleep(GOAWAY_GRACE).await,
        }
    });
    // It does not matter how the client ends its connection.
    tokio::select! {
        _ = driver.run(served.as_mut()) => return,
        () = &mut abused => return,
        () = stop.cancelled() => {}
        () = silent(limits.handshake, || driver.read_budget.bytes() < PREFACE_BYTES) => return,
        () = activity.idle(limits.idle) => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(limits.keepalive_timeout, driver.run(served)).await;
            return;
        }
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = driver.run(served) => {}
        () = abused => {}
    }
}

/// Completes after `timeout` if the client is still silent then, and otherwise never.
async fn silent(timeout: Duration, is_silent: impl Fn() -> bool) {
    sleep(timeout).await;
    if !is_silent() {
        std::future::pending().await
    }
}
