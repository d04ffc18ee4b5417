//! What a blacklist entry says, and for how long it must be kept.

use std::time::Duration;

use super::{
    ids::{SessionId, TokenId},
    session::{EndReason, Ended, Session},
    text::{Note, Subject, Tenant},
    time::Timestamp,
};

/// Position in the order in which revocations were committed; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub i64);

/// A history of the database. A standby that takes over begins a new one, which may lack the last commits of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline(pub i64);

/// A position, and the history in which it is one: another may have given it to another revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The history.
    pub timeline: Timeline,
    /// The position.
    pub seq: Seq,
}

/// What is no longer accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revoked {
    /// Every token of a session.
    Session(SessionId),
    /// One access token.
    Token(TokenId),
    /// Every session of a tenant that was created in or before the millisecond of `up_to`.
    Tenant {
        /// The tenant.
        tenant: Tenant,
        /// The last instant covered.
        up_to: Timestamp,
    },
}

/// A row of the blacklist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlacklistEntry {
    /// What it stops.
    pub revoked: Revoked,
    /// The tenant that it belongs to.
    pub tenant: Tenant,
    /// The subject that it belongs to, if to one.
    pub subject: Option<Subject>,
    /// The session that it belongs to, if to one.
    pub session_id: Option<SessionId>,
    /// Why.
    pub reason: EndReason,
    /// Said by whoever revoked.
    pub note: Note,
    /// When.
    pub revoked_at: Timestamp,
    /// From when on it may be forgotten: every token that it stops has expired by then.
    pub expires_at: Timestamp,
}

/// How much longer than its tokens an entry is kept, for clocks that disagree.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);

impl BlacklistEntry {
    /// Stops a session that ends now. None of its tokens was issued later than now, or, if the clock
    /// has been set back since, later than the last replay of its last refresh.
    pub fn for_session(session: &Session, ended: &Ended) -> Self {
        Self {
            revoked: Revoked::Session(session.id),
            tenant: session.tenant.clone(),
            subject: Some(session.subject.clone()),
            session_id: Some(session.id),
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: Self::expiry_for(session, ended.at),
        }
    }

    /// Stops the access token that a session had before a refresh at `now`.
    pub fn superseded(session: &Session, now: Timestamp) -> Self {
        let token_expires_at = session.policy.access_token_expiry(session.refreshed_at, session.idle_expires_at);
        let ended = Ended { at: now, reason: EndReason::Unspecified, note: Note::default() };
        Self::for_token(session, session.access_token_id, token_expires_at, &ended)
    }

    /// Stops all sessions of a tenant created up to this instant. It is kept at least while sessions are left to be ended
    /// under it, each of which prolongs it as its tokens need.
    pub fn for_tenant(tenant: &Tenant, up_to: Timestamp, ended: &Ended) -> Self {
        Self {
            revoked: Revoked::Tenant { tenant: tenant.clone(), up_to },
            tenant: tenant.clone(),
            subject: None,
            session_id: None,
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: up_to.max(ended.at).plus(RETENTION_MARGIN),
        }
    }

    /// From when on an entry may be forgotten that stops every token of this session issued until `now`.
    pub fn expiry_for(session: &Session, now: Timestamp) -> Timestamp {
        let last_issue = now.max(session.last_replay());
        let last_expiry = session.policy.access_token_expiry(last_issue, session.idle_expires_at);
        last_expiry.max(now).plus(RETENTION_MARGIN)
    }

    /// Stops one access token of a session, which expires at `token_expires_at`.
    pub fn for_token(session: &Session, token: TokenId, token_expires_at: Timestamp, ended: &Ended) -> Self {
        Self {
            revoked: Revoked::Token(token),
            expires_at: token_expires_at.max(ended.at).plus(RETENTION_MARGIN),
            ..Self::for_session(session, ended)
        }
    }
}

/// What there is of a tenant when it is revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantState {
    /// Its newest session, live or not.
    pub newest: Option<SessionId>,
    /// The last instant that its entry covers, if it has one.
    pub covered: Option<Timestamp>,
}

impl TenantState {
    /// The last instant that a revocation at `now` covers: later than now if the clock has been set
    /// back since a session was created or the tenant was revoked before. None if there is nothing
    /// of this tenant, so that made-up names add no rows.
    pub fn up_to(&self, now: Timestamp) -> Option<Timestamp> {
        let newest = self.newest.map(|id| Timestamp::from_micros(id.created_millis().saturating_mul(1000)));
        newest.max(self.covered).map(|instant| instant.max(now))
    }

    /// Whether a revocation covers anything that the entry does not cover yet. While no session is
    /// created it does not, so that repeating it counts as a change once, however often it is
    /// repeated.
    pub fn has_uncovered(&self) -> bool {
        match (self.newest, self.covered) {
            (Some(newest), Some(covered)) => !tenant_covers(covered, newest),
            (newest, None) => newest.is_some(),
            (None, Some(_)) => false,
        }
    }
}

/// Whether a tenant's revocation up to this instant covers a session: by the millisecond of its creation.
pub fn tenant_covers(up_to: Timestamp, session: SessionId) -> bool {
    session.created_millis() <= up_to.millis()
}

/// A call for revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What is to end.
    pub target: RevocationTarget,
    /// When, why, and what was said.
    pub ended: Ended,
    /// Whether new entries may be added. Without room, what would add one is not done.
    pub may_add: bool,
    /// Written if the database does not know that the session lives, although an authentic token says so: the database
    /// was set back to an older state, and nothing else would stop the token.
    pub orphan: Option<BlacklistEntry>,
}

impl Revocation {
    /// Writes the entry of something that was revoked and that the database has lost, and ends the
    /// session that it stops, if the database has it. The tenant and the subject are for people to
    /// read, and may be unknown.
    pub fn of_lost(revoked: Revoked, whose: Option<(Tenant, Subject)>, ended: Ended, expires_at: Timestamp) -> Self {
        let session_id = match &revoked {
            Revoked::Session(id) => Some(*id),
            Revoked::Token(_) | Revoked::Tenant { .. } => None,
        };
        let (tenant, subject) = match (&revoked, whose) {
            (Revoked::Tenant { tenant, .. }, _) => (tenant.clone(), None),
            (_, Some((tenant, subject))) => (tenant, Some(subject)),
            (_, None) => (Tenant::default(), None),
        };
        let orphan = BlacklistEntry {
            revoked,
            tenant,
            subject,
            session_id,
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at,
        };
        // No session has the identifier zero: then there is only the entry to be written.
        let target = RevocationTarget::Session(session_id.unwrap_or(SessionId::from_bytes([0; 16])));
        Self { target, ended, may_add: true, orphan: Some(orphan) }
    }
}

/// What a call for revocation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationTarget {
    /// One session.
    Session(SessionId),
    /// One access token of a session, with its expiry.
    Token {
        /// Its `jti`.
        token: TokenId,
        /// Its `sid`.
        session_id: SessionId,
        /// Its `exp`.
        expires_at: Timestamp,
    },
    /// All live sessions of a subject, but one perhaps.
    Subject {
        /// The subject's tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The session that stays.
        except: Option<SessionId>,
    },
    /// All sessions that a tenant has now.
    Tenant(Tenant),
}

#[cfg(test)]
mod tests {
    use super::{
        super::policy::Replay,
        super::session::tests::{START, session},
        *,
    };

    #[test]
    fn an_entry_outlives_every_token_that_its_session_could_have_issued() {
        let session = session();
        let at = START.plus(Duration::from_millis(590_700));
        let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
        let last_token = session.policy.access_token_expiry(at, session.idle_expires_at);
        let entry = BlacklistEntry::for_session(&session, &ended);
        assert!(entry.expires_at >= last_token.plus(RETENTION_MARGIN));
        assert!(entry.expires_at <= session.idle_expires_at.plus(RETENTION_MARGIN), "and not much longer");
    }

    #[test]
    fn a_tenant_has_something_uncovered_once_a_session_came_after_its_entry() {
        let created = |millis: u64| Some(SessionId::new(START.plus(Duration::from_millis(millis)), [0xff; 10]));
        let covered = |micros: u64| Some(START.plus(Duration::from_micros(micros)));
        for (newest, covered, is_change) in [
            (None, None, false),
            (created(5), None, true),
            (None, covered(5_000), false),
            (created(5), covered(4_999), true),
            (created(5), covered(5_000), false),
            (created(5), covered(9_000), false),
        ] {
            let state = TenantState { newest, covered };
            assert_eq!(state.has_uncovered(), is_change, "{state:?}");
            if let Some(up_to) = state.up_to(START) {
                let after = TenantState { covered: Some(up_to), ..state };
                assert!(!after.has_uncovered(), "repeating is no change: {after:?}");
            }
        }
    }

    #[test]
    fn an_entry_outlives_the_tokens_of_the_last_replay_whatever_the_clock_says() {
        for (replay, window) in [(Replay::Grace, 10), (Replay::UntilUsed, 300)] {
            let mut session = session();
            session.policy.replay = replay;
            let last_replay = START.plus(Duration::from_secs(window));
            let last_expiry = session.policy.access_token_expiry(last_replay, session.idle_expires_at);
            let at = START.minus(Duration::from_secs(3600));
            let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
            let entry = BlacklistEntry::for_session(&session, &ended);
            assert!(entry.expires_at >= last_expiry.plus(RETENTION_MARGIN), "{replay:?}");
        }
    }

    #[test]
    fn a_clock_set_back_before_the_revocation_does_not_shorten_the_entry() {
        let session = session();
        let at = START.minus(Duration::from_secs(3600));
        let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
        let issued_before_the_jump = session.policy.access_token_expiry(START, session.idle_expires_at);
        assert!(BlacklistEntry::for_session(&session, &ended).expires_at >= issued_before_the_jump);
    }
}
