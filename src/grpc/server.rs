//! The server: HTTP/2 on each connection, within limits, and an end in good order.

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

/// Streams that a connection may see reset because of errors of its client, in its life.
const MAX_ERROR_RESETS: usize = 16 << 10;

/// How long a client that was told to go away has to read that.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Bytes of the metadata of a call.
    pub metadata_bytes: u32,
    /// Calls under way.
    pub streams: u32,
    /// How long a client may take to begin.
    pub handshake: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
    /// How long an answer may wait until its client takes it.
    pub answer: Duration,
    /// How long it may say nothing until it is asked whether it is alive.
    pub keepalive_interval: Duration,
    /// How long the answer to that may take.
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
            // What nobody takes would fill the memory. A client may keep it from being sent by the
            // windows of HTTP/2, or by not reading from its socket.
            () = unread(limits.answer, &activity) => {}
            () = progress.stalled(limits.answer) => {}
            // A reset, which the kernel sends when it closes a connection with unread bytes, may
            // overtake the GOAWAY.
            () = exceeded.wait() => sleep(GOAWAY_GRACE).await,
        }
    });
    // How a connection ends is its client's affair.
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

/// Ends if after this time there is still silence, and else never.
async fn silent(patience: Duration, is_silent: impl Fn() -> bool) {
    sleep(patience).await;
    if !is_silent() {
        std::future::pending().await
    }
}

/// Ends when an answer has waited for its reader for some time, at most twice as long as given.
async fn unread(patience: Duration, activity: &Activity) {
    let mut looks = interval_at(Instant::now() + patience, patience);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while activity.next_interval() {
        looks.tick().await;
    }
}

/// Ends when no call has been under way for some time, at most twice as long as given.
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
