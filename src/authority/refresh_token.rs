//! Reads the refresh tokens that callers present, and reports those that point to theft or damage.

use super::{Authority, audit::Audit, error::AuthorityError};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        ids::SessionId,
        session::{EndReason, Session},
        time::Timestamp,
    },
    token::refresh::{RefreshClaims, Unverified},
};

impl Authority {
    /// Parses a refresh token and checks its MAC. Returns `None` if it is not authentic.
    pub(super) fn read_refresh_token(&self, token: &str) -> Option<RefreshClaims> {
        let unverified = Unverified::parse(token).ok()?;
        let ring = self.keeper.ring();
        let key = ring.refresh(unverified.key())?;
        unverified.verify(key).ok()
    }
}

/// Records that a session has ended when a caller presented its refresh token of the given
/// generation, or authenticated its user again.
pub(super) fn record_end(
    audit: &Audit,
    by: &Actor,
    at: Timestamp,
    session: &Session,
    generation: Option<u32>,
) {
    let reason = session.ended.as_ref().map(|ended| ended.reason);
    let action = match reason {
        Some(EndReason::ExpiredIdle | EndReason::ExpiredAbsolute) => AuditAction::SessionExpired,
        _ => {
            warn_of_reuse(session, generation);
            AuditAction::RefreshReused
        }
    };
    let sessions = (action == AuditAction::SessionExpired).then_some(1);
    let record = AuditRecord::by(by, action, at).about(session);
    audit.record(AuditRecord { reason, sessions, ..record });
}

/// Returns the error for the caller whose request ended a session.
pub(super) fn end_error(session: &Session) -> AuthorityError {
    match session.ended.as_ref().map(|ended| ended.reason) {
        Some(EndReason::ExpiredIdle) => AuthorityError::SessionExpiredIdle,
        Some(EndReason::ExpiredAbsolute) => AuthorityError::SessionExpiredAbsolute,
        _ => AuthorityError::RefreshTokenReused,
    }
}

fn warn_of_reuse(session: &Session, generation: Option<u32>) {
    tracing::warn!(
        session = %session.id, generation, current = session.lineage.generation,
        "a refresh token was used again after its grace; the session has ended"
    );
}

/// Reports a refresh token of a generation that was never issued. Returns the error for its caller.
pub(super) fn never_issued(
    session_id: SessionId,
    generation: Option<u32>,
    current: u32,
) -> AuthorityError {
    tracing::error!(
        session = %session_id, generation, current,
        "a refresh token of a generation that was never issued has the right MAC: the database was \
         set back to an older state, or a refresh key has leaked"
    );
    AuthorityError::RefreshTokenInvalid
}
