//! What the replicas on one database share: a register of them, and the question that each asks
//! again and again, by which it proves that it is there and learns what was revoked. See
//! `docs/decisions/0009-the-lease-protocol.md`.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{FeedEntry, StoreError, ring::SealedRing};
use crate::domain::{
    ids::Incarnation,
    key::RingVersion,
    revocation::{FeedPosition, Seq, Timeline},
    time::Timestamp,
};

/// A process that is about to serve.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Drawn anew by each process, and whenever it joins again.
    pub incarnation: Incarnation,
    /// Its name in the configuration, for people.
    pub name: String,
    /// Where it listens for gRPC, for people.
    pub address: String,
    /// Of the service, for people.
    pub version: &'static str,
    /// How long others wait for it before they count it as gone.
    pub max_validity: Duration,
}

/// What a replica says of itself when it renews its row, and from where on it wants to read.
#[derive(Clone, Copy, Debug)]
pub struct RenewalRequest {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// One more than the last number that was sent.
    pub number: i64,
    /// The last number that was confirmed.
    pub confirmed: i64,
    /// It accepts nothing that was revoked up to here.
    pub applied: Seq,
    /// It has read the feed up to here.
    pub after: Seq,
    /// Most entries to be read.
    pub limit: i64,
    /// How long the database may take to answer.
    pub patience: Duration,
}

/// What came of a renewal that the database has confirmed.
#[derive(Clone, Debug)]
pub enum RenewalOutcome {
    /// The row is gone, or is an older one: this life is over.
    Gone,
    /// All of it out of one snapshot.
    Answer(Answer),
}

/// What the database answers to a renewal.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which database this is.
    pub database: Uuid,
    /// The last position given out in the feed.
    pub head: FeedPosition,
    /// The history in which the register is known to be complete.
    pub settled: Timeline,
    /// What comes next in the feed.
    pub entries: Vec<FeedEntry>,
    /// How often the keys have been changed.
    pub ring: RingVersion,
    /// The latest expiry of an entry that was ever deleted.
    pub forgotten_until: Timestamp,
    /// The time by the database's clock; none if that is ours.
    pub now: Option<Timestamp>,
    /// The other replicas.
    pub others: Vec<Other>,
}

/// What a replica knows of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// It accepts nothing that was revoked up to here.
    pub applied: Seq,
    /// The number of its last renewal.
    pub renewals: i64,
    /// What it did up to now may hold for this long.
    pub max_validity: Duration,
}

/// A row of the register, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its name in the configuration.
    pub name: String,
    /// Where it listens for gRPC; empty if it is of an older version.
    pub address: String,
    /// Of the service.
    pub version: String,
    /// When it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// How long ago it last renewed its row, by the clock of the database.
    pub renewed_ago: Duration,
    /// The number of its last renewal.
    pub renewals: i64,
    /// Up to where it has applied the feed.
    pub applied: Seq,
    /// What it did up to now may hold for this long.
    pub max_validity: Duration,
}

impl Member {
    /// Returns whether the others still count on it. Else they remove it, if there are any.
    pub fn is_live(&self) -> bool {
        self.renewed_ago <= self.max_validity
    }
}

/// Why a replica serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormerState {
    /// It stopped in good order.
    Left,
    /// Another one removed it, because it had gone without a word.
    Removed,
}

impl FormerState {
    /// The name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Removed => "removed",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Left, Self::Removed].into_iter().find(|state| state.as_str() == name)
    }
}

/// A replica that serves no more, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerReplica {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its name in the configuration.
    pub name: String,
    /// Where it listened for gRPC; empty if it was of an older version.
    pub address: String,
    /// Of the service.
    pub version: String,
    /// Why it serves no more.
    pub state: FormerState,
    /// When it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// When it left or was removed, by the clock of the database.
    pub ended_at: Timestamp,
    /// Up to where it had reported to have applied the feed.
    pub applied: Seq,
}

/// For how long a replica is listed that serves no more.
pub const FORMER_REPLICA_RETENTION: Duration = Duration::from_secs(86_400);
/// How many are listed at most, the latest of all.
pub const MOST_FORMER_REPLICAS: i64 = 100;
/// And how many of one name, so that one that starts again and again displaces no other.
pub const MOST_FORMER_REPLICAS_OF_A_NAME: i64 = 10;

/// The register at one instant, for people.
#[derive(Clone, Debug)]
pub struct Register {
    /// Who serves, the oldest first.
    pub members: Vec<Member>,
    /// Who served during the last day, those that ended last first.
    pub former: Vec<FormerReplica>,
    /// The last position given out in the feed.
    pub head: FeedPosition,
    /// The history in which the register is known to be complete.
    pub settled: Timeline,
}

impl Register {
    /// How many entries of the feed a member has yet to report.
    pub fn lag(&self, member: &Member) -> i64 {
        self.head.seq.0.saturating_sub(member.applied.0)
    }

    /// Returns whether all who may have a lease are listed. After a failover that takes a while.
    pub fn is_settled(&self) -> bool {
        self.settled == self.head.timeline
    }
}

/// Asks the database, over a connection of its own.
#[async_trait]
pub trait RenewalClient: Send {
    /// Renews a row by a write that is as durable as any, and reads on in the feed. An error may
    /// mean that it was renewed.
    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome, StoreError>;

    /// Reads all keys from where the last renewal was answered. The database may take this long.
    async fn ring(&mut self, patience: Duration) -> Result<SealedRing, StoreError>;
}

/// Who serves from the database. Each method is one transaction.
#[async_trait]
pub trait Members: Send + Sync {
    /// Enters a replica, as one that has applied all there is, and returns up to where that is: it
    /// must accept nothing before it has.
    async fn join(&self, newcomer: Newcomer) -> Result<Seq, StoreError>;

    /// All there is.
    async fn register(&self) -> Result<Register, StoreError>;

    /// Removes a replica, unless it has renewed its row since this renewal. It is listed as removed
    /// for a while.
    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError>;

    /// Records that the register is complete again in a new history, if nobody else has yet.
    async fn settle(&self, before: Timeline, now: Timeline) -> Result<(), StoreError>;

    /// Removes a replica that has stopped serving. It is listed as left for a while.
    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError>;

    /// Deletes the replicas that are not listed any more. Returns how many there were.
    async fn delete_former_replicas(&self) -> Result<usize, StoreError>;
}
