//! The ways from watchers to replicas. A way may change the messages on it, as if the replica broke
//! a rule of decision 34 towards this watcher.

use std::net::SocketAddr;

use countersign::proto::{
    WatchRenewal, WatchRequest, WatchResponse, WatchStart,
    revocation_service_client::RevocationServiceClient,
    revocation_service_server::{RevocationService, RevocationServiceServer},
    watch_request::Message,
    watch_response::Event,
};
use countersign_test_support::proxy::Link;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server, server::TcpIncoming},
};

use crate::profiles::LEASE;

/// The number of renewals that may be sent for each renewal of the watcher.
const RENEWALS: u64 = 1_000;

/// A rule that a replica breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Leases are sent before the entries that they cover (rule 1).
    LeaseBeforeEntries,
    /// A lease is longer than that of the replica, and than the replica counts (rule 2).
    LongerLease,
    /// A stream that has ended is not waited for (rule 6).
    EndedStreamForgotten,
    /// A stream goes on with a gap (rule 8).
    Gap,
    /// A stream goes on after a cursor of another membership (rule 8).
    ForeignCursor,
}

/// The way of one watcher to the replica in one place.
pub struct Route {
    /// Leads to the replica, or to `altered`.
    pub link: Link,
    altered: Option<Altered>,
}

/// A service that passes messages on to a replica, and breaks a rule.
struct Altered {
    /// Leads to the replica.
    link: Link,
    _serving: AbortOnDropHandle<()>,
}

impl Route {
    /// Creates a way that leads nowhere yet.
    pub async fn create(broken: Option<Broken>) -> Self {
        let link = Link::to_process().await;
        let Some(broken) = broken else { return Self { link, altered: None } };
        let to_replica = Link::to_process().await;
        let service = AlteredWatch { broken, replica: to_replica.address() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        link.lead_to_process(Some(listener.local_addr().unwrap()));
        let serving = async {
            let server = Server::builder().add_service(RevocationServiceServer::new(service));
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(serving));
        Self { link, altered: Some(Altered { link: to_replica, _serving: serving }) }
    }

    /// Makes the way lead to the replica at this address, or to none.
    pub fn lead_to(&self, replica: Option<SocketAddr>) {
        match &self.altered {
            Some(altered) => altered.link.lead_to_process(replica),
            None => self.link.lead_to_process(replica),
        }
    }
}

struct AlteredWatch {
    broken: Broken,
    replica: SocketAddr,
}

type Responses = mpsc::UnboundedSender<Result<WatchResponse, Status>>;

#[tonic::async_trait]
impl RevocationService for AlteredWatch {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let replica = Endpoint::from_shared(format!("http://{}", self.replica)).unwrap();
        let unavailable = |_| Status::unavailable("there is no replica");
        let mut client =
            RevocationServiceClient::new(replica.connect().await.map_err(unavailable)?);
        let (to_replica, mut sent) = mpsc::unbounded_channel();
        let from_watcher = stream::poll_fn(move |context| sent.poll_recv(context));
        let from_replica = client.watch(from_watcher).await?.into_inner();
        let (to_watcher, mut received) = mpsc::unbounded_channel();
        let (broken, from_watcher) = (self.broken, request.into_inner());
        let relay = Relay {
            broken,
            to_replica,
            to_watcher: delayed(broken, to_watcher),
            began_with_cursor: false,
            is_dropping: false,
            confirmed: vec![],
            number: 0,
            leased: 0,
        };
        tokio::spawn(relay.run(from_watcher, from_replica));
        Ok(Response::new(stream::poll_fn(move |context| received.poll_recv(context)).boxed()))
    }
}

/// Returns the channel to a watcher. If leases are to be sent before the entries, the entries wait
/// for longer than a lease.
fn delayed(broken: Broken, to_watcher: Responses) -> Responses {
    if broken != Broken::LeaseBeforeEntries {
        return to_watcher;
    }
    let (sender, mut now) = mpsc::unbounded_channel::<Result<WatchResponse, Status>>();
    let (late, mut later) = mpsc::unbounded_channel();
    let also_to_watcher = to_watcher.clone();
    tokio::spawn(async move {
        let mut is_snapshot = true;
        while let Some(response) = now.recv().await {
            let message = response.as_ref().ok();
            let has_entries =
                message.is_some_and(|message| matches!(message.event, Some(Event::Revocations(_))));
            if has_entries && !is_snapshot {
                let _ = late.send((Instant::now() + LEASE * 3 / 2, response));
            } else {
                is_snapshot &= message.is_some_and(|message| message.cursor.is_empty());
                let _ = to_watcher.send(response);
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, response)) = later.recv().await {
            sleep_until(at).await;
            let _ = also_to_watcher.send(response);
        }
    });
    sender
}

/// A stream that breaks a rule.
struct Relay {
    broken: Broken,
    to_replica: mpsc::UnboundedSender<WatchRequest>,
    to_watcher: Responses,
    /// True if the watcher sent a cursor at the beginning.
    began_with_cursor: bool,
    /// True while responses are left out.
    is_dropping: bool,
    /// The last cursor that the replica has sent.
    confirmed: Vec<u8>,
    /// The number of the last renewal to the replica.
    number: u64,
    /// The number of the last renewal of the watcher that a lease has answered.
    leased: u64,
}

impl Relay {
    async fn run(
        mut self,
        mut from_watcher: Streaming<WatchRequest>,
        mut from_replica: Streaming<WatchResponse>,
    ) {
        loop {
            tokio::select! {
                request = from_watcher.message() => {
                    let Ok(Some(request)) = request else { break };
                    self.request(request);
                }
                response = from_replica.message() => match response {
                    Ok(Some(response)) => self.response(response),
                    Ok(None) => return,
                    Err(status) => {
                        let _ = self.to_watcher.send(Err(status));
                        return;
                    }
                },
            }
        }
        if self.broken == Broken::EndedStreamForgotten {
            // Everything is confirmed, as if there were no watcher, until its leases are over.
            let over = Instant::now() + LEASE * 3;
            self.confirm();
            while let Ok(Ok(Some(response))) = timeout_at(over, from_replica.message()).await {
                if self.keep_cursor(&response) {
                    self.confirm();
                }
            }
        }
    }

    fn request(&mut self, mut request: WatchRequest) {
        match &mut request.message {
            Some(Message::Start(WatchStart { cursor })) => {
                self.began_with_cursor = !cursor.is_empty();
            }
            Some(Message::Renewal(WatchRenewal { number, .. })) => {
                // Numbers must rise, and this relay sends renewals too.
                *number *= RENEWALS;
                self.number = self.number.max(*number);
            }
            None => {}
        }
        let _ = self.to_replica.send(request);
    }

    fn response(&mut self, mut response: WatchResponse) {
        self.keep_cursor(&response);
        match &mut response.event {
            Some(Event::Lease(lease)) => {
                lease.number /= RENEWALS;
                if lease.number <= self.leased {
                    return;
                }
                self.leased = lease.number;
                if self.broken == Broken::LongerLease
                    && let Some(valid_for) = &mut lease.valid_for
                {
                    valid_for.seconds += 2;
                }
            }
            Some(Event::Reset(_)) => {
                self.is_dropping = self.broken == Broken::ForeignCursor && self.began_with_cursor;
                self.began_with_cursor &= self.is_dropping;
            }
            Some(Event::Revocations(_)) => {
                self.is_dropping |= self.broken == Broken::Gap && self.began_with_cursor;
            }
            _ => {}
        }
        let event = response.event.as_ref();
        if self.is_dropping && matches!(event, Some(Event::Reset(_) | Event::Revocations(_))) {
            let Some(last) = Some(response.cursor).filter(|cursor| !cursor.is_empty()) else {
                return;
            };
            // The stream goes on after this place.
            (self.is_dropping, self.began_with_cursor) = (false, false);
            let event = Some(Event::Revocations(Default::default()));
            let _ = self.to_watcher.send(Ok(WatchResponse { cursor: last, event }));
            return;
        }
        let _ = self.to_watcher.send(Ok(response));
    }

    /// Keeps the cursor of a response, and returns whether it has one.
    fn keep_cursor(&mut self, response: &WatchResponse) -> bool {
        if response.cursor.is_empty() {
            return false;
        }
        self.confirmed.clone_from(&response.cursor);
        true
    }

    /// Confirms everything that the replica has sent.
    fn confirm(&mut self) {
        self.number += 1;
        let renewal = WatchRenewal { number: self.number, applied: self.confirmed.clone() };
        let _ = self.to_replica.send(WatchRequest { message: Some(Message::Renewal(renewal)) });
    }
}
