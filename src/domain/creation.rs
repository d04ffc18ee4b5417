//! Decides whether a session is created, and which existing sessions are evicted for it.

use super::{
    cut_off::Covering,
    ids::SessionId,
    legacy_token::LegacyTokenHash,
    policy::OnQuota,
    quota::{LiveSessions, QuotaExceeded},
    session::{EndReason, Ended, Session},
    text::Note,
    time::Timestamp,
};

/// A session to be created.
#[derive(Clone, Debug)]
pub struct Creation {
    /// The session in its first generation.
    pub session: Session,
    /// The number of live sessions that the subject may have, including this one; zero means no
    /// limit.
    pub max_sessions: u32,
    /// The reaction if the subject already has as many live sessions as it may have.
    pub on_quota: OnQuota,
    /// The refresh token of another system that is to stand for the first refresh token of the
    /// session, if the session is imported with one.
    pub legacy_token: Option<LegacyTokenHash>,
}

/// The state of the database that the decision on a creation depends on.
pub trait CreationState {
    /// The error of a failed read.
    type Error;

    /// Reads the session that has the same tenant and request id, if there is one.
    fn earlier(&mut self, session: &Session) -> Result<Option<Session>, Self::Error>;

    /// Returns which revocations by a cut-off cover the session.
    fn covering(&mut self, session: &Session) -> Result<Covering, Self::Error>;

    /// Returns whether a refresh token of another system stands for a session already.
    fn has_legacy_token(&mut self, token: &LegacyTokenHash) -> Result<bool, Self::Error>;

    /// Returns the live sessions of the session's subject. [`Creation::decide`] adds the new
    /// session to them, so that the next creation of the same transaction counts it. A creation
    /// without a limit needs no count, so it gets the live sessions only if they have been read for
    /// another creation of the transaction.
    fn live_sessions(
        &mut self,
        creation: &Creation,
    ) -> Result<Option<&mut LiveSessions>, Self::Error>;
}

/// The decision on a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum CreationDecision {
    /// The session is created, and other sessions are evicted for it.
    Create {
        /// The evicted sessions, the oldest first.
        evicted: Vec<SessionId>,
    },
    /// The same request was made before, and created this session.
    Repeat(Box<Session>),
    /// A different request with the same request id was made before.
    RequestIdReused,
    /// The refresh token of the other system stands for another session.
    LegacyTokenTaken,
    /// The subject has as many live sessions as it may have.
    QuotaExceeded,
    /// Sessions that were created up to an instant have been revoked, and the creation time in the
    /// new session's identifier is not later than that instant.
    Revoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
    /// Sessions whose user authenticated up to an instant have been revoked, and the user of the
    /// new session authenticated no later.
    AuthenticationRevoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
}

impl Creation {
    /// Decides the creation, and updates the live sessions of its subject accordingly.
    ///
    /// Revocations are read from the database and not from the index in memory, which lags behind
    /// the database. Otherwise the new session could escape a revocation that is committed at the
    /// same time.
    pub fn decide<S: CreationState>(&self, state: &mut S) -> Result<CreationDecision, S::Error> {
        let session = &self.session;
        if session.request_id.is_some()
            && let Some(earlier) = state.earlier(session)?
        {
            return Ok(match session.has_same_request(&earlier) {
                true => CreationDecision::Repeat(Box::new(earlier)),
                false => CreationDecision::RequestIdReused,
            });
        }
        let covering = state.covering(session)?;
        if let Some(up_to) = covering.authenticated_up_to {
            return Ok(CreationDecision::AuthenticationRevoked { up_to });
        }
        if let Some(up_to) = covering.created_up_to {
            return Ok(CreationDecision::Revoked { up_to });
        }
        if let Some(token) = &self.legacy_token
            && state.has_legacy_token(token)?
        {
            return Ok(CreationDecision::LegacyTokenTaken);
        }
        let mut evicted = vec![];
        if let Some(live) = state.live_sessions(self)? {
            if self.max_sessions > 0 {
                match live.make_room(session.created_at, self.max_sessions, self.on_quota) {
                    Ok(ids) => evicted = ids,
                    Err(QuotaExceeded) => return Ok(CreationDecision::QuotaExceeded),
                }
            }
            live.add(session.id, session.idle_expires_at);
        }
        Ok(CreationDecision::Create { evicted })
    }

    /// Returns the time, the reason and the note with which an evicted session ends.
    pub fn eviction(&self) -> Ended {
        Ended {
            at: self.session.created_at,
            reason: EndReason::QuotaEvicted,
            note: Note::default(),
        }
    }
}
