//! The register of the replicas that serve from one database. Each of its methods is one transaction.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::{ids::Incarnation, revocation::Seq, time::Timestamp};

/// A process that is about to serve.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Drawn anew by each process.
    pub incarnation: Incarnation,
    /// The name of its machine, for people.
    pub name: String,
    /// Of the service, for people.
    pub version: &'static str,
}

/// A replica as its row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The name of its machine.
    pub name: String,
    /// Of the service.
    pub version: String,
    /// When it joined, by the clock of the database.
    pub joined_at: Timestamp,
    /// When it last renewed its row, by the clock of the database.
    pub renewed_at: Timestamp,
    /// How often it did.
    pub renewals: i64,
    /// Up to where it has applied the feed.
    pub applied: Seq,
}

/// Who serves from the database.
#[async_trait]
pub trait Members: Send + Sync {
    /// Enters a replica that has applied nothing yet.
    async fn join(&self, newcomer: Newcomer) -> Result<(), StoreError>;

    /// Renews a replica's row, and returns the last place given out in the feed; none if the row is gone.
    async fn renew(&self, incarnation: Incarnation, applied: Seq) -> Result<Option<Seq>, StoreError>;

    /// All rows.
    async fn list(&self) -> Result<Vec<Member>, StoreError>;

    /// Removes a replica, unless it has renewed its row since it had renewed it this often.
    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError>;

    /// Removes a replica that has stopped serving.
    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError>;
}
