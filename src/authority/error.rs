//! Every way in which a use case can fail: a closed list, which each transport maps to its own
//! codes in one place.

use crate::{
    domain::rotation::NotRotated, rng::RngFailed, store::StoreError, token::access::SignError,
};

/// A use case failed. Nothing was changed, unless the variant says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A field of the request is wrong. The problem reads as the end of a sentence that starts with
    /// the field's name.
    #[error("{field} {problem}")]
    InvalidField {
        /// Path of the field in the request.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The request id was used before, for another request or by another caller.
    #[error("request_id was used before for another request or by another caller: use a new one")]
    RequestIdReused,
    /// The caller is known, and may not do this. The text says what it may not.
    #[error("the caller {name} may not call {call}: {problem}")]
    CallerNotAllowed {
        /// Who.
        name: String,
        /// The call.
        call: &'static str,
        /// What stands against it.
        problem: String,
    },
    /// Garbage, forged, or of another service.
    #[error("the refresh token is not valid: sign in again")]
    RefreshTokenInvalid,
    /// The token was exchanged before, and not a moment ago. The session has ended.
    #[error(
        "the refresh token was used before, so it may be in two hands; the session has ended: \
         sign in again"
    )]
    RefreshTokenReused,
    /// The session was ended.
    #[error("the session has ended: sign in again")]
    SessionRevoked,
    /// The session went idle.
    #[error("the session was not refreshed in time and has ended: sign in again")]
    SessionExpiredIdle,
    /// The session is over.
    #[error("the session has reached the end of its lifetime: sign in again")]
    SessionExpiredAbsolute,
    /// The subject has as many live sessions as its policy allows.
    #[error(
        "the subject has {limit} live sessions, as many as policy {policy:?} allows: end one first"
    )]
    SessionQuotaExceeded {
        /// How many it may have.
        limit: u32,
        /// Says who.
        policy: String,
    },
    /// There is no such session.
    #[error("there is no such session")]
    SessionNotFound,
    /// There is no such key.
    #[error("there is no such key")]
    KeyNotFound,
    /// A key is not rotated.
    #[error(transparent)]
    KeyNotRotated(NotRotated),
    /// The blacklist is full.
    #[error(
        "the blacklist holds {limit} entries, as many as blacklist.max_entries allows: raise it, \
         or wait for entries to expire"
    )]
    BlacklistFull {
        /// How many it may hold.
        limit: usize,
    },
    /// Too many writes wait for the database. This one was not started.
    #[error("too many calls are waiting for the database: try again later")]
    Overloaded,
    /// The database is away. Whether a write took effect is not known; the same call may be made
    /// again.
    #[error("the database is not available: try again")]
    StoreUnavailable,
    /// The blacklist in memory may not be trusted yet.
    #[error("this server does not know the latest revocations yet: try again")]
    NotCurrent,
    /// No key makes tokens: its row was deleted or damaged, or its revocation was lost and is about
    /// to be repeated.
    #[error(
        "no key makes tokens at the moment, the next one is about to take its place: try again"
    )]
    NoActiveKey,
    /// A bug or a damaged row. The log says more.
    #[error("an internal error occurred; the server's log says more")]
    Internal,
}

impl AuthorityError {
    /// A field is wrong.
    pub fn field(field: impl Into<String>, problem: impl ToString) -> Self {
        Self::InvalidField { field: field.into(), problem: problem.to_string() }
    }
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => Self::Overloaded,
            StoreError::Unavailable(_) => {
                tracing::warn!(%error, "a call failed");
                Self::StoreUnavailable
            }
            StoreError::Damaged(_) | StoreError::Refused(_) => {
                tracing::error!(%error, "a call failed");
                Self::Internal
            }
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
