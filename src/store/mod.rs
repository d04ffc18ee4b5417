//! The contract between the use cases and a database. It uses only domain types.

pub mod audit_columns;
pub mod batch;
pub mod counts;
pub mod observed;
pub mod postgres;
pub mod replicas;
pub mod ring;
pub mod sizes;
pub mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use self::{
    counts::StoreCounts,
    replicas::{Members, RenewalClient},
    ring::{RingChange, SealedRing},
    sizes::Sizes,
};

use crate::domain::{
    audit::AuditEntry,
    change::{ChangeRefusal, SessionChange},
    cut_off::{CutOff, CutOffKey},
    ids::SessionId,
    key::RefreshKeyId,
    legacy_token::{LegacyToken, LegacyTokenHash},
    metadata::SessionMetadata,
    refresh::{RefreshAttempt, RefreshRefusal},
    revocation::{FeedPosition, Revocation, Seq},
    revoke::RevocationDecision,
    search::{AuditPlace, AuditQuery, Part, SessionQuery},
    session::{Ended, Session},
    text::{Subject, Tenant},
    time::Timestamp,
};
pub use crate::domain::{creation::Creation, cut_off_entry::CutOffEntry, revocation::FeedEntry};

/// An error of a method of [`Store`]. Unless the variant says otherwise, a write that failed with
/// it may have taken effect all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is full, or fails. The same call may succeed later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Too many writes are waiting. This one was not started.
    #[error("too many writes are waiting for the database")]
    Overloaded,
    /// A row contains a value that this service never writes.
    #[error("the database holds a damaged row: {0}")]
    Damaged(String),
    /// The database refused a statement. This is a bug.
    #[error("the database refused a statement: {0}")]
    Refused(String),
}

/// The outcome of a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// The session was created.
    New {
        /// The sessions that were evicted to make room for this one, if any.
        eviction: Option<Eviction>,
    },
    /// The same request was made before, and created this session.
    Repeated(Box<Session>),
    /// The request id was used before, by a different request or by another caller. Nothing
    /// changed.
    RequestIdReused,
    /// The refresh token of the other system stands for another session. Nothing changed.
    LegacyTokenTaken,
    /// The subject already has as many live sessions as its quota allows.
    QuotaExceeded,
    /// Sessions that were created up to an instant were revoked, and the identifier of the new
    /// session is not later than that instant. The creation needs a later identifier.
    Revoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
    /// Sessions whose user authenticated up to an instant were revoked, and the user of the new
    /// session authenticated no later.
    AuthenticationRevoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
}

/// Sessions that were ended so that their subject stays within its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The feed position of the last blacklist entry of these sessions.
    pub position: FeedPosition,
    /// The sessions, the oldest first.
    pub sessions: Vec<SessionId>,
}

impl Created {
    /// Returns the feed position of the last blacklist entry that the creation wrote.
    pub fn position(&self) -> Option<FeedPosition> {
        match self {
            Self::New { eviction } => eviction.as_ref().map(|eviction| eviction.position),
            Self::Repeated(_)
            | Self::RequestIdReused
            | Self::LegacyTokenTaken
            | Self::QuotaExceeded
            | Self::Revoked { .. }
            | Self::AuthenticationRevoked { .. } => None,
        }
    }
}

/// The outcome of an attempt to refresh.
#[derive(Clone, Debug, PartialEq)]
pub enum Refreshed {
    /// The session was rotated.
    Rotated {
        /// The session.
        session: Box<Session>,
        /// The feed position of the entry that revokes the previous access token, if the policy of
        /// the session asks for one.
        position: Option<FeedPosition>,
    },
    /// The caller gets the current refresh token once more. Nothing changed.
    Replayed {
        /// The session.
        session: Box<Session>,
        /// The head of the feed, if a refresh under the policy of the session revokes the previous
        /// access token: the blacklist entry of that token may not have reached every replica yet.
        position: Option<FeedPosition>,
    },
    /// The session was ended, for the reason in its row: the refresh token had been used before, or
    /// the session has expired by stricter limits that reach it now.
    Ended {
        /// The session.
        session: Box<Session>,
        /// The feed position of the blacklist entry of the session.
        position: FeedPosition,
    },
    /// The attempt was refused. Nothing changed.
    Refused(RefreshRefusal),
}

impl Refreshed {
    /// Returns the feed position of the last blacklist entry that the refresh wrote.
    pub fn position(&self) -> Option<FeedPosition> {
        match self {
            Self::Rotated { position, .. } => *position,
            Self::Ended { position, .. } => Some(*position),
            Self::Replayed { .. } | Self::Refused(_) => None,
        }
    }
}

/// The outcome of a change of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// The session has changed.
    Changed {
        /// The session.
        session: Box<Session>,
        /// The feed position of the entry that revokes the earlier access tokens, if there is one.
        position: Option<FeedPosition>,
    },
    /// The same request was made before, or changes nothing.
    Kept {
        /// The session.
        session: Box<Session>,
        /// The head of the feed, if the earlier request wrote a blacklist entry, which may not have
        /// reached every replica yet.
        position: Option<FeedPosition>,
    },
    /// The session was ended, for the reason in its row: the refresh token had been used before, or
    /// the session has expired by stricter limits that reach it now.
    Ended {
        /// The session.
        session: Box<Session>,
        /// The feed position of the blacklist entry of the session.
        position: FeedPosition,
    },
    /// The change was refused. Nothing changed.
    Refused(ChangeRefusal),
}

impl Changed {
    /// Returns the feed position of the last blacklist entry that the change wrote.
    pub fn position(&self) -> Option<FeedPosition> {
        match self {
            Self::Changed { position, .. } => *position,
            Self::Ended { position, .. } => Some(*position),
            Self::Kept { .. } | Self::Refused(_) => None,
        }
    }
}

/// The outcome of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationOutcome {
    /// True if there is such a session; always true for cut-offs.
    pub found: bool,
    /// True if nothing was done because there was no room for the entries.
    pub full: bool,
    /// True if an entry was written. If an entry for the same revocation existed already, it may
    /// have been written again, so that it gets a new position in the feed.
    pub wrote: bool,
    /// True if the revocation stops anything that was not stopped before: a session ended, there
    /// was no entry for the session or token yet, or a cut-off covers a session that it did not
    /// cover before.
    pub changed: bool,
    /// The number of live sessions that ended. If a tenant or a subject was revoked, the sessions
    /// that its entry covered before are not counted. Zero for the targets whose sessions only the
    /// job that ends covered sessions counts.
    pub sessions: i64,
    /// The tenant and the subject of the entry that was written, if the entry concerns one subject.
    pub owner: Option<(Tenant, Subject)>,
    /// The position up to which every index must have applied the feed before the revocation holds.
    /// This is the position of the last entry that was written. If no entry was written, it is the
    /// head of the feed, because the entry of an earlier revocation may not have reached every
    /// index yet.
    pub position: FeedPosition,
}

impl RevocationOutcome {
    /// Returns the outcome of a decision that has been written. `position` is the position of the
    /// last of the decision's entries, or the head of the feed if the decision has no entry.
    pub fn new(decision: &RevocationDecision, position: FeedPosition) -> Self {
        let entry = match decision.entries.as_slice() {
            [entry] => Some(entry),
            _ => None,
        };
        Self {
            found: decision.found,
            full: decision.full,
            wrote: !decision.entries.is_empty(),
            changed: decision.changed,
            sessions: decision.sessions,
            owner: entry.and_then(|entry| Some((entry.tenant.clone(), entry.subject.clone()?))),
            position,
        }
    }
}

/// A walk through the sessions that a cut-off may cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The instant at which the walk began.
    pub began_at: Timestamp,
    /// The last session that has been read; none at the beginning.
    pub after: Option<SessionId>,
}

/// A batch of sessions that were read, to count those that a revocation would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedBatch {
    /// The last session of the batch.
    pub last: SessionId,
    /// The number of sessions that were read.
    pub looked_at: i64,
    /// The number of live sessions among them that the revocation would end.
    pub sessions: i64,
}

/// A batch of sessions that were read, and ended if they were live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedBatch {
    /// The last session of the batch.
    pub last: SessionId,
    /// The number of live sessions that ended.
    pub sessions: usize,
}

/// The result of the deletion of a batch of expired blacklist entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweptRevocations {
    /// The number of entries that were deleted.
    pub deleted: usize,
    /// The purge watermark after the batch: the latest expiry of an entry that was ever deleted. No
    /// entry of a token that expires later has been deleted.
    pub purge_watermark: Timestamp,
}

/// A batch of sessions whose expiry has been recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedExpiries {
    /// The audit records of the sessions.
    pub entries: Vec<AuditEntry>,
    /// True if this was the last batch: no further session has an expiry that can be recorded now.
    pub is_last: bool,
}

/// A database that keeps sessions, the blacklist, the sealed keys and the audit. A creation, a
/// refresh, a revocation and a change of the keys are each made in one transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Creates a session, and evicts others if the quota of the subject requires it.
    async fn create_session(&self, creation: Creation) -> Result<Created, StoreError>;

    /// Reads the session as it is when the transaction runs, decides the attempt by
    /// [`Session::judge_refresh`], and writes the decision.
    async fn refresh_session(&self, attempt: RefreshAttempt) -> Result<Refreshed, StoreError>;

    /// Reads the session as it is when the transaction runs, decides the change by
    /// [`SessionChange::decide`], and writes the decision.
    async fn change_session(&self, change: SessionChange) -> Result<Changed, StoreError>;

    /// Ends the sessions that a revocation names, and writes the blacklist entries. A session that
    /// had ended before is left as it is.
    async fn revoke(&self, revocation: Revocation) -> Result<RevocationOutcome, StoreError>;

    /// Reads a session, whatever its state.
    async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// Returns what a refresh token of another system stands for, if it is known. The session may
    /// have ended.
    async fn legacy_token(&self, hash: LegacyTokenHash) -> Result<Option<LegacyToken>, StoreError>;

    /// Reads the metadata of sessions, whatever their state. Sessions that do not exist are left
    /// out, and the order is arbitrary.
    async fn metadata_of(&self, ids: Vec<SessionId>) -> Result<Vec<SessionMetadata>, StoreError>;

    /// Searches for sessions, and looks at no more than [`MOST_READ`] of each state.
    ///
    /// [`MOST_READ`]: crate::domain::search::MOST_READ
    async fn sessions(
        &self,
        query: SessionQuery,
    ) -> Result<Part<Vec<Session>, SessionId>, StoreError>;

    /// Counts the sessions that a query finds, and looks at no more than [`MOST_READ`] of each
    /// state.
    ///
    /// [`MOST_READ`]: crate::domain::search::MOST_READ
    async fn count_sessions(&self, query: SessionQuery)
    -> Result<Part<i64, SessionId>, StoreError>;

    /// Reads the entries of cut-offs whose sessions [`Store::end_covered_sessions`] ends.
    async fn unfinished(&self) -> Result<Vec<CutOffEntry>, StoreError>;

    /// Ends a batch of the live sessions that an entry covers, and adds their number to the progress
    /// of the entry. These sessions get no entries of their own, because this entry stops their
    /// tokens. If one of their tokens expires later than the entry, the entry is written again with
    /// a later expiry.
    ///
    /// Reads no more than `limit` sessions, after those that the walk has read. Returns none if
    /// there were none to read, and then marks the entry as finished.
    async fn end_covered_sessions(
        &self,
        entry: CutOffEntry,
        walk: Walk,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError>;

    /// Reads the entries of those cut-offs whose sessions [`Store::end_covered_sessions`] ends or has
    /// ended, the newest first.
    async fn cut_offs(&self) -> Result<Vec<CutOffEntry>, StoreError>;

    /// Counts, in a batch of sessions, those that are live at `now` and that a cut-off would end.
    /// Sessions that another cut-off covers already count too until their rows are marked as ended.
    ///
    /// Reads no more than `limit` sessions after `after`. Returns none if there were none to read.
    async fn count_covered(
        &self,
        key: CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<CountedBatch>, StoreError>;

    /// Ends a batch of live sessions of all tenants that were created up to the end of the
    /// millisecond of `until`, and writes no blacklist entries for them. This may be used only if
    /// no process serves from the database, and if access tokens that were issued before are not
    /// accepted any more.
    ///
    /// Reads no more than `limit` sessions after `after`. Returns none if there were none to read.
    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError>;

    /// Returns a client with which this process sends its renewals, and so learns which tokens were
    /// revoked.
    fn renewal_client(&self) -> Box<dyn RenewalClient>;

    /// Returns a channel that changes whenever there may be new blacklist entries. The value is
    /// only a hint; a revocation takes effect when a renewal ([`Store::renewal_client`]) has read
    /// its entry.
    fn revocation_hints(&self) -> watch::Receiver<Seq>;

    /// Returns the instant of the newest row, if the database has no clock of its own and is not
    /// empty.
    async fn newest(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Returns the time of the database's clock, by which all replicas can judge alike. Returns
    /// none if the database has no clock of its own.
    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Deletes at most `limit` blacklist entries that expired before `until`, and records the
    /// latest expiry among them. The entry of a cut-off is kept, and marked as unfinished, as long
    /// as sessions that it covers may still have to be marked as ended. The entry of a wide cut-off
    /// is deleted only after a walk through its sessions that began after its expiry.
    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations, StoreError>;

    /// Records the expiry of sessions that expired before `until` and had not been ended. Each
    /// session is recorded once, even if several replicas sweep at the same time. Reads no more
    /// than `limit` sessions. If `keep` is true, the records are added to the audit table in the
    /// same transaction.
    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries, StoreError>;

    /// Deletes at most `limit` sessions that were over before `until`. An expired session is kept
    /// until [`Store::record_expiries`] has recorded it.
    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError>;

    /// Deletes at most `limit` refresh tokens of other systems whose sessions' lifetimes ended
    /// before `until`, and returns their number.
    async fn delete_old_legacy_tokens(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<usize, StoreError>;

    /// Adds records to the audit table, either all or none. A record that is in the table already
    /// is left as it is, so that the call may be repeated after an error.
    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<(), StoreError>;

    /// Searches the audit table, and looks at no more than [`MOST_READ`] records.
    ///
    /// [`MOST_READ`]: crate::domain::search::MOST_READ
    async fn audit(
        &self,
        query: AuditQuery,
    ) -> Result<Part<Vec<AuditEntry>, AuditPlace>, StoreError>;

    /// Deletes audit records from before `until`, the oldest first, and returns their number.
    ///
    /// At most `limit` records are deleted one by one. An engine with daily partitions drops the
    /// partitions of past days as a whole, and keeps the records of the last day until all of that
    /// day is past.
    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError>;

    /// Gives back to the file system a bounded part of the space that deleted rows have left, if
    /// the engine does not do so by itself. Returns whether there is more to give back.
    async fn release_space(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Reads the size of the database. Blacklist rows that expired before `now` count as expired.
    async fn sizes(&self, now: Timestamp) -> Result<Sizes, StoreError>;

    /// Records that watchers may hold leases from now on, which are over after `validity`. An engine
    /// for several replicas needs no such record: each replica has its row in the register.
    async fn begin_watching(&self, _validity: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the time after which all leases of watchers are over that an earlier process may
    /// have given; `None` if it gave none, or if the engine keeps no record of them.
    async fn watched(&self) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Records that no watcher holds a lease any more.
    async fn end_watching(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the counts of the engine for metrics.
    fn counts(&self) -> StoreCounts {
        StoreCounts::default()
    }

    /// Waits until an essential part of the engine has stopped, which normally never happens.
    async fn stopped(&self);

    /// Returns the register of the replicas, if there can be several.
    fn members(&self) -> Option<&dyn Members> {
        None
    }

    /// Reads all keys.
    async fn ring(&self) -> Result<SealedRing, StoreError>;

    /// Changes the keys, if the key ring still has the version for which the change was made.
    /// Returns none if it has another version; nothing is changed then. Otherwise returns a feed
    /// position: every replica that has applied the feed up to there knows the change.
    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>, StoreError>;

    /// Returns whether the current refresh token of any live session depends on a key. Reads all
    /// sessions.
    async fn is_refresh_key_in_use(
        &self,
        key: RefreshKeyId,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}
