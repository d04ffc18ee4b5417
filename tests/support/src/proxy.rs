//! A TCP proxy between a replica and its PostgreSQL server, or between a watcher and a replica. A
//! test can make the proxy slow or silent, or make it close or refuse connections.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use futures_util::future::join;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_postgres::config::Host;
use tokio_util::task::AbortOnDropHandle;

/// The conditions of a link.
#[derive(Clone, Debug)]
struct Conditions {
    /// The latency of bytes to the server; `None` if they do not arrive.
    to_server: Option<Duration>,
    /// The latency of bytes to the client; `None` if they do not arrive.
    to_client: Option<Duration>,
    /// True if new connections are closed at once.
    refusing: bool,
    /// Connections with a lower number are closed. They are numbered in the order in which they are
    /// accepted.
    cut_before: u64,
    /// On connections with a lower number nothing passes any more, not even the end of the
    /// connection.
    silent_before: u64,
}

const GOOD: Conditions = Conditions {
    to_server: Some(Duration::ZERO),
    to_client: Some(Duration::ZERO),
    refusing: false,
    cut_before: 0,
    silent_before: 0,
};

/// The server to which a link leads.
#[derive(Clone, Debug)]
enum Target {
    /// A PostgreSQL server, by its Unix socket.
    Socket(PathBuf),
    /// A process, by its address.
    Process(SocketAddr),
    /// None. New connections are closed at once.
    Nothing,
}

/// A link to a server. Each client has a link of its own, so that links can fail one by one.
/// Dropping a link closes all of its connections.
pub struct Link {
    address: SocketAddr,
    /// The name of the database; empty if the link leads to another kind of server.
    database: String,
    target: watch::Sender<Target>,
    conditions: watch::Sender<Conditions>,
    next: watch::Receiver<u64>,
    _carrying: AbortOnDropHandle<()>,
}

impl Link {
    /// Creates a link without faults to the database of this URL, whose server listens on a Unix
    /// socket.
    pub async fn to(url: &str) -> Self {
        let config: tokio_postgres::Config = url.parse().unwrap();
        let target = Target::Socket(socket_of(&config));
        Self::create(config.get_dbname().unwrap().to_owned(), target).await
    }

    /// Creates a link without faults that leads to no process yet.
    pub async fn to_process() -> Self {
        Self::create(String::new(), Target::Nothing).await
    }

    async fn create(database: String, target: Target) -> Self {
        let (target, server) = watch::channel(target);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (conditions, seen) = watch::channel(GOOD);
        let (counter, next) = watch::channel(0);
        Self {
            address: listener.local_addr().unwrap(),
            database,
            target,
            conditions,
            next,
            _carrying: AbortOnDropHandle::new(tokio::spawn(carry_all(
                listener, server, seen, counter,
            ))),
        }
    }

    /// Makes new connections go to the server of this URL.
    pub fn lead_to(&self, url: &str) {
        self.target.send_replace(Target::Socket(socket_of(&url.parse().unwrap())));
    }

    /// Makes new connections go to the process that listens on this address, or closes them at once
    /// if there is none.
    pub fn lead_to_process(&self, address: Option<SocketAddr>) {
        self.target.send_replace(address.map_or(Target::Nothing, Target::Process));
    }

    /// Returns the address on which the link listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of the database through this link.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/{}", self.address, self.database)
    }

    /// Returns the number of connections since the beginning.
    pub fn connections(&self) -> u64 {
        *self.next.borrow()
    }

    /// Waits until there have been this many connections since the beginning.
    pub async fn connected(&self, count: u64) {
        self.next.clone().wait_for(|next| *next >= count).await.unwrap();
    }

    /// Sets the latency in each direction, also for bytes that are under way.
    pub fn delay(&self, to_server: Duration, to_client: Duration) {
        self.conditions.send_modify(|link| {
            (link.to_server, link.to_client) = (Some(to_server), Some(to_client))
        });
    }

    /// Lets nothing arrive on any connection until the link is restored.
    pub fn stall(&self) {
        self.conditions.send_modify(|link| (link.to_server, link.to_client) = (None, None));
    }

    /// Holds everything that is sent to the server until the link is restored.
    pub fn hold_requests(&self) {
        self.conditions.send_modify(|link| link.to_server = None);
    }

    /// Holds everything that the server sends until the link is restored.
    pub fn hold_replies(&self) {
        self.conditions.send_modify(|link| link.to_client = None);
    }

    /// Lets nothing arrive on the present connections, for ever. New connections work.
    pub fn silence(&self) {
        let next = *self.next.borrow();
        self.conditions.send_modify(|link| link.silent_before = next);
    }

    /// Closes the present connections. New connections work.
    pub fn cut(&self) {
        let next = *self.next.borrow();
        self.conditions.send_modify(|link| link.cut_before = next);
    }

    /// Closes new connections at once. The present connections still work.
    pub fn refuse(&self) {
        self.conditions.send_modify(|link| link.refusing = true);
    }

    /// Ends all delays, holds and refusals. Connections that were silenced or cut stay so.
    pub fn restore(&self) {
        self.conditions.send_modify(|link| {
            *link = Conditions {
                cut_before: link.cut_before,
                silent_before: link.silent_before,
                ..GOOD
            };
        });
    }
}

fn socket_of(config: &tokio_postgres::Config) -> PathBuf {
    let [Host::Unix(folder)] = config.get_hosts() else { panic!("not a Unix socket: {config:?}") };
    folder.join(".s.PGSQL.5432")
}

async fn carry_all(
    listener: TcpListener,
    server: watch::Receiver<Target>,
    conditions: watch::Receiver<Conditions>,
    counter: watch::Sender<u64>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let number = *counter.borrow();
        counter.send_replace(number + 1);
        if !conditions.borrow().refusing {
            connections.spawn(carry(number, client, server.borrow().clone(), conditions.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards one connection until both sides have ended it, or it is cut.
async fn carry(
    number: u64,
    client: TcpStream,
    target: Target,
    conditions: watch::Receiver<Conditions>,
) {
    client.set_nodelay(true).unwrap();
    // If the server is down, the client sees its connection closed.
    match target {
        Target::Socket(path) => {
            let Ok(server) = UnixStream::connect(path).await else { return };
            carry_between(number, client, server.into_split(), conditions).await;
        }
        Target::Process(address) => {
            let Ok(server) = TcpStream::connect(address).await else { return };
            server.set_nodelay(true).unwrap();
            carry_between(number, client, server.into_split(), conditions).await;
        }
        Target::Nothing => {}
    }
}

async fn carry_between(
    number: u64,
    client: TcpStream,
    (from_server, to_server): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    mut conditions: watch::Receiver<Conditions>,
) {
    let (from_client, to_client) = client.into_split();
    let is_silent = move |link: &Conditions| number < link.silent_before;
    let up = pump(from_client, to_server, conditions.clone(), move |link| {
        link.to_server.filter(|_| !is_silent(link))
    });
    let down = pump(from_server, to_client, conditions.clone(), move |link| {
        link.to_client.filter(|_| !is_silent(link))
    });
    tokio::select! {
        _ = join(up, down) => {}
        _ = conditions.wait_for(|link| number < link.cut_before) => {}
    }
}

/// Forwards one direction of a connection. The end of the stream arrives after all bytes that were
/// sent before it.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut conditions: watch::Receiver<Conditions>,
    latency: impl Fn(&Conditions) -> Option<Duration>,
) {
    let (sender, mut under_way) = mpsc::unbounded_channel();
    let departures = async move {
        loop {
            let mut bytes = vec![0; 16 << 10];
            let length = from.read(&mut bytes).await.unwrap_or(0);
            bytes.truncate(length);
            if sender.send((Instant::now(), bytes)).is_err() || length == 0 {
                return;
            }
        }
    };
    let arrivals = async move {
        while let Some((sent, bytes)) = under_way.recv().await {
            loop {
                let latency = latency(&conditions.borrow_and_update());
                let arrival = async {
                    match latency {
                        Some(latency) => sleep_until(sent + latency).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = arrival => break,
                    changed = conditions.changed() => if changed.is_err() { return },
                }
            }
            let written =
                if bytes.is_empty() { to.shutdown().await } else { to.write_all(&bytes).await };
            if written.is_err() {
                return;
            }
        }
    };
    join(departures, arrivals).await;
}
