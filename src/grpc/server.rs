//! The gRPC server. It speaks HTTP/2 on each connection, enforces the limits of the connection, and
//! shuts down gracefully.

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

/// The length of the connection preface, which a client sends first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// The number of streams that the server may reset because of errors of the client, over the whole
/// life of a connection.
const MAX_ERROR_RESETS: usize = 16 << 10;

/// The time that a client has to read a GOAWAY before its connection is closed.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// The maximum size of the metadata of a call, in bytes.
    pub metadata_bytes: u32,
    /// The maximum number of calls under way.
    pub streams: u32,
    /// The time within which a client must send its connection preface.
    pub handshake: Duration,
    /// The time after which a connection without calls is closed.
    pub idle: Duration,
    /// The time within which a client must read an answer.
    pub answer: Duration,
    /// The time without any frame from the client after which the server sends a PING.
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
        // A client may cancel this many calls before the server has accepted them. One more closes
        // the connection and fails all calls on it. The limit equals the limit on calls under way,
        // because the deadlines of all those calls may pass at once if the server stalls. The
        // default of hyper is 20.
        .max_pending_accept_reset_streams(usize::try_from(limits.streams).unwrap_or(usize::MAX))
        // One more reset closes the connection and fails all calls on it. Such resets are rare,
        // because the server reads the messages of refused calls. The default of hyper is 1024.
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
            // Unread answers fill the memory. A client can keep the server from sending them by
            // leaving its HTTP/2 flow-control windows closed, or by not reading from its socket.
            () = activity.unread(limits.answer) => {}
            () = progress.stalled(limits.answer) => {}
            // The connection is not closed at once, because the kernel sends a TCP reset when it
            // closes a connection with unread bytes, and the reset may overtake the GOAWAY.
            () = exceeded.wait() => sleep(GOAWAY_GRACE).await,
        }
    });
    // The results are ignored, because it does not matter how the client ends its connection.
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

/// Completes after `timeout` if the client is still silent at that time. Otherwise never completes.
async fn silent(timeout: Duration, is_silent: impl Fn() -> bool) {
    sleep(timeout).await;
    if !is_silent() {
        std::future::pending().await
    }
}
