//! The server: HTTP/2 on each connection, within limits, and a graceful shutdown.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    activity::Activity,
    connection_driver::ConnectionDriver,
    frame_budget::FrameBudget,
    services::{ConnectionService, Services},
    spawner::Spawner,
};
use crate::net::{
    accept::Acceptor,
    connection::{Connection, Peer},
};

/// Bytes with which a client begins HTTP/2 (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Streams of a connection that may be reset because of errors of its client, over its whole life.
const MAX_ERROR_RESETS: usize = 16 << 10;

/// The time that a client has to read its GOAWAY.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Bytes of the metadata of a call.
    pub metadata_bytes: u32,
    /// Calls under way.
    pub streams: u32,
    /// The time within which a client must begin.
    pub handshake: Duration,
    /// The time for which a connection may be without a call.
    pub idle: Duration,
    /// The time within which a client must take an answer.
    pub answer: Duration,
    /// The silence after which the client is sent a PING.
    pub keepalive_interval: Duration,
    /// The time within which it must answer.
    pub keepalive_timeout: Duration,
}

/// Serves until `stop`, then lets the calls under way finish.
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
        // Calls that a client has given up before we have looked at them; one more closes the
        // connection with all calls on it. As many as may be under way: if we are held up, all
        // their deadlines may pass at once. By default it is 20.
        .max_pending_accept_reset_streams(usize::try_from(limits.streams).unwrap_or(usize::MAX))
        // Errors of a client that reset a stream, over the connection's whole life; one more closes
        // it with all calls on it. Messages are read even if they are refused, so few are left; by
        // default it is 1024.
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
            // Answers that are not read fill the memory. A client can keep them from being sent by
            // the windows of HTTP/2, or by not reading from its socket.
            () = unread(limits.answer, &activity) => {}
            () = progress.stalled(limits.answer) => {}
            // A reset, which the kernel sends when it closes a connection with unread bytes, may
            // overtake the GOAWAY.
            () = exceeded.wait() => sleep(GOAWAY_GRACE).await,
        }
    });
    // The way in which a client ends its connection does not matter.
    tokio::select! {
        _ = driver.run(served.as_mut()) => return,
        () = &mut abused => return,
        () = stop.cancelled() => {}
        () = silent(limits.handshake, || driver.read_budget.bytes() < PREFACE_BYTES) => return,
        () = idle(limits.idle, &activity) => {
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

/// Ends after this time if the client is still silent, and else never.
async fn silent(patience: Duration, is_silent: impl Fn() -> bool) {
    sleep(patience).await;
    if !is_silent() {
        std::future::pending().await
    }
}

/// Ends when an answer has been blocked for the given time, or at most twice as long.
async fn unread(patience: Duration, activity: &Activity) {
    let mut looks = interval_at(Instant::now() + patience, patience);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while activity.next_interval() {
        looks.tick().await;
    }
}

/// Ends when no call has been under way for the given time, or at most twice as long.
async fn idle(patience: Duration, activity: &Activity) {
    let mut looks = interval_at(Instant::now() + patience, patience);
    let mut before = activity.idle_since();
    loop {
        looks.tick().await;
        let now = activity.idle_since();
        if now.is_some() && now == before {
            return;
        }
        before = now;
    }
}
