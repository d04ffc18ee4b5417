//! Reads the refresh tokens that callers present, and reports those that point to theft or damage.

use super::{Authority, audit::Audit, error::AuthorityError};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        change::Presented,
        ids::SessionId,
        legacy_token::LegacyTokenHash,
        session::{EndReason, Session},
        time::Timestamp,
    },
    token::{access::MAX_BYTES, refresh::Unverified},
};

/// A refresh token that a caller presented, and that is known to be authentic.
#[derive(Clone, Copy, Debug)]
pub(super) struct PresentedToken {
    /// The session that the token belongs to.
    pub session_id: SessionId,
    /// The generation and the secret of the token.
    pub presented: Presented,
    /// True if another system issued the token.
    pub is_legacy: bool,
}

impl Authority {
    /// Reads a refresh token. Returns `None` if it is not authentic.
    ///
    /// A token of this service is checked by its MAC, without the database. Any other token is
    /// looked up among the refresh tokens of imported sessions, if the configuration accepts them.
    pub(super) async fn read_refresh_token(
        &self,
        token: &str,
    ) -> Result<Option<PresentedToken>, AuthorityError> {
        let Ok(unverified) = Unverified::parse(token) else {
            return self.find_legacy_token(token).await;
        };
        let ring = self.keeper.ring();
        let claims = ring.refresh(unverified.key()).and_then(|key| unverified.verify(key).ok());
        Ok(claims.map(|claims| PresentedToken {
            session_id: claims.session_id,
            presented: Presented {
                generation: claims.lineage.generation,
                secret: claims.lineage.secret,
            },
            is_legacy: false,
        }))
    }

    /// Finds the refresh token of another system. Returns `None` only if the current primary does
    /// not know the token.
    async fn find_legacy_token(
        &self,
        token: &str,
    ) -> Result<Option<PresentedToken>, AuthorityError> {
        if !self.settings().legacy_refresh_tokens || token.len() > MAX_BYTES {
            return Ok(None);
        }
        let hash = LegacyTokenHash::of(token);
        loop {
            let timeline = self.replica.timeline();
            if let Some(found) = self.store.legacy_token(hash).await? {
                return Ok(Some(PresentedToken {
                    session_id: found.session_id,
                    presented: Presented { generation: 1, secret: found.secret },
                    is_legacy: true,
                }));
            }
            self.wait_until_confirmed().await?;
            if self.replica.timeline() == timeline {
                return Ok(None);
            }
        }
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
