//! Decides whether a session is created, and which others are evicted for it.

use super::{
    ids::SessionId,
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
    /// The number of live sessions that the subject may have, with this one; zero for no limit.
    pub max_sessions: u32,
    /// The rule for a session that would be one too many.
    pub on_quota: OnQuota,
}

/// The state of the database that the decision on a creation depends on.
pub trait CreationState {
    /// The error of a read that fails.
    type Error;

    /// Reads the session that has the same tenant and request id, if there is one.
    fn earlier(&mut self, session: &Session) -> Result<Option<Session>, Self::Error>;

    /// Returns the instant up to which all sessions of the session's tenant or subject were
    /// revoked, if that revocation covers the session. If several do, returns the latest instant.
    fn covered_up_to(&mut self, session: &Session) -> Result<Option<Timestamp>, Self::Error>;

    /// Returns the live sessions of the session's subject, to which the new session is then added.
    /// A creation without a limit does not need them, so for it they are returned only if they have
    /// been read already.
    fn live_sessions(
        &mut self,
        creation: &Creation,
    ) -> Result<Option<&mut LiveSessions>, Self::Error>;
}

/// The decision on a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum CreationDecision {
    /// The session is created, and these are evicted for it, the oldest first.
    Create {
        /// The sessions that are evicted.
        evicted: Vec<SessionId>,
    },
    /// The same request created this session before.
    Repeat(Box<Session>),
    /// Another request had the same request id before.
    RequestIdReused,
    /// The subject has as many live sessions as it may have.
    QuotaExceeded,
    /// All sessions of the tenant or of the subject were revoked up to an instant, and the time in
    /// the session's identifier is not later.
    Revoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
}

impl Creation {
    /// Decides the creation, and changes the live sessions of its subject accordingly.
    ///
    /// The revocations are read from the database, and not from the index, so that no session
    /// escapes a revocation that is being committed.
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
        if let Some(up_to) = state.covered_up_to(session)? {
            return Ok(CreationDecision::Revoked { up_to });
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

    /// Returns the end of a session that is evicted for this one.
    pub fn eviction(&self) -> Ended {
        Ended {
            at: self.session.created_at,
            reason: EndReason::QuotaEvicted,
            note: Note::default(),
        }
    }
}
