//! Watches services by many streams, each on a connection of its own, and revokes sessions at a
//! fixed rate.
//!
//! Usage: `watchers COUNT RATE ADDRESS..`. Each address gets COUNT watchers. They confirm what they
//! are sent, and renew their leases, but keep no copy, so that they take as little of the machine
//! as possible. Once each has a lease, the program prints `ready`. It then revokes RATE sessions a
//! second at the first address, until its standard input is closed. Each second it prints the
//! number of revocations that were acknowledged, and the median and the 99th percentile of their
//! latencies in microseconds.
#![allow(clippy::disallowed_methods)] // Measurements need the real clock.

use std::{
    env,
    error::Error,
    io::Read,
    time::{Duration, Instant},
};

use countersign::proto::{
    CreateSessionRequest, RevokeRequest, WatchLease, WatchRenewal, WatchRequest, WatchStart,
    revoke_request::Target, session_service_client::SessionServiceClient, watch_request::Message,
};
use futures_util::stream;
use http::uri::PathAndQuery;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval},
};
use tonic::{
    Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

type Failure = Box<dyn Error + Send + Sync>;

/// The time between two renewals of a watcher that is sent nothing.
const RENEWAL: Duration = Duration::from_millis(500);
/// The number of sessions that are created at the same time.
const CREATED_AT_ONCE: u64 = 64;
/// The time for which there are sessions to revoke, in seconds.
const LONGEST: u64 = 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> =
        env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo bench` without arguments has nothing to measure here.
    let [count, rate, addresses @ ..] = arguments.as_slice() else { return Ok(()) };
    let (count, rate): (usize, u64) = (count.parse()?, rate.parse()?);
    let (ready, mut begun) = mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for address in addresses {
        for _ in 0..count {
            watchers.spawn(follow(connect(address).await?, ready.clone()));
        }
    }
    for _ in 0..count * addresses.len() {
        tokio::select! {
            _ = begun.recv() => {}
            Some(ended) = watchers.join_next() => return Err(format!("{:?}", ended?).into()),
        }
    }
    let first = addresses.first().ok_or("no address")?;
    let sessions = create(connect(first).await?, rate * LONGEST).await?;
    println!("ready");
    let stopped = spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![]));
    tokio::select! {
        _ = stopped => Ok(()),
        Some(ended) = watchers.join_next() => Err(format!("{:?}", ended?).into()),
        failed = revoke(connect(first).await?, rate, sessions) => failed,
    }
}

async fn connect(address: &str) -> Result<Channel, Failure> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect().await?)
}

/// The parts of a `WatchResponse` that a watcher without a copy needs.
#[derive(Clone, PartialEq, prost::Message)]
struct Received {
    #[prost(bytes = "vec", tag = "1")]
    cursor: Vec<u8>,
    #[prost(message, tag = "6")]
    lease: Option<WatchLease>,
}

/// Follows a stream until it ends, which is a failure.
async fn follow(channel: Channel, ready: mpsc::UnboundedSender<()>) -> Result<(), Failure> {
    let (requests, mut sent) = mpsc::unbounded_channel();
    let send = |message| requests.send(WatchRequest { message: Some(message) });
    send(Message::Start(WatchStart::default()))?;
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let responses = client.streaming(
        Request::new(stream::poll_fn(move |context| sent.poll_recv(context))),
        PathAndQuery::from_static("/countersign.v1.RevocationService/Watch"),
        ProstCodec::<WatchRequest, Received>::default(),
    );
    let mut responses = responses.await?.into_inner();
    let mut ready = Some(ready);
    let mut renewal = WatchRenewal::default();
    let mut renewals = interval(RENEWAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            response = responses.message() => {
                let Received { cursor, lease } = response?.ok_or("a stream has ended")?;
                if let Some(ready) = ready.take_if(|_| lease.is_some()) {
                    ready.send(())?;
                }
                if cursor.is_empty() {
                    continue;
                }
                renewal.applied = cursor;
                renewals.reset();
            }
            _ = renewals.tick() => {}
        }
        if !renewal.applied.is_empty() {
            renewal.number += 1;
            send(Message::Renewal(renewal.clone()))?;
        }
    }
}

/// Creates sessions, and returns their identifiers.
async fn create(channel: Channel, count: u64) -> Result<Vec<String>, Failure> {
    let (mut tasks, mut created) = (JoinSet::new(), vec![]);
    for worker in 0..CREATED_AT_ONCE {
        let mut client = SessionServiceClient::new(channel.clone());
        tasks.spawn(async move {
            let mut created = vec![];
            for number in 0..count.div_ceil(CREATED_AT_ONCE) {
                let subject = format!("watched-{worker}-{number}");
                let request = CreateSessionRequest { subject, ..Default::default() };
                let session = client.create_session(request).await?.into_inner().session;
                created.push(session.unwrap_or_default().session_id);
            }
            Ok::<_, tonic::Status>(created)
        });
    }
    while let Some(done) = tasks.join_next().await {
        created.extend(done??);
    }
    Ok(created)
}

/// Revokes sessions at a rate, and prints a line each second.
async fn revoke(channel: Channel, rate: u64, mut sessions: Vec<String>) -> Result<(), Failure> {
    if rate == 0 {
        return std::future::pending().await;
    }
    let mut pace = interval(Duration::from_secs(1) / u32::try_from(rate)?);
    let (mut calls, mut latencies) = (JoinSet::new(), vec![]);
    let mut since = Instant::now();
    loop {
        tokio::select! {
            _ = pace.tick() => {
                let session = sessions.pop().ok_or("no sessions are left")?;
                let mut client = SessionServiceClient::new(channel.clone());
                calls.spawn(async move {
                    let asked = Instant::now();
                    let target = Some(Target::SessionId(session));
                    client.revoke(RevokeRequest { target, ..Default::default() }).await?;
                    Ok::<_, tonic::Status>(asked.elapsed())
                });
            }
            Some(answered) = calls.join_next() => latencies.push(answered??),
        }
        if since.elapsed() >= Duration::from_secs(1) {
            latencies.sort_unstable();
            let part = |of_100: usize| {
                latencies.get(latencies.len() * of_100 / 100).map_or(0, Duration::as_micros)
            };
            println!("{} {} {}", latencies.len(), part(50), part(99));
            latencies.clear();
            since = Instant::now();
        }
    }
}
