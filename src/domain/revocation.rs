//! Revocations, the blacklist entries that they write, and the time for which an entry must be
//! kept.

use std::time::Duration;

use super::{
    ids::{SessionId, TokenId},
    session::{EndReason, Ended, Session},
    text::{Note, Subject, Tenant},
    time::Timestamp,
};

/// The sequence number of an entry in the feed: its place in the order of commits. The first number
/// is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub i64);

/// A history of the database. A standby that takes over begins a new timeline, which may lack the
/// last commits of the previous timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline(pub i64);

/// A sequence number, together with the timeline in which it was given out. In another timeline,
/// the same number may belong to another revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition {
    /// The timeline.
    pub timeline: Timeline,
    /// The sequence number.
    pub seq: Seq,
}

/// Tokens or sessions that are no longer accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revoked {
    /// Every token of a session.
    Session(SessionId),
    /// One access token, or all access tokens that rest on one authentication
    /// ([`AuthenticationId::token_id`](super::ids::AuthenticationId::token_id)).
    Token(TokenId),
    /// Every session of a tenant that was created in or before the millisecond of `up_to`.
    Tenant {
        /// The tenant.
        tenant: Tenant,
        /// The latest time of creation that is covered.
        up_to: Timestamp,
    },
    /// Every session of a subject that the cut-off covers.
    Subject {
        /// The subject's tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The sessions that are covered.
        cut_off: CutOff,
    },
}

/// The cut-off of a tenant or subject whose sessions were all revoked. It covers sessions by the
/// millisecond of their creation, which is part of their identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CutOff {
    /// The latest time of creation that is covered.
    pub up_to: Timestamp,
    /// A session that is not covered, although it was created before the cut-off.
    pub spared: Option<SessionId>,
}

impl CutOff {
    /// Returns whether the cut-off covers a session.
    pub fn covers(&self, session: SessionId) -> bool {
        session.created_millis() <= self.up_to.millis() && self.spared != Some(session)
    }

    /// Returns the cut-off that covers exactly the sessions that at least one of the two covers.
    pub fn union(self, other: Self) -> Self {
        let (earlier, later) =
            if self.up_to <= other.up_to { (self, other) } else { (other, self) };
        Self { spared: later.spared.filter(|spared| !earlier.covers(*spared)), ..later }
    }
}

/// Returns the latest instant of those cut-offs that cover a session, if any does. The cut-offs are
/// those of the session's tenant and of its subject.
pub fn covered_up_to(
    cut_offs: impl IntoIterator<Item = CutOff>,
    session: SessionId,
) -> Option<Timestamp> {
    let covering = cut_offs.into_iter().filter(|cut_off| cut_off.covers(session));
    covering.map(|cut_off| cut_off.up_to).max()
}

/// The separator between a tenant and a subject. It is a control character, so neither can contain
/// it.
const SEPARATOR: char = '\u{1f}';

/// Returns the key under which a cut-off of a tenant, or of one of its subjects, is kept.
pub fn cut_off_key(tenant: &str, subject: Option<&str>) -> String {
    match subject {
        None => tenant.to_owned(),
        Some(subject) => format!("{tenant}{SEPARATOR}{subject}"),
    }
}

/// Splits a [`cut_off_key`] into the tenant and the subject.
pub fn read_cut_off_key(key: &str) -> (&str, Option<&str>) {
    match key.split_once(SEPARATOR) {
        None => (key, None),
        Some((tenant, subject)) => (tenant, Some(subject)),
    }
}

impl Revoked {
    /// Returns the cut-off, if the value revokes all sessions of a tenant or a subject.
    pub fn cut_off(&self) -> Option<CutOff> {
        match self {
            Self::Session(_) | Self::Token(_) => None,
            Self::Tenant { up_to, .. } => Some(CutOff { up_to: *up_to, spared: None }),
            Self::Subject { cut_off, .. } => Some(*cut_off),
        }
    }

    /// Replaces the cut-off, if the value has one.
    fn with_cut_off(self, cut_off: CutOff) -> Self {
        match self {
            Self::Tenant { tenant, .. } => Self::Tenant { tenant, up_to: cut_off.up_to },
            Self::Subject { tenant, subject, .. } => Self::Subject { tenant, subject, cut_off },
            other @ (Self::Session(_) | Self::Token(_)) => other,
        }
    }

    /// Creates the value for all sessions of a tenant, or of one of its subjects, that a cut-off
    /// covers.
    pub fn all(tenant: Tenant, subject: Option<Subject>, cut_off: CutOff) -> Self {
        match subject {
            None => Self::Tenant { tenant, up_to: cut_off.up_to },
            Some(subject) => Self::Subject { tenant, subject, cut_off },
        }
    }
}

/// A row of the blacklist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlacklistEntry {
    /// The tokens or sessions that the entry stops.
    pub revoked: Revoked,
    /// The tenant of the sessions concerned.
    pub tenant: Tenant,
    /// The subject of the sessions concerned, unless the entry concerns a whole tenant.
    pub subject: Option<Subject>,
    /// The session concerned, if the entry concerns only one.
    pub session_id: Option<SessionId>,
    /// The reason for the revocation.
    pub reason: EndReason,
    /// The note of the caller that made the revocation.
    pub note: Note,
    /// The instant of the revocation.
    pub revoked_at: Timestamp,
    /// The instant from which the entry may be deleted. Every token that it stops has expired by
    /// then.
    pub expires_at: Timestamp,
    /// True if some sessions that the entry covers may not have been marked as ended yet.
    pub unfinished: bool,
}

/// The parts of an earlier entry that are merged into the entry that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierEntry {
    /// The cut-off, if the entry revokes all sessions of a tenant or a subject.
    pub cut_off: Option<CutOff>,
    /// The instant from which the earlier entry could have been deleted.
    pub expires_at: Timestamp,
    /// True if some sessions that the earlier entry covers may not have been marked as ended yet.
    pub unfinished: bool,
}

/// An entry is kept for this much longer than its tokens are valid, because clocks may disagree.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);

impl BlacklistEntry {
    /// Creates the entry that stops all tokens of a session that ends at `ended.at`.
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
            unfinished: false,
        }
    }

    /// Ends a session. Returns the ended session and the entry that stops its tokens.
    pub fn end(session: Session, ended: Ended) -> (Session, Self) {
        let entry = Self::for_session(&session, &ended);
        (session.end(ended), entry)
    }

    /// Creates the entry that stops the access token that a session had before a refresh at `now`.
    pub fn superseded(session: &Session, now: Timestamp) -> Self {
        let token_expires_at =
            session.policy.access_token_expiry(session.refreshed_at, session.idle_expires_at);
        let ended = Ended { at: now, reason: EndReason::Unspecified, note: Note::default() };
        Self::for_token(session, session.access_token_id, token_expires_at, &ended)
    }

    /// Creates the entry that stops all access tokens that a session has at `now`.
    pub fn for_access_tokens(session: &Session, now: Timestamp) -> Self {
        let ended = Ended { at: now, reason: EndReason::Unspecified, note: Note::default() };
        Self {
            revoked: Revoked::Token(session.authentication_id().token_id()),
            ..Self::for_session(session, &ended)
        }
    }

    /// Creates the entry that stops all sessions of a tenant, or of one of its subjects, that a
    /// cut-off covers, including sessions without a row. The entry is kept for the longest lifetime
    /// of a token, and in any case until all these sessions have been marked as ended.
    pub fn for_all(
        tenant: &Tenant,
        subject: Option<&Subject>,
        cut_off: CutOff,
        ended: &Ended,
        longest_token: Duration,
    ) -> Self {
        Self {
            revoked: Revoked::all(tenant.clone(), subject.cloned(), cut_off),
            tenant: tenant.clone(),
            subject: subject.cloned(),
            session_id: None,
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: cut_off.up_to.max(ended.at).plus(longest_token).plus(RETENTION_MARGIN),
            unfinished: true,
        }
    }

    /// Merges an earlier entry for the same target into this entry, which replaces it. The result
    /// covers everything that either of the two covers, and is kept until both of them could have
    /// been deleted. Its time, reason and note come from the entry with the later cut-off. `end`
    /// reads the time, reason and note of the earlier entry; it is called only if the earlier entry
    /// has the later cut-off.
    pub fn in_place_of<E>(
        mut self,
        earlier: &EarlierEntry,
        end: impl FnOnce() -> Result<Ended, E>,
    ) -> Result<Self, E> {
        if let (Some(before), Some(cut_off)) = (earlier.cut_off, self.revoked.cut_off()) {
            self.revoked = self.revoked.with_cut_off(before.union(cut_off));
            if before.up_to > cut_off.up_to {
                let Ended { at, reason, note } = end()?;
                (self.revoked_at, self.reason, self.note) = (at, reason, note);
            }
        }
        self.expires_at = self.expires_at.max(earlier.expires_at);
        self.unfinished |= earlier.unfinished;
        Ok(self)
    }

    /// Returns the instant from which the entry for a session may be deleted. The session ends at
    /// `now`, and the entry stops all its tokens.
    pub fn expiry_for(session: &Session, now: Timestamp) -> Timestamp {
        session.last_token_expiry(now).max(now).plus(RETENTION_MARGIN)
    }

    /// Creates the entry that stops one access token of a session. The token expires at
    /// `token_expires_at`.
    pub fn for_token(
        session: &Session,
        token: TokenId,
        token_expires_at: Timestamp,
        ended: &Ended,
    ) -> Self {
        Self {
            revoked: Revoked::Token(token),
            expires_at: token_expires_at.max(ended.at).plus(RETENTION_MARGIN),
            ..Self::for_session(session, ended)
        }
    }
}

/// The state of a tenant or a subject before a revocation of all its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The newest session, live or ended.
    pub newest: Option<SessionId>,
    /// The cut-off of its blacklist entry, if it has one.
    pub covered: Option<CutOff>,
}

impl Coverage {
    /// Returns the cut-off of a revocation at `now`, united with the existing cut-off. The result
    /// is later than `now` if the clock has been set back since the newest session was created, or
    /// since the existing cut-off was made.
    pub fn cut_off(&self, now: Timestamp, spared: Option<SessionId>) -> CutOff {
        let newest =
            self.newest.map(|id| Timestamp::from_micros(id.created_millis().saturating_mul(1000)));
        let up_to = newest.map_or(now, |newest| newest.max(now));
        let up_to = self.covered.map_or(up_to, |covered| covered.up_to.max(up_to));
        let cut_off = CutOff { up_to, spared };
        self.covered.map_or(cut_off, |covered| covered.union(cut_off))
    }

    /// Returns whether a cut-off is the first one, or covers the newest session, which the existing
    /// cut-off does not cover. Repeating a revocation changes nothing unless a session was created
    /// in between.
    pub fn is_changed_by(&self, cut_off: CutOff) -> bool {
        let Some(covered) = self.covered else { return true };
        self.newest.is_some_and(|newest| cut_off.covers(newest) && !covered.covers(newest))
    }
}

/// A request to revoke something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The token, session, subject or tenant to be revoked.
    pub target: RevocationTarget,
    /// The time, the reason and the note.
    pub ended: Ended,
    /// True if new entries may be added to the blacklist. If the blacklist is full, this is false,
    /// and a revocation that would add an entry is not carried out.
    pub may_add: bool,
    /// The longest lifetime of an access token. Tokens whose session is not in the database are
    /// assumed to have this lifetime.
    pub longest_token: Duration,
    /// The entry to be written if an authentic token names a session that is not live in the
    /// database. If, for example, an older copy of the database was restored that lacks the
    /// session, nothing else would stop the token.
    pub fallback_entry: Option<BlacklistEntry>,
}

impl Revocation {
    /// Creates a revocation that writes an entry again, because the database has lost it. If the
    /// entry stops a session that is live in the database, the revocation also ends that session.
    /// `owner` is stored only as information for people, and may be unknown.
    pub fn of_lost(
        revoked: Revoked,
        owner: Option<(Tenant, Subject)>,
        ended: Ended,
        expires_at: Timestamp,
    ) -> Self {
        let session_id = match &revoked {
            Revoked::Session(id) => Some(*id),
            Revoked::Token(_) | Revoked::Tenant { .. } | Revoked::Subject { .. } => None,
        };
        let unfinished = revoked.cut_off().is_some();
        let (tenant, subject) = match (&revoked, owner) {
            (Revoked::Tenant { tenant, .. }, _) => (tenant.clone(), None),
            (Revoked::Subject { tenant, subject, .. }, _) => {
                (tenant.clone(), Some(subject.clone()))
            }
            (_, Some((tenant, subject))) => (tenant, Some(subject)),
            (_, None) => (Tenant::default(), None),
        };
        let entry = BlacklistEntry {
            revoked,
            tenant,
            subject,
            session_id,
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at,
            unfinished,
        };
        let (target, fallback_entry) = match session_id {
            Some(id) => (RevocationTarget::Session(id), Some(entry)),
            None => (RevocationTarget::Lost(entry), None),
        };
        Self { target, ended, may_add: true, longest_token: Duration::ZERO, fallback_entry }
    }
}

/// The target of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationTarget {
    /// One session.
    Session(SessionId),
    /// One access token of a session, with its expiry.
    Token {
        /// The `jti`.
        token: TokenId,
        /// The `sid`.
        session_id: SessionId,
        /// The `exp`.
        expires_at: Timestamp,
    },
    /// All live sessions of a subject, or all but one.
    Subject {
        /// The subject's tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The session that is spared, if any.
        except: Option<SessionId>,
    },
    /// All current sessions of a tenant.
    Tenant(Tenant),
    /// Tokens or sessions whose entry the database has lost. Only this entry is written, and no
    /// session is ended.
    Lost(BlacklistEntry),
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
        assert!(
            entry.expires_at <= session.idle_expires_at.plus(RETENTION_MARGIN),
            "and not much longer"
        );
    }

    fn session_at(millis: u64) -> SessionId {
        SessionId::new(START.plus(Duration::from_millis(millis)), [0xff; 10])
    }

    fn up_to(micros: u64, spared: Option<u64>) -> CutOff {
        CutOff { up_to: START.plus(Duration::from_micros(micros)), spared: spared.map(session_at) }
    }

    #[test]
    fn a_revocation_is_a_change_if_it_covers_the_newest_session_for_the_first_time() {
        for (newest, covered, spared, is_change) in [
            (None, None, None, true),
            (Some(5), None, None, true),
            (None, Some(up_to(5_000, None)), None, false),
            (Some(5), Some(up_to(4_999, None)), None, true),
            (Some(5), Some(up_to(4_999, None)), Some(5), false),
            (Some(5), Some(up_to(5_000, None)), None, false),
            (Some(5), Some(up_to(5_000, Some(5))), None, true),
            (Some(5), Some(up_to(5_000, Some(5))), Some(5), false),
        ] {
            let coverage = Coverage { newest: newest.map(session_at), covered };
            let cut_off = coverage.cut_off(START, spared.map(session_at));
            assert_eq!(coverage.is_changed_by(cut_off), is_change, "{coverage:?}");
            let after = Coverage { covered: Some(cut_off), ..coverage };
            let again = after.cut_off(START, spared.map(session_at));
            assert!(!after.is_changed_by(again), "a repetition changes nothing: {after:?}");
        }
    }

    /// A session that the later cut-off spares is still covered if the earlier one covers it.
    #[test]
    fn the_union_of_two_cut_offs_covers_exactly_what_either_of_them_covers() {
        let spared = [None, Some(1), Some(3), Some(5), Some(9)];
        let cut_offs = || {
            [0, 2_000, 4_000, 6_000]
                .into_iter()
                .flat_map(|micros| spared.map(|spared| up_to(micros, spared)))
        };
        for one in cut_offs() {
            for other in cut_offs() {
                for session in (0..10).map(session_at) {
                    let either = one.covers(session) || other.covers(session);
                    assert_eq!(
                        one.union(other).covers(session),
                        either,
                        "{one:?} {other:?} {session:?}"
                    );
                }
                assert_eq!(
                    one.union(other).union(other),
                    one.union(other),
                    "applying it twice changes nothing"
                );
            }
        }
    }

    #[test]
    fn an_entry_outlives_the_tokens_of_the_last_replay_whatever_the_clock_says() {
        for (replay, window) in [(Replay::Grace, 10), (Replay::UntilUsed, 300)] {
            let mut session = session();
            session.policy.replay = replay;
            let last_replay = START.plus(Duration::from_secs(window));
            let last_expiry =
                session.policy.access_token_expiry(last_replay, session.idle_expires_at);
            let at = START.minus(Duration::from_secs(3600));
            let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
            let entry = BlacklistEntry::for_session(&session, &ended);
            assert!(entry.expires_at >= last_expiry.plus(RETENTION_MARGIN), "{replay:?}");
        }
    }

    #[test]
    fn an_entry_outlives_tokens_that_were_issued_before_the_clock_was_set_back() {
        let session = session();
        let at = START.minus(Duration::from_secs(3600));
        let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
        let issued_before_the_jump =
            session.policy.access_token_expiry(START, session.idle_expires_at);
        assert!(BlacklistEntry::for_session(&session, &ended).expires_at >= issued_before_the_jump);
    }
}
