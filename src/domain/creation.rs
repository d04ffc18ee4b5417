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
    /// How many live sessions the subject may have with this one; zero for no limit.
    pub max_sessions: u32,
    /// What to do with one too many.
    pub on_quota: OnQuota,
}

/// What an engine knows when a creation is decided.
pub trait CreationState {
    /// Why something cannot be read.
    type Error;

    /// Reads the session that has the same tenant and request id, if there is one.
    fn earlier(&mut self, session: &Session) -> Result<Option<Session>, Self::Error>;

    /// Returns the last instant up to which all sessions of the session's tenant or subject were
    /// revoked, if that covers the session.
    fn covered_up_to(&mut self, session: &Session) -> Result<Option<Timestamp>, Self::Error>;

    /// Returns the live sessions of the session's subject. Without a limit they are wanted only if
    /// they are known already: then the new session is added to them.
    fn live_sessions(
        &mut self,
        creation: &Creation,
    ) -> Result<Option<&mut LiveSessions>, Self::Error>;
}

/// What comes of a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum CreationDecision {
    /// The session is created, and these are evicted for it, the oldest first.
    Create {
        /// Sessions that have to go.
        evicted: Vec<SessionId>,
    },
    /// The same request created this session before.
    Repeat(Box<Session>),
    /// Another request had the same request id before.
    RequestIdReused,
    /// The subject has as many live sessions as it may have.
    QuotaExceeded,
    /// All sessions of the tenant or of the subject were revoked, and the session's identifier is
    /// not after that.
    Revoked {
        /// The last instant that the revocation covers.
        up_to: Timestamp,
    },
}

impl Creation {
    /// Decides it, and changes the live sessions of its subject accordingly.
    ///
    /// The revocations are read here and not in the index, so that no session is created behind one
    /// that is being committed.
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

    /// The end of a session that is evicted for this one.
    pub fn eviction(&self) -> Ended {
        Ended {
            at: self.session.created_at,
            reason: EndReason::QuotaEvicted,
            note: Note::default(),
        }
    }
}
