//! A watcher in its simplest form: a stream of Watch, message by message.

use std::time::Duration;

use countersign::proto::{
    WatchLease, WatchRenewal, WatchRequest, WatchResponse, WatchRevocations, WatchStart,
    revocation_service_client::RevocationServiceClient, watch_request::Message,
    watch_response::Event,
};
use futures_util::stream;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Request, Status, Streaming, transport::Channel};

/// The longest time that a message may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stream of Watch.
pub struct Watcher {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    /// The cursor of the last message that had one.
    pub cursor: Vec<u8>,
    number: u64,
}

/// The content of a snapshot.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// True if it began with a reset.
    pub is_reset: bool,
    /// The revocations.
    pub revocations: WatchRevocations,
    /// The last key set.
    pub jwks: String,
}

impl Watcher {
    /// Calls Watch, and sends the first message.
    pub async fn open(channel: Channel, cursor: Vec<u8>) -> Result<Self, Status> {
        Self::open_as(channel, None, cursor).await
    }

    /// Calls Watch with this API key, and sends the first message.
    pub async fn open_as(
        channel: Channel,
        api_key: Option<&str>,
        cursor: Vec<u8>,
    ) -> Result<Self, Status> {
        let (requests, mut sent) = mpsc::unbounded_channel();
        let start = Message::Start(WatchStart { cursor: cursor.clone() });
        requests.send(WatchRequest { message: Some(start) }).unwrap();
        let stream = stream::poll_fn(move |context| sent.poll_recv(context));
        let mut request = Request::new(stream);
        if let Some(key) = api_key {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {key}").parse().unwrap());
        }
        let mut client = RevocationServiceClient::new(channel);
        let responses = client.watch(request).await?.into_inner();
        Ok(Self { requests, responses, cursor, number: 0 })
    }

    /// Calls Watch without a cursor, and reads the snapshot.
    pub async fn begin(channel: Channel) -> (Self, Snapshot) {
        let mut watcher = Self::open(channel, vec![]).await.unwrap();
        let snapshot = watcher.snapshot().await.unwrap();
        (watcher, snapshot)
    }

    /// Ends this side of the call, and waits until the service has ended its side.
    pub async fn end(self) {
        let Self { requests, mut responses, .. } = self;
        drop(requests);
        while responses.message().await.unwrap().is_some() {}
    }

    /// Sends a message as it is.
    pub fn send(&self, message: Option<Message>) {
        self.requests.send(WatchRequest { message }).unwrap();
    }

    /// Sends a renewal that confirms everything that was read, and returns its number.
    pub fn renew(&mut self) -> u64 {
        let cursor = self.cursor.clone();
        self.renew_with(cursor)
    }

    /// Sends a renewal that confirms this cursor.
    pub fn renew_with(&mut self, applied: Vec<u8>) -> u64 {
        self.number += 1;
        self.send(Some(Message::Renewal(WatchRenewal { number: self.number, applied })));
        self.number
    }

    /// Reads the next message, whose cursor counts as applied.
    pub async fn next(&mut self) -> Result<Event, Status> {
        Ok(self.next_response().await?.event.unwrap())
    }

    /// Reads the next message, whose cursor counts as applied, and returns it as it is.
    pub async fn next_response(&mut self) -> Result<WatchResponse, Status> {
        let next = timeout(PATIENCE, self.responses.message()).await.expect("no message came");
        let response = next?.expect("the stream has ended");
        if !response.cursor.is_empty() {
            self.cursor.clone_from(&response.cursor);
        }
        Ok(response)
    }

    /// Reads up to the end of the snapshot, or of what came after the cursor.
    pub async fn snapshot(&mut self) -> Result<Snapshot, Status> {
        let mut snapshot = Snapshot::default();
        self.cursor.clear();
        while self.cursor.is_empty() {
            match self.next().await? {
                Event::Reset(_) => snapshot = Snapshot { is_reset: true, ..Snapshot::default() },
                Event::Keys(keys) => snapshot.jwks = keys.jwks,
                Event::Revocations(more) => {
                    snapshot.revocations.ids.extend(more.ids);
                    snapshot.revocations.sessions.extend(more.sessions);
                }
                Event::Rules(_) => {}
                Event::Lease(lease) => panic!("{lease:?} came before the end of the snapshot"),
            }
        }
        Ok(snapshot)
    }

    /// Renews until there is a lease, and returns it.
    pub async fn lease(&mut self) -> WatchLease {
        let number = self.renew();
        loop {
            match self.next().await.unwrap() {
                Event::Lease(lease) if lease.number == number => return lease,
                Event::Reset(_) => panic!("the stream was reset"),
                _ => {}
            }
        }
    }

    /// Reads the next revocations, past leases, rules and keys.
    pub async fn revocations(&mut self) -> WatchRevocations {
        loop {
            if let Event::Revocations(revocations) = self.next().await.unwrap() {
                return revocations;
            }
        }
    }
}
