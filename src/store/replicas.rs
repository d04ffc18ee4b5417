//! The register of the replicas on one database, and the renewal, which each of them sends again
//! and again to show that it is there and to learn what was revoked. See
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
    /// The random identifier of the process, a new one whenever it joins.
    pub incarnation: Incarnation,
    /// The name of the replica in the configuration, for display.
    pub name: String,
    /// The address at which it listens for gRPC, for display.
    pub address: String,
    /// The version of the service, for display.
    pub version: &'static str,
    /// The time for which others wait for it before they remove it.
    pub max_validity: Duration,
}

/// A replica's report on itself when it renews its row, and what it wants to read of the feed.
#[derive(Clone, Copy, Debug)]
pub struct RenewalRequest {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The number of this renewal: one more than the last that was sent.
    pub number: i64,
    /// The number of the last renewal that was confirmed.
    pub confirmed: i64,
    /// The position up to which it has applied the feed: it accepts nothing that was revoked up to
    /// there.
    pub applied: Seq,
    /// The position up to which it has read the feed.
    pub after: Seq,
    /// The largest number of entries to be read.
    pub limit: i64,
    /// The time within which the database must answer.
    pub timeout: Duration,
}

/// The outcome of a renewal that the database has confirmed.
#[derive(Clone, Debug)]
pub enum RenewalOutcome {
    /// The row is gone, or is an older one, so this membership is over.
    Gone,
    /// The answer, all of it from one snapshot.
    Answer(Answer),
}

/// The answer of the database to a renewal.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The identifier of the database.
    pub database: Uuid,
    /// The last position given out in the feed.
    pub head: FeedPosition,
    /// The timeline in which the register is known to be complete.
    pub settled: Timeline,
    /// The next entries of the feed.
    pub entries: Vec<FeedEntry>,
    /// The number of changes of the keys.
    pub ring: RingVersion,
    /// The purge watermark: the latest expiry of an entry that was ever deleted.
    pub purge_watermark: Timestamp,
    /// The time by the database's clock; none if that is this machine's clock.
    pub now: Option<Timestamp>,
    /// The other replicas.
    pub others: Vec<Other>,
}

/// The state of another replica, as far as this one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The position up to which it has applied the feed: it accepts nothing that was revoked up to
    /// there.
    pub applied: Seq,
    /// The number of its last renewal.
    pub renewals: i64,
    /// The longest time for which a lease that it has asked for by now may be valid.
    pub max_validity: Duration,
}

/// A row of the register, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The name of the replica in the configuration.
    pub name: String,
    /// The address at which it listens for gRPC; empty if it is of an older version.
    pub address: String,
    /// The version of the service.
    pub version: String,
    /// The instant at which it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// The time since it last renewed its row, by the clock of the database.
    pub renewed_ago: Duration,
    /// The number of its last renewal.
    pub renewals: i64,
    /// The position up to which it has applied the feed.
    pub applied: Seq,
    /// The longest time for which a lease that it has asked for by now may be valid.
    pub max_validity: Duration,
}

impl Member {
    /// Returns whether the other replicas still wait for it. Otherwise they remove it, if there are
    /// any.
    pub fn is_live(&self) -> bool {
        self.renewed_ago <= self.max_validity
    }
}

/// The reason why a replica no longer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormerState {
    /// The replica stopped in good order.
    Left,
    /// Another replica removed it, because it had not renewed its row.
    Removed,
}

impl FormerState {
    /// Returns the name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Removed => "removed",
        }
    }

    /// Returns the state with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Left, Self::Removed].into_iter().find(|state| state.as_str() == name)
    }
}

/// A replica that no longer serves, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerReplica {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The name of the replica in the configuration.
    pub name: String,
    /// The address at which it listened for gRPC; empty if it was of an older version.
    pub address: String,
    /// The version of the service.
    pub version: String,
    /// The reason why it no longer serves.
    pub state: FormerState,
    /// The instant at which it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// The instant at which it left or was removed, by the clock of the database.
    pub ended_at: Timestamp,
    /// The position up to which it had reported to have applied the feed.
    pub applied: Seq,
}

/// The time for which a replica is listed that no longer serves.
pub const FORMER_REPLICA_RETENTION: Duration = Duration::from_secs(86_400);
/// The largest number of such replicas that are listed, the latest of all.
pub const MOST_FORMER_REPLICAS: i64 = 100;
/// The largest number of those with one name, so that a replica that starts again and again
/// displaces no other.
pub const MOST_FORMER_REPLICAS_OF_A_NAME: i64 = 10;

/// The register at one instant, for display.
#[derive(Clone, Debug)]
pub struct Register {
    /// The replicas that serve, the oldest first.
    pub members: Vec<Member>,
    /// The replicas that stopped serving during the last day, the latest first.
    pub former: Vec<FormerReplica>,
    /// The last position given out in the feed.
    pub head: FeedPosition,
    /// The timeline in which the register is known to be complete.
    pub settled: Timeline,
}

impl Register {
    /// Returns the number of positions of the feed that a member has yet to report.
    pub fn lag(&self, member: &Member) -> i64 {
        self.head.seq.0.saturating_sub(member.applied.0)
    }

    /// Returns whether every process that may have a lease is listed. After a failover it takes a
    /// while until this is so.
    pub fn is_settled(&self) -> bool {
        self.settled == self.head.timeline
    }
}

/// Sends renewals to the database, over a connection of its own.
#[async_trait]
pub trait RenewalClient: Send {
    /// Adds a replica, as one that has applied the whole feed, and returns the head of the feed.
    /// The replica must accept nothing before it has applied the feed up to there. The database
    /// must answer within `timeout`.
    ///
    /// The renewals that follow go over the same connection, and so to the same server. The others
    /// remove a replica whose first renewal takes too long, as making a connection may.
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq, StoreError>;

    /// Renews a row by a write that is as durable as any, and reads the next entries of the feed.
    /// After an error, the row may have been renewed all the same.
    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome, StoreError>;

    /// Reads all keys from the server that answered the last renewal. It must answer within
    /// `timeout`.
    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing, StoreError>;
}

/// The register of the replicas that serve from a database. Each method is one transaction.
#[async_trait]
pub trait Members: Send + Sync {
    /// Reads the register.
    async fn register(&self) -> Result<Register, StoreError>;

    /// Removes a replica, unless it has renewed its row since this renewal. Returns whether it was
    /// removed. It is listed as removed for a while.
    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError>;

    /// Records that the register is complete in a new timeline, unless another replica has done so.
    async fn settle(&self, before: Timeline, now: Timeline) -> Result<(), StoreError>;

    /// Removes a replica that has stopped serving. It is listed as left for a while.
    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError>;

    /// Deletes the former replicas that are not listed any more, and returns their number.
    async fn delete_former_replicas(&self) -> Result<usize, StoreError>;
}
