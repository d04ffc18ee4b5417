//! The contract between the use cases and a database: one method, one transaction. It speaks domain
//! types only.

pub mod batch;
#[allow(clippy::too_many_lines, clippy::too_many_arguments)]
pub mod postgres;
pub mod replicas;
pub mod ring;
pub mod sqlite;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

use self::{
    replicas::{Members, RenewalClient},
    ring::{RingChange, SealedRing},
};

pub use crate::domain::creation::Creation;
use crate::domain::{
    audit::AuditEntry,
    ids::SessionId,
    key::RefreshKeyId,
    refresh::{RefreshAttempt, RefreshRefusal},
    revocation::{BlacklistEntry, CutOff, FeedPosition, Revocation, Revoked, Seq},
    revoke::RevocationDecision,
    session::{Ended, Session},
    text::{Subject, Tenant},
    time::Timestamp,
};

/// The database did not do what it was asked. Whether a write took effect is not known, unless said
/// otherwise.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, full, or failing; the same call may work later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Too many writes are waiting. This one was not started.
    #[error("too many writes are waiting for the database")]
    Overloaded,
    /// A row holds what this service never writes.
    #[error("the database holds a damaged row: {0}")]
    Damaged(String),
    /// The database refused a statement. This is a bug.
    #[error("the database refused a statement: {0}")]
    Refused(String),
}

/// What came of a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// The session is there.
    New {
        /// The sessions that were ended for it, if any.
        eviction: Option<Eviction>,
    },
    /// The request had been made before, and made this session.
    Repeated(Box<Session>),
    /// Another request, or another caller's, had the same request id before. Nothing changed.
    RequestIdReused,
    /// The subject has as many live sessions as it may have.
    QuotaExceeded,
    /// All sessions of the tenant or of the subject were revoked, and the session's identifier is
    /// not after that: it needs a later one.
    Revoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
}

/// Sessions that were ended because their subject asked for one too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The last of their blacklist entries.
    pub position: FeedPosition,
    /// The sessions, the oldest first.
    pub sessions: Vec<SessionId>,
}

impl Created {
    /// Returns the position of the last blacklist entry that it wrote.
    pub fn position(&self) -> Option<FeedPosition> {
        match self {
            Self::New { eviction } => eviction.as_ref().map(|eviction| eviction.position),
            Self::Repeated(_)
            | Self::RequestIdReused
            | Self::QuotaExceeded
            | Self::Revoked { .. } => None,
        }
    }
}

/// What came of an attempt to refresh.
#[derive(Clone, Debug, PartialEq)]
pub enum Refreshed {
    /// The session as it now is.
    Rotated {
        /// The session.
        session: Box<Session>,
        /// The blacklist entry of the previous access token, if the policy asks for one.
        position: Option<FeedPosition>,
    },
    /// The session as it was and is.
    Replayed {
        /// The session.
        session: Box<Session>,
        /// If the policy stops the previous access token: where the blacklist had come to. Its
        /// entry may still be on its way.
        position: Option<FeedPosition>,
    },
    /// The session as it ended.
    Reused {
        /// The session.
        session: Box<Session>,
        /// Its blacklist entry.
        position: FeedPosition,
    },
    /// Nothing changed.
    Refused(RefreshRefusal),
}

impl Refreshed {
    /// Returns the position of the last blacklist entry that it wrote.
    pub fn position(&self) -> Option<FeedPosition> {
        match self {
            Self::Rotated { position, .. } => *position,
            Self::Reused { position, .. } => Some(*position),
            Self::Replayed { .. } | Self::Refused(_) => None,
        }
    }
}

/// What came of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationOutcome {
    /// Whether there is such a session; always true for subjects and tenants.
    pub found: bool,
    /// Whether nothing was done because it would have added an entry without room for it.
    pub full: bool,
    /// Whether an entry was written. What was stopped before may be written again, for a new
    /// position in the feed.
    pub wrote: bool,
    /// Whether anything is stopped now that was not stopped before: a session ended, there was no
    /// entry for it yet, or the entry of a tenant or subject covers a session that it did not
    /// cover.
    pub changed: bool,
    /// The number of live sessions that ended. Of a tenant or subject those are counted that its
    /// entry did not cover yet.
    pub sessions: i64,
    /// Whose the entry is that was written, if it is one subject's.
    pub whose: Option<(Tenant, Subject)>,
    /// The entry that every index must have reached before the revocation holds: the last one
    /// written, or, if there was nothing to write, the newest there is, because what was revoked
    /// before may still be on its way.
    pub position: FeedPosition,
}

impl RevocationOutcome {
    /// The outcome of a decision that has been written. The position is that of its entry, or, if
    /// it has none, that of the newest there is.
    pub fn new(decision: &RevocationDecision, position: FeedPosition) -> Self {
        let entry = decision.entry.as_ref();
        Self {
            found: decision.found,
            full: decision.full,
            wrote: entry.is_some(),
            changed: decision.changed,
            sessions: decision.sessions,
            whose: entry.and_then(|entry| Some((entry.tenant.clone(), entry.subject.clone()?))),
            position,
        }
    }
}

/// One step of the feed that keeps the in-memory index fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEntry {
    /// Its position in the order of commits.
    pub seq: Seq,
    /// What it stops.
    pub revoked: Revoked,
    /// From when on it may be forgotten.
    pub expires_at: Timestamp,
}

/// An entry of a tenant or subject under which sessions may be left to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its position in the order of commits; another one if the same was revoked again.
    pub seq: Seq,
    /// The tenant.
    pub tenant: Tenant,
    /// The subject, if it is not about the whole tenant.
    pub subject: Option<Subject>,
    /// Which sessions are to be ended.
    pub cut_off: CutOff,
    /// How they end.
    pub ended: Ended,
    /// From when on the entry may be forgotten.
    pub expires_at: Timestamp,
}

impl Unfinished {
    /// The entry, kept longer.
    pub fn until(&self, expires_at: Timestamp) -> BlacklistEntry {
        BlacklistEntry {
            expires_at,
            ..BlacklistEntry::for_all(
                &self.tenant,
                self.subject.as_ref(),
                self.cut_off,
                &self.ended,
                Duration::ZERO,
            )
        }
    }
}

/// A batch of sessions that were looked at, and ended if they lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedBatch {
    /// The last session looked at.
    pub last: SessionId,
    /// How many live sessions ended.
    pub sessions: usize,
}

/// What a batch of the sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweptRevocations {
    /// How many entries were deleted.
    pub deleted: usize,
    /// The latest expiry of an entry that was ever deleted, now: tokens that live longer have lost
    /// no entry.
    pub forgotten_until: Timestamp,
}

/// A batch of sessions whose expiry has been recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedExpiries {
    /// Their records.
    pub entries: Vec<AuditEntry>,
    /// Whether there was nothing left to record, or nothing that could be recorded now.
    pub is_last: bool,
}

/// Which sessions to list, the newest first.
#[derive(Clone, Debug)]
pub struct SessionQuery {
    /// Of this tenant.
    pub tenant: Tenant,
    /// Of this subject, or of all.
    pub subject: Option<Subject>,
    /// Live ones (true), those that are over (false), or both. One that has expired is among those
    /// that are over once [`Store::record_expiries`] has recorded it.
    pub live: Option<bool>,
    /// The instant at which they live or not.
    pub now: Timestamp,
    /// Only those before this one in the list's order.
    pub before: Option<SessionId>,
    /// How many at most.
    pub limit: i64,
}

impl SessionQuery {
    /// The page out of two, each the newest first, in which a session may be twice: the second is
    /// the newer.
    fn merge(&self, first: Vec<Session>, second: Vec<Session>) -> Vec<Session> {
        let mut page: BTreeMap<SessionId, Session> =
            first.into_iter().map(|session| (session.id, session)).collect();
        page.extend(second.into_iter().map(|session| (session.id, session)));
        page.into_values().rev().take(usize::try_from(self.limit).unwrap_or_default()).collect()
    }
}

/// A database that keeps sessions, the blacklist, the sealed keys and the audit. Every method is
/// one transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Creates a session, evicting others if its quota says so.
    async fn create_session(&self, creation: Creation) -> Result<Created, StoreError>;

    /// Lets [`Session::judge_refresh`] decide an attempt on the row as it is then, and writes what
    /// it decides.
    async fn refresh_session(&self, attempt: RefreshAttempt) -> Result<Refreshed, StoreError>;

    /// Ends what is to end and writes the blacklist entries. What had ended before is left as it
    /// is.
    async fn revoke(&self, revocation: Revocation) -> Result<RevocationOutcome, StoreError>;

    /// Reads a session, whatever its state.
    async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// Lists sessions.
    async fn sessions(&self, query: SessionQuery) -> Result<Vec<Session>, StoreError>;

    /// The entries of tenants and subjects whose sessions [`Store::end_covered_sessions`] ends.
    async fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError>;

    /// Ends a batch of the live sessions that an entry covers, without entries of their own: this
    /// one stops their tokens, and is written again if it must be kept longer for that. Looks at no
    /// more than `limit` sessions after `after`. None if there was nothing to look at; then the
    /// entry is finished.
    async fn end_covered_sessions(
        &self,
        entry: Unfinished,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError>;

    /// Ends a batch of live sessions that were created up to the end of the millisecond of `until`,
    /// whatever their tenant, without entries: for a database from which nobody serves, and of
    /// whose older access tokens none is accepted. Looks at no more than `limit` sessions after
    /// `after`. None if there was nothing to look at.
    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>, StoreError>;

    /// The way to learn what was revoked.
    fn renewal_client(&self) -> Box<dyn RenewalClient>;

    /// Changes whenever there may be new blacklist entries. A hint: what counts is what
    /// [`Store::renewal_client`] read.
    fn revocation_hints(&self) -> watch::Receiver<Seq>;

    /// The instant of the newest row, if the database has no clock of its own and is not empty.
    async fn newest(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// The time, if the database has a clock of its own, by which all replicas can judge alike.
    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Deletes at most `limit` blacklist entries that expired before `until`, and records the
    /// latest expiry among them. The entry of a tenant or subject stays as long as sessions are
    /// left to be ended under it, and counts as unfinished then.
    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations, StoreError>;

    /// Makes the records of sessions that expired before `until` and had not been ended, once for
    /// each session, whatever else sweeps. Looks at no more than `limit` sessions. The records go
    /// to the table of the audit in the same transaction, if they are to be kept there.
    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries, StoreError>;

    /// Deletes at most `limit` sessions that were over before `until`. One that has expired is kept
    /// until [`Store::record_expiries`] has recorded it.
    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError>;

    /// Adds records to the table of the audit, all or none. One that is there is left as it is, so
    /// that the same may be added again after an error.
    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<(), StoreError>;

    /// Deletes records of the audit from before `until`, the oldest first, and returns how many.
    ///
    /// At most `limit` of them one by one. An engine with a table a day drops the days that have
    /// passed altogether, and leaves the records of the last one until it has passed as well.
    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize, StoreError>;

    /// Gives a bounded part of the space that deleted rows have left back to the file system, where
    /// the engine does not see to that itself. Returns whether there is more to give back.
    async fn release_space(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Waits until a part of the engine that must go on has stopped. Usually for ever.
    async fn stopped(&self);

    /// The register of the replicas, where there can be several.
    fn members(&self) -> Option<&dyn Members> {
        None
    }

    /// All keys.
    async fn ring(&self) -> Result<SealedRing, StoreError>;

    /// Changes the keys, if they still are as the change expects. The change takes a position in
    /// the feed, at which it is known to all who have applied it; none if it was not made.
    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>, StoreError>;

    /// Whether the current refresh token of a live session is under a key. Looks at all sessions.
    async fn is_refresh_key_held(
        &self,
        key: RefreshKeyId,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}
