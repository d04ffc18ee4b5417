//! The background task of a local verifier. It calls Watch, applies what it is sent, and renews the
//! lease. The numbers of rules refer to decision 34 of the service.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use countersign_verification::{lease::Start, revocation::RETENTION_MARGIN, time::Timestamp};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    KeySet, Local, LocalCopy,
    revocations::{NotUnderstood, duration, entries, rules, timestamp},
};
use crate::{
    Client, Error, Reason,
    proto::{
        WatchKeys, WatchLease, WatchRenewal, WatchRequest, WatchResponse, WatchRevocations,
        WatchRules, WatchStart, watch_request::Message, watch_response::Event,
    },
};

/// The length of a lease before the first one has told it.
const USUAL_LEASE: Duration = Duration::from_secs(2);
/// The number of renewals in the time of a lease.
const RENEWALS: u32 = 4;
/// The most renewals that wait for an answer.
const MAX_ASKED: usize = 64;
/// The longest pause between two streams that the service can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The largest difference between the clocks of the service and of this machine under which a lease
/// is taken.
const LARGEST_DIFFERENCE: Duration = Duration::from_secs(5);

/// The background task.
pub(super) struct Watching {
    client: Client,
    local: Arc<Local>,
    /// The copy in force.
    copy: Arc<LocalCopy>,
    /// The cursor that was last applied; empty within a snapshot.
    cursor: Vec<u8>,
    /// The start and the length of the last lease of the copy in force.
    lease: Option<(Start, Duration)>,
    /// The length of the last lease, which sets the pace of renewals.
    usual_lease: Duration,
    /// True if the last lease was not taken, because the clocks differ.
    is_clock_wrong: bool,
}

/// The reason for the end of a stream.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Status(#[from] Error),
    #[error("the service has ended the stream")]
    Finished,
    #[error("the stream has brought no lease for too long")]
    NoLease,
    #[error(transparent)]
    NotUnderstood(#[from] NotUnderstood),
    #[error("the service has sent a lease that was not asked for, or too early")]
    UnexpectedLease,
    #[error("the tenants of this caller have changed, so the revocations must be received anew")]
    OtherTenants,
}

/// The state of a stream.
#[derive(Default)]
struct StreamState {
    /// The number of the last renewal.
    number: u64,
    /// The renewals without an answer: their numbers, and the clocks before they were sent.
    waiting: VecDeque<(u64, Start)>,
    /// True if there was a lease on this stream.
    had_lease: bool,
    /// True if rules have arrived on this stream, and likewise keys. While there was no stream,
    /// both may have changed, so the first lease must come after them.
    has_rules: bool,
    has_keys: bool,
}

impl Watching {
    pub(super) fn new(client: Client, local: Arc<Local>) -> Self {
        Self {
            client,
            copy: local.copy(),
            local,
            cursor: vec![],
            lease: None,
            usual_lease: USUAL_LEASE,
            is_clock_wrong: false,
        }
    }

    /// Watches for ever. After the end of a stream another one is opened, if possible at another
    /// replica. Until then the lease goes on.
    pub(super) async fn run(mut self) {
        let mut delays = backoff();
        let mut failed = 0;
        loop {
            self.local.count_connection();
            let (ended, has_lease) = self.watch().await;
            if has_lease {
                (delays, failed) = (backoff(), 0);
            }
            failed += 1;
            let mut delay = delays.next().unwrap_or(USUAL_LEASE);
            if let Ended::Status(error) = &ended {
                if matches!(error.reason(), Reason::InvalidField | Reason::NotSent) {
                    // The service does not understand the cursor.
                    self.cursor.clear();
                }
                // The wait that a replica asks for is for itself, and others may have room.
                if failed >= self.client.replicas() {
                    let asked = error.retry_after().unwrap_or_default();
                    delay = delay.max(asked.min(LONGEST_PAUSE));
                }
            }
            tracing::warn!(error = %ended, ?delay, "the watch stream has ended: will call again");
            sleep(delay).await;
        }
    }

    /// Watches until the stream ends. Returns the reason, and whether there was a lease.
    async fn watch(&mut self) -> (Ended, bool) {
        let (requests, sent) = mpsc::channel(MAX_ASKED);
        let start = Message::Start(WatchStart { cursor: self.cursor.clone() });
        // The channel has room.
        let _ = requests.try_send(WatchRequest { message: Some(start) });
        match self.client.watch(ReceiverStream::new(sent)).await {
            Ok((responses, replica)) => {
                let mut stream = StreamState::default();
                let ended = self.follow(&requests, responses, &mut stream).await;
                self.client.avoid(replica);
                (ended, stream.had_lease)
            }
            Err(error) => (error.into(), false),
        }
    }

    /// Handles the messages one after the other (rule 10), and renews the lease.
    async fn follow(
        &mut self,
        requests: &mpsc::Sender<WatchRequest>,
        mut responses: Streaming<WatchResponse>,
        stream: &mut StreamState,
    ) -> Ended {
        let mut leased = Instant::now();
        let mut renew_at = leased + self.usual_lease / RENEWALS;
        loop {
            let give_up_at = leased + self.usual_lease.max(Duration::from_secs(1));
            tokio::select! {
                response = responses.message() => {
                    let response = match response {
                        Ok(Some(response)) => response,
                        Ok(None) => return Ended::Finished,
                        Err(status) => return Error::from(status).into(),
                    };
                    let is_lease = matches!(response.event, Some(Event::Lease(_)));
                    let is_news = match self.apply(stream, response) {
                        Ok(is_news) => is_news,
                        Err(ended) => return ended,
                    };
                    // A large snapshot takes a while.
                    if is_lease || self.cursor.is_empty() {
                        leased = Instant::now();
                    }
                    if !is_news {
                        continue;
                    }
                }
                () = sleep_until(renew_at) => {}
                () = sleep_until(give_up_at) => return Ended::NoLease,
            }
            self.renew(stream, requests);
            renew_at = Instant::now() + self.usual_lease / RENEWALS;
        }
    }

    /// Applies a message completely. Returns whether to renew the lease at once, because there is
    /// something new to confirm. After a message that cannot be understood there is no lease.
    fn apply(&mut self, stream: &mut StreamState, response: WatchResponse) -> Result<bool, Ended> {
        let applied = self.try_apply(stream, response);
        if applied.is_err() {
            self.end_lease();
        }
        applied
    }

    fn try_apply(
        &mut self,
        stream: &mut StreamState,
        response: WatchResponse,
    ) -> Result<bool, Ended> {
        match response.event.ok_or(NotUnderstood)? {
            Event::Reset(_) => self.reset(stream),
            Event::Rules(message) => self.take_rules(stream, message)?,
            Event::Keys(message) => self.take_keys(stream, message)?,
            Event::Revocations(message) => self.apply_revocations(message)?,
            Event::Lease(message) => self.take_lease(stream, message)?,
        }
        if response.cursor.is_empty() {
            return Ok(false);
        }
        self.cursor = response.cursor;
        Ok(true)
    }

    fn reset(&mut self, stream: &mut StreamState) {
        self.copy = self.local.reset();
        self.local.count_reset();
        self.cursor.clear();
        (self.lease, stream.has_rules, stream.has_keys) = (None, false, false);
    }

    fn take_rules(&mut self, stream: &mut StreamState, message: WatchRules) -> Result<(), Ended> {
        let rules = rules(message)?;
        // This process has only the revocations of the tenants that it could accept before.
        let has_revocations = !self.cursor.is_empty();
        if has_revocations && rules.reach.tenants != self.copy.rules().reach.tenants {
            return Err(Ended::OtherTenants);
        }
        self.replace(self.copy.keys().clone(), Arc::new(rules));
        stream.has_rules = true;
        Ok(())
    }

    fn take_keys(&mut self, stream: &mut StreamState, message: WatchKeys) -> Result<(), Ended> {
        let keys = KeySet::read(&message.jwks, message.revoked).ok_or(NotUnderstood)?;
        self.replace(Arc::new(keys), self.copy.rules().clone());
        stream.has_keys = true;
        Ok(())
    }

    /// Replaces the copy. The lease that this process has is good for the new copy too, which knows
    /// more. No later lease is good for the earlier copy (rule 11).
    fn replace(&mut self, keys: Arc<KeySet>, rules: Arc<super::Rules>) {
        self.copy = self.local.replace(keys, rules, self.lease);
    }

    fn apply_revocations(&self, message: WatchRevocations) -> Result<(), Ended> {
        for entry in entries(message) {
            self.copy.index.apply(&entry?);
        }
        Ok(())
    }

    fn take_lease(&mut self, stream: &mut StreamState, lease: WatchLease) -> Result<(), Ended> {
        let is_complete = stream.has_rules && stream.has_keys && !self.cursor.is_empty();
        let start = stream.answered(lease.number).filter(|_| is_complete);
        let start = start.ok_or(Ended::UnexpectedLease)?;
        let valid_for = duration(lease.valid_for)?;
        self.forget_expired(timestamp(lease.expired_up_to)?);
        let own = self.local.clock().now();
        let now = timestamp(lease.now)?;
        let is_clock_wrong = own.since(now).max(now.since(own)) > LARGEST_DIFFERENCE;
        if is_clock_wrong && !self.is_clock_wrong {
            tracing::error!(
                difference_ms = own.micros().saturating_sub(now.micros()) / 1000,
                "the clock of this machine, or that of the service, is wrong: no lease is taken"
            );
        }
        self.is_clock_wrong = is_clock_wrong;
        if is_clock_wrong {
            return Ok(());
        }
        self.local.take(&self.copy, start, valid_for);
        self.local.set_lag(self.copy.lease.uptime().saturating_sub(start.uptime));
        self.lease = Some((start, valid_for));
        self.usual_lease = valid_for.clamp(Duration::from_millis(200), 10 * USUAL_LEASE);
        stream.had_lease = true;
        Ok(())
    }

    /// Drops revocations whose tokens have all expired (rule 13). The watermark is raised first.
    fn forget_expired(&self, expired_up_to: Timestamp) {
        let index = self.copy.index.clone();
        let watermark = expired_up_to.plus(RETENTION_MARGIN);
        if watermark > index.purge_watermark() {
            index.raise_purge_watermark(watermark);
            // An index of a million entries takes a while.
            tokio::task::spawn_blocking(move || index.purge(watermark, &HashSet::new()));
        }
    }

    /// Asks for a lease, and confirms the cursor. The clocks are read first (rule 9).
    fn renew(&self, stream: &mut StreamState, requests: &mpsc::Sender<WatchRequest>) {
        let start = self.copy.lease.start();
        let number = stream.number + 1;
        let renewal = WatchRenewal { number, applied: self.cursor.clone() };
        let message = WatchRequest { message: Some(Message::Renewal(renewal)) };
        // If the connection takes no more, the next renewal will confirm the same.
        if requests.try_send(message).is_ok() {
            stream.add(number, start);
        }
    }

    /// Ends the lease, because the service has said something that this process cannot follow.
    fn end_lease(&mut self) {
        self.copy.lease.end();
        self.lease = None;
        // The next stream begins with a snapshot.
        self.cursor.clear();
    }
}

impl StreamState {
    /// Keeps the clocks of a renewal.
    fn add(&mut self, number: u64, start: Start) {
        self.number = number;
        if self.waiting.len() == MAX_ASKED {
            self.waiting.pop_front();
        }
        self.waiting.push_back((number, start));
    }

    /// Returns the clocks before this renewal was sent, and forgets it and those before.
    fn answered(&mut self, number: u64) -> Option<Start> {
        let place = self.waiting.iter().position(|(asked, _)| *asked == number)?;
        self.waiting.drain(..=place).next_back().map(|(_, start)| start)
    }
}

/// The delays between the ends of streams and further calls. Many watchers lose their streams at
/// the same time, so the delays are random.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(25))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
#[path = "watching_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "vectors_tests.rs"]
mod vectors;
