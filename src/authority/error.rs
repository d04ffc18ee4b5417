//! The errors of use cases. The list is closed, and each transport maps it to its own codes in one
//! place.

use crate::{
    domain::rotation::NotRotated, rng::RngFailed, store::StoreError, token::access::SignError,
};

/// The reason why a use case failed. Nothing was changed, unless the variant says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A field of the request is invalid. The problem completes a sentence that starts with the
    /// field's name.
    #[error("{field} {problem}")]
    InvalidField {
        /// The path of the field in the request.
        field: String,
        /// The problem with it.
        problem: String,
    },
    /// The request id was used before, for another request or by another caller.
    #[error("request_id was used before for another request or by another caller: use a new one")]
    RequestIdReused,
    /// The caller is authenticated, but may not perform the operation.
    #[error("the caller {name} may not call {call}: {problem}")]
    CallerNotAllowed {
        /// The name of the caller.
        name: String,
        /// The name of the operation.
        call: &'static str,
        /// The reason why the caller may not perform the operation.
        problem: String,
    },
    /// The refresh token is malformed, forged, or from another service.
    #[error("the refresh token is not valid: sign in again")]
    RefreshTokenInvalid,
    /// The refresh token was exchanged before, and its grace period is over. The session has ended.
    #[error(
        "the refresh token was used before, so it may be in two hands; the session has ended: \
         sign in again"
    )]
    RefreshTokenReused,
    /// The session was ended.
    #[error("the session has ended: sign in again")]
    SessionRevoked,
    /// The session was not refreshed in time.
    #[error("the session was not refreshed in time and has ended: sign in again")]
    SessionExpiredIdle,
    /// The session reached the end of its lifetime.
    #[error("the session has reached the end of its lifetime: sign in again")]
    SessionExpiredAbsolute,
    /// The subject has as many live sessions as its policy allows.
    #[error(
        "the subject has {limit} live sessions, as many as policy {policy:?} allows: end one first"
    )]
    SessionQuotaExceeded {
        /// The number of live sessions that the subject may have.
        limit: u32,
        /// The name of the policy.
        policy: String,
    },
    /// The session has changed since the caller read it.
    #[error("the session has changed since it was read: read it again, and repeat the change")]
    EtagMismatch,
    /// There is no such session.
    #[error("there is no such session")]
    SessionNotFound,
    /// There is no such key.
    #[error("there is no such key")]
    KeyNotFound,
    /// The key cannot be rotated now.
    #[error(transparent)]
    KeyNotRotated(NotRotated),
    /// The blacklist is full.
    #[error(
        "the blacklist holds {limit} entries, as many as blacklist.max_entries allows: raise it, \
         or wait for entries to expire"
    )]
    BlacklistFull {
        /// The number of entries that the blacklist may hold.
        limit: usize,
    },
    /// There are too many watchers at this server.
    #[error(
        "{limit} watchers are connected to this server, or have gone and their leases are not over. \
         limits.max_watchers allows no more: raise it, or watch another replica"
    )]
    TooManyWatchers {
        /// The number of watchers that a server may have.
        limit: usize,
    },
    /// The watcher does not keep up with the revocations.
    #[error("the watcher does not read fast enough: call again, which begins with a snapshot")]
    WatcherTooSlow,
    /// The watcher has confirmed something that was not sent.
    #[error("renewal.applied is not a cursor that was sent on this stream: confirm what was sent")]
    NotSent,
    /// Too many writes wait for the database. The write of this call was not started.
    #[error("too many calls are waiting for the database: try again later")]
    Overloaded,
    /// The database is not reachable. A write may or may not have taken effect. The caller may
    /// repeat the call.
    #[error("the database is not available: try again")]
    StoreUnavailable,
    /// This server may not know the latest revocations, because it holds no lease or is still
    /// starting.
    #[error("this server does not know the latest revocations yet: try again")]
    NotCurrent,
    /// There is no active key. Either its row was deleted or damaged, or the database lost its
    /// revocation, which this service is about to repeat.
    #[error("no key is active at the moment, the next one is about to take its place: try again")]
    NoActiveKey,
    /// Records of the audit are not kept in the database.
    #[error(
        "the records of the audit are only in the server's log, because audit.table is false: set \
         it to true to keep them in the database"
    )]
    AuditTableOff,
    /// A bug or a damaged row. The log has the details.
    #[error("an internal error occurred; the server's log says more")]
    Internal,
}

impl AuthorityError {
    /// Creates the error for an invalid field.
    pub fn field(field: impl Into<String>, problem: impl ToString) -> Self {
        Self::InvalidField { field: field.into(), problem: problem.to_string() }
    }
}

/// The store has logged its error already, see
/// [`ObservedStore`](crate::store::observed::ObservedStore).
impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => Self::Overloaded,
            StoreError::Unavailable(_) => Self::StoreUnavailable,
            StoreError::Damaged(_) | StoreError::Refused(_) => Self::Internal,
        }
    }
}

impl From<RngFailed> for AuthorityError {
    fn from(error: RngFailed) -> Self {
        tracing::error!(%error, "a call failed");
        Self::Internal
    }
}

impl From<SignError> for AuthorityError {
    fn from(error: SignError) -> Self {
        tracing::error!(%error, "a call failed");
        Self::Internal
    }
}
