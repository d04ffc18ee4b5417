//! Watch: tells a process everything that it needs to verify access tokens itself, and gives it
//! leases (decision 34).

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Authority, Settings, error::AuthorityError};
use crate::{
    domain::{
        caller::{Actor, Reach},
        ids::Incarnation,
        revocation::{RETENTION_MARGIN, Revoked, Seq},
        time::Timestamp,
    },
    keys::ring::KeyRing,
    revocation::{
        index::{Snapshot, revoked_id},
        watchers::{Given, NotOpened, Part, Place, ReadLease, Watcher},
    },
    store::FeedEntry,
};

pub use crate::revocation::published::Batch;

/// The number of revocations in a message.
const PAGE: usize = 2_000;

/// The size of a cursor in bytes.
const CURSOR_BYTES: usize = 32;

/// A message to a watcher.
#[derive(Clone, Debug)]
pub struct Message {
    /// The place after the message; none within a snapshot.
    pub cursor: Option<Cursor>,
    /// The content.
    pub event: Event,
}

/// The content of a message.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything that was sent before is void.
    Reset,
    /// The rules for tokens.
    Rules(Rules),
    /// The keys.
    Keys {
        /// The keys whose tokens are accepted, as a JWK set in JSON.
        jwks: String,
        /// The names of revoked keys.
        revoked: Vec<String>,
    },
    /// Revocations, each with the instant at which the last token that it stops has expired.
    Revocations(Vec<(Revoked, Timestamp)>),
    /// All revocations of these batches.
    Batches(Vec<Arc<Batch>>),
    /// A lease.
    Lease {
        /// The number of the renewal that asked for it.
        number: u64,
        /// The time for which it is valid.
        valid_for: Duration,
        /// Tokens that expire up to this instant count as expired.
        expired_up_to: Timestamp,
        /// The time of this service.
        now: Timestamp,
    },
}

/// The rules for tokens that a watcher may accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The only issuer that is accepted.
    pub issuer: String,
    /// The longest lifetime of a token.
    pub max_lifetime: Duration,
    /// The time by which `iat` and `nbf` may be ahead.
    pub leeway: Duration,
    /// The tenants and audiences that the caller is limited to.
    pub reach: Arc<Reach>,
    /// `lease.margin`.
    pub lease_margin: Duration,
}

/// A place in the stream of revocations, as a watcher keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    place: Place,
    /// The tenants that the caller was limited to: a watcher that may accept tokens of other
    /// tenants needs the earlier revocations of those, too.
    tenants: u64,
}

impl Cursor {
    /// Returns the bytes: the membership of the replica, the mark of the tenants, and the position;
    /// numbers are big-endian.
    pub fn bytes(&self) -> [u8; CURSOR_BYTES] {
        let mut bytes = [0; CURSOR_BYTES];
        let (membership, numbers) = bytes.split_at_mut(16);
        let (tenants, position) = numbers.split_at_mut(8);
        membership.copy_from_slice(self.place.membership.bytes());
        tenants.copy_from_slice(&self.tenants.to_be_bytes());
        position.copy_from_slice(&self.place.position.0.to_be_bytes());
        bytes
    }

    /// Reads the bytes of a cursor; `None` if they are malformed.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (membership, numbers) = bytes.split_first_chunk::<16>()?;
        let (tenants, position) = numbers.split_first_chunk::<8>()?;
        let position = Seq(i64::from_be_bytes(position.try_into().ok()?));
        let place = Place { membership: Incarnation::from_bytes(*membership), position };
        Some(Self { place, tenants: u64::from_be_bytes(*tenants) })
    }
}

/// A snapshot of which a part has been sent.
struct Reading {
    place: Place,
    snapshot: Arc<Snapshot>,
    /// The number of identifiers that were looked at.
    ids: usize,
    /// The number of cut-offs that were looked at.
    cut_offs: usize,
}

/// The rules and the keys that a watcher has been sent.
struct Sent {
    /// The settings from which the rules were made.
    settings: Arc<Settings>,
    rules: Rules,
    ring: Arc<KeyRing>,
}

/// The stream of a watcher.
pub struct Watch {
    authority: Arc<Authority>,
    reach: Arc<Reach>,
    /// The mark of the tenants in `reach`.
    tenants: u64,
    watcher: Watcher,
    /// Messages that are sent before anything else.
    queue: VecDeque<Message>,
    reading: Option<Reading>,
    /// The rules and the keys that were sent last.
    sent: Option<Sent>,
    /// The number of the last renewal.
    last_number: Option<u64>,
    /// The instant until which no further entries are sent, see [`Watcher::pace`].
    paced_until: Instant,
    /// The renewal that is to be answered by a lease.
    renewal: Option<(u64, ReadLease)>,
}

impl Authority {
    /// Opens the stream of a watcher, which goes on after `cursor` if possible.
    pub async fn watch(
        self: &Arc<Self>,
        by: &Actor,
        cursor: Option<Cursor>,
    ) -> Result<Watch, AuthorityError> {
        let watchers = self.replica.watchers();
        let tenants = mark(by.reach());
        let cursor = cursor.filter(|cursor| cursor.tenants == tenants);
        let watcher =
            watchers.open(cursor.map(|cursor| cursor.place)).map_err(|error| match error {
                NotOpened::TooMany => {
                    AuthorityError::TooManyWatchers { limit: watchers.max_watchers() }
                }
                NotOpened::Stopped => AuthorityError::NotCurrent,
            })?;
        let recorded = self
            .watched
            .get_or_try_init(async || self.store.begin_watching(watchers.longest_validity()).await);
        recorded.await?;
        Ok(Watch {
            authority: self.clone(),
            reach: by.reach().clone(),
            tenants,
            watcher,
            queue: VecDeque::new(),
            reading: None,
            sent: None,
            last_number: None,
            paced_until: Instant::now(),
            renewal: None,
        })
    }
}

impl Watch {
    /// Takes a renewal: a confirmation, and the wish for a lease.
    pub fn renew(&mut self, number: u64, applied: Option<Cursor>) -> Result<(), AuthorityError> {
        if self.last_number.is_some_and(|last| number <= last) {
            let problem = "must be greater than that of the renewal before it";
            return Err(AuthorityError::field("renewal.number", problem));
        }
        self.last_number = Some(number);
        if applied.is_some_and(|cursor| !self.watcher.confirm(cursor.place)) {
            return Err(AuthorityError::NotSent);
        }
        let replica = &self.authority.replica;
        // The lease of this replica is read before the entries are sent that precede the lease of
        // the watcher (rule 1).
        self.renewal = replica.watchers().read_lease(replica.lease()).map(|read| (number, read));
        Ok(())
    }

    /// Returns the next message, once there is one. No message is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Message, AuthorityError> {
        loop {
            if let Some(message) = self.queue.pop_front() {
                return Ok(message);
            }
            if let Some(message) = self.next_page() {
                return Ok(message);
            }
            // A lease waits, too, because the entries must be sent before it.
            if self.watcher.is_behind() && Instant::now() < self.paced_until {
                sleep_until(self.paced_until).await;
            }
            match self.watcher.next_part() {
                Part::Stopped => return Err(AuthorityError::NotCurrent),
                Part::TooSlow => {
                    self.authority.replica.watchers().counts().too_slow.inc();
                    return Err(AuthorityError::WatcherTooSlow);
                }
                Part::Loading => self.watcher.changed().await,
                Part::Reset => self.begin_snapshot().await,
                Part::Entries(batches, place) => {
                    self.paced_until = Instant::now() + self.watcher.pace();
                    self.queue_changes();
                    self.queue_entries(batches, place);
                }
                Part::UpToDate => {
                    self.queue_changes();
                    if self.queue.is_empty() && !self.queue_lease() {
                        self.watcher.changed().await;
                    }
                }
            }
        }
    }

    async fn begin_snapshot(&mut self) {
        let Some((place, snapshot)) = self.authority.replica.snapshot().await else { return };
        if !self.watcher.begin(place) {
            return;
        }
        self.queue.push_back(Message { cursor: None, event: Event::Reset });
        self.sent = None;
        self.queue_changes();
        self.reading = Some(Reading { place, snapshot, ids: 0, cut_offs: 0 });
    }

    /// Returns the next page of the snapshot, if one is being sent. The last page has the cursor.
    fn next_page(&mut self) -> Option<Message> {
        let Reading { place, snapshot, ids, cut_offs } = self.reading.as_mut()?;
        let index = self.authority.replica.index();
        let marks: Option<Vec<_>> = self
            .reach
            .tenants
            .as_ref()
            .map(|tenants| tenants.iter().map(|tenant| index.tenant_mark(tenant)).collect());
        let mut revocations = vec![];
        for (id, mark, expires_at) in snapshot.ids.iter().skip(*ids) {
            *ids += 1;
            if marks.as_ref().is_none_or(|marks| marks.contains(mark)) {
                revocations.push((revoked_id(*id), token_expiry(*expires_at)));
            }
            if revocations.len() == PAGE {
                break;
            }
        }
        let room = PAGE - revocations.len();
        for (revoked, expires_at) in snapshot.cut_offs.iter().skip(*cut_offs).take(room) {
            *cut_offs += 1;
            let tenant = revoked.cut_off_tenant();
            if tenant.is_none_or(|tenant| self.reach.has_tenant(tenant)) {
                revocations.push((revoked.clone(), token_expiry(*expires_at)));
            }
        }
        let is_last = *ids == snapshot.ids.len() && *cut_offs == snapshot.cut_offs.len();
        let cursor = is_last.then_some(Cursor { place: *place, tenants: self.tenants });
        if is_last {
            self.reading = None;
        }
        Some(Message { cursor, event: Event::Revocations(revocations) })
    }

    /// Queues the rules and the keys, if they have changed. The keys are as new as the entries that
    /// were published before this call.
    fn queue_changes(&mut self) {
        let (settings, ring) = (self.authority.settings.load(), self.authority.keeper.ring());
        let sent = self.sent.as_ref();
        let has_new_keys = sent.is_none_or(|sent| !Arc::ptr_eq(&sent.ring, &ring));
        // This runs for each message, so the rules are made only from other settings.
        if !has_new_keys && sent.is_some_and(|sent| Arc::ptr_eq(&sent.settings, &settings)) {
            return;
        }
        let rules = self.rules(&settings);
        if sent.is_none_or(|sent| sent.rules != rules) {
            self.queue.push_back(Message { cursor: None, event: Event::Rules(rules.clone()) });
        }
        if has_new_keys {
            let jwks = ring.jwks().json.clone();
            let revoked = ring.revoked_signing_keys().map(str::to_owned).collect();
            self.queue.push_back(Message { cursor: None, event: Event::Keys { jwks, revoked } });
        }
        let (settings, ring) = (Arc::clone(&settings), Arc::clone(&ring));
        self.sent = Some(Sent { settings, rules, ring });
    }

    fn rules(&self, settings: &Settings) -> Rules {
        Rules {
            issuer: settings.issuer.clone(),
            max_lifetime: settings.max_access_token_ttl,
            leeway: settings.clock_tolerance().most_ahead(),
            reach: self.reach.clone(),
            lease_margin: self.authority.replica.watchers().margin(),
        }
    }

    /// Queues entries of the feed that the caller may get. The last message has the cursor.
    fn queue_entries(&mut self, batches: Vec<Arc<Batch>>, place: Place) {
        let cursor = Some(Cursor { place, tenants: self.tenants });
        let entries: usize = batches.iter().map(|batch| batch.entries.len()).sum();
        if self.reach.tenants.is_none() && entries <= PAGE {
            self.queue.push_back(Message { cursor, event: Event::Batches(batches) });
            return;
        }
        let mut page = vec![];
        let entries = batches.iter().flat_map(|batch| &batch.entries).filter(|entry| {
            entry.tenant.as_ref().is_none_or(|tenant| self.reach.has_tenant(tenant))
        });
        for entry in entries {
            if page.len() == PAGE {
                let event = Event::Revocations(mem::take(&mut page));
                self.queue.push_back(Message { cursor: None, event });
            }
            page.push(revocation(entry));
        }
        self.queue.push_back(Message { cursor, event: Event::Revocations(page) });
    }

    /// Queues the lease that the last renewal asked for. Returns false if there is nothing to do
    /// until something changes.
    fn queue_lease(&mut self) -> bool {
        let Some((number, read)) = self.renewal.take() else { return false };
        match self.watcher.give_lease(read) {
            Given::Lease(valid_for) => {
                let watermark = self.authority.replica.index().purge_watermark();
                let event = Event::Lease {
                    number,
                    valid_for,
                    expired_up_to: token_expiry(watermark),
                    now: self.authority.clock.now(),
                };
                self.queue.push_back(Message { cursor: None, event });
                true
            }
            // More must be sent first.
            Given::Behind => {
                self.renewal = Some((number, read));
                true
            }
            Given::Refused => false,
        }
    }
}

/// Returns a mark of the tenants that a caller is limited to, which differs for other tenants.
fn mark(reach: &Reach) -> u64 {
    let mut hasher = DefaultHasher::new();
    reach.tenants.hash(&mut hasher);
    hasher.finish()
}

/// Returns the revocation of an entry, and the instant at which the last token that it stops has
/// expired.
pub fn revocation(entry: &FeedEntry) -> (Revoked, Timestamp) {
    (entry.revoked.clone(), token_expiry(entry.expires_at))
}

/// Converts the expiry of a blacklist entry to that of the last token that the entry stops. Both
/// are whole seconds, because tokens expire at whole seconds.
fn token_expiry(entry_expires_at: Timestamp) -> Timestamp {
    let expiry = Timestamp::from_seconds(entry_expires_at.seconds()).minus(RETENTION_MARGIN);
    // No token expires before 1970, and before the first sweep the watermark is much earlier.
    expiry.max(Timestamp::from_seconds(0))
}
