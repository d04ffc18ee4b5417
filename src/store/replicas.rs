//! The register of the replicas of one database, and the renewal. Each replica sends renewals again
//! and again, to show that it still runs and to learn which tokens were revoked. See
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

/// A process that is about to join the replicas.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// The random identifier of the membership. The process has a new one each time it joins.
    pub incarnation: Incarnation,
    /// The name of the replica in the configuration, for display.
    pub name: String,
    /// The address at which it listens for gRPC, for display.
    pub address: String,
    /// The version of the service, for display.
    pub version: &'static str,
    /// The time for which the other replicas wait for a renewal of this one before they remove it.
    pub max_validity: Duration,
}

/// The report of a replica on itself, with which it renews its row, and the part of the feed that
/// it wants to read.
#[derive(Clone, Copy, Debug)]
pub struct RenewalRequest {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The number of this renewal: one more than the number of the last renewal that was sent.
    pub number: i64,
    /// The number of the last renewal that was confirmed.
    pub confirmed: i64,
    /// The position up to which the replica has applied the feed: it accepts nothing that was
    /// revoked up to there, and neither do its watchers.
    pub applied: Seq,
    /// The number of its watchers.
    pub watchers: i64,
    /// The position up to which the replica has read the feed.
    pub after: Seq,
    /// The largest number of entries to be read.
    pub limit: i64,
    /// The time within which the database must answer.
    pub timeout: Duration,
}

/// The outcome of a renewal that the database has confirmed.
#[derive(Clone, Debug)]
pub enum RenewalOutcome {
    /// The row of the replica is gone, or is not the one that the replica last renewed, so this
    /// membership is over.
    Gone,
    /// The answer, all of it read from one snapshot of the database.
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
    /// The time of the database's clock; none if the database has no clock but this machine's.
    pub now: Option<Timestamp>,
    /// The other replicas.
    pub others: Vec<Other>,
}

/// The state of another replica, as its row shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The position up to which the replica has applied the feed: it accepts nothing that was
    /// revoked up to there.
    pub applied: Seq,
    /// The number of the replica's last renewal.
    pub renewals: i64,
    /// The longest time for which any lease that the replica has asked for so far may be valid.
    pub max_validity: Duration,
}

/// A row of the register, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The incarnation of the replica.
    pub incarnation: Incarnation,
    /// The name of the replica in the configuration.
    pub name: String,
    /// The address at which it listens for gRPC; empty if an older version of the service, which
    /// does not report one, runs there.
    pub address: String,
    /// The version of the service.
    pub version: String,
    /// The instant at which it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// The time since it last renewed its row, by the clock of the database.
    pub renewed_ago: Duration,
    /// The number of the replica's last renewal.
    pub renewals: i64,
    /// The position up to which the replica has applied the feed.
    pub applied: Seq,
    /// The number of processes that verify tokens themselves under its leases.
    pub watchers: i64,
    /// The longest time for which any lease that the replica has asked for so far may be valid.
    pub max_validity: Duration,
}

impl Member {
    /// Returns whether the other replicas still wait for this one. Once they do not, any of them
    /// removes it.
    pub fn is_live(&self) -> bool {
        self.renewed_ago <= self.max_validity
    }
}

/// The reason why a replica no longer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormerState {
    /// The replica left the register when it stopped.
    Left,
    /// Another replica removed this one, because it had not renewed its row.
    Removed,
}

impl FormerState {
    /// Returns the name under which the state is stored.
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
    /// The address at which it listened for gRPC; empty if an older version of the service ran
    /// there.
    pub address: String,
    /// The version of the service.
    pub version: String,
    /// The reason why it no longer serves.
    pub state: FormerState,
    /// The instant at which it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// The instant at which it left or was removed, by the clock of the database.
    pub ended_at: Timestamp,
    /// The last position up to which it reported that it had applied the feed.
    pub applied: Seq,
}

/// The time for which a replica that no longer serves is listed.
pub const FORMER_REPLICA_RETENTION: Duration = Duration::from_secs(86_400);
/// The largest number of former replicas that are listed. Those that stopped last are kept.
pub const MOST_FORMER_REPLICAS: i64 = 100;
/// The largest number of former replicas with the same name that are listed, so that a replica that
/// starts again and again does not displace the others.
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
    /// Returns the number of feed positions that a member has not yet reported as applied.
    pub fn lag(&self, member: &Member) -> i64 {
        self.head.seq.0.saturating_sub(member.applied.0)
    }

    /// Returns whether every process that may have a lease is listed. After a failover this takes a
    /// while to become true.
    pub fn is_settled(&self) -> bool {
        self.settled == self.head.timeline
    }
}

/// Sends renewals to the database, over a connection of its own.
#[async_trait]
pub trait RenewalClient: Send {
    /// Adds a replica to the register, as one that has applied the whole feed, and returns the head
    /// of the feed. The replica must not accept any token before it has applied the feed up to
    /// there. The database must answer within `timeout`.
    ///
    /// The renewals that follow go over the same connection, and so to the same server. If the
    /// first renewal had to make a connection, it might take so long that the other replicas remove
    /// the newcomer.
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq, StoreError>;

    /// Renews the replica's row, with the same durability as any other write, and reads the next
    /// entries of the feed. After an error, the row may have been renewed all the same.
    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome, StoreError>;

    /// Reads all keys from the server that answered the last renewal. The server must answer within
    /// `timeout`.
    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing, StoreError>;
}

/// The register of the replicas that serve from a database.
#[async_trait]
pub trait Members: Send + Sync {
    /// Reads the register.
    async fn register(&self) -> Result<Register, StoreError>;

    /// Removes a replica, unless it has renewed its row since the renewal with the number
    /// `renewals`. Returns whether it was removed. For a while, the register lists it as removed.
    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError>;

    /// Records that the register is complete in the timeline `now`, unless another replica has done
    /// so. Until now it was known to be complete in the timeline `before`.
    async fn settle(&self, before: Timeline, now: Timeline) -> Result<(), StoreError>;

    /// Removes a replica that has stopped serving. For a while, the register lists it as one that
    /// left.
    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError>;

    /// Deletes the former replicas that are not listed any more, and returns their number.
    async fn delete_former_replicas(&self) -> Result<usize, StoreError>;
}
