//! Revocations, the blacklist entries that they write, and the time for which an entry must be
//! kept.

use std::time::Duration;

use super::{
    ids::{SessionId, TokenId},
    session::{EndReason, Ended, Session},
    text::{Note, Subject, Tenant},
    time::Timestamp,
};

/// A position in the order in which revocations were committed. The first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub i64);

/// A history of the database. A standby that takes over begins a new one, which may lack the last
/// commits of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline(pub i64);

/// A position together with the timeline that it belongs to. In another timeline, the same
/// position may belong to another revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition {
    /// The timeline.
    pub timeline: Timeline,
    /// The position.
    pub seq: Seq,
}

/// Tokens or sessions that are no longer accepted.
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
        /// The last instant of creation that is covered.
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
    /// The last instant of creation that is covered.
    pub up_to: Timestamp,
    /// A session that is not covered, although it was created before the cut-off.
    pub spared: Option<SessionId>,
}

impl CutOff {
    /// Returns whether it covers a session.
    pub fn covers(&self, session: SessionId) -> bool {
        session.created_millis() <= self.up_to.millis() && self.spared != Some(session)
    }

    /// Returns the cut-off that covers each session that either of the two covers.
    pub fn union(self, other: Self) -> Self {
        let (earlier, later) =
            if self.up_to <= other.up_to { (self, other) } else { (other, self) };
        Self { spared: later.spared.filter(|spared| !earlier.covers(*spared)), ..later }
    }
}

/// Returns the last instant up to which all sessions of a session's tenant or subject were revoked,
/// if one of their cut-offs covers the session.
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
    /// Returns its cut-off, if it revokes all sessions of a tenant or a subject.
    pub fn cut_off(&self) -> Option<CutOff> {
        match self {
            Self::Session(_) | Self::Token(_) => None,
            Self::Tenant { up_to, .. } => Some(CutOff { up_to: *up_to, spared: None }),
            Self::Subject { cut_off, .. } => Some(*cut_off),
        }
    }

    /// Returns the value with another cut-off, if it has one.
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
    /// The tokens or sessions that it stops.
    pub revoked: Revoked,
    /// The tenant of the sessions concerned.
    pub tenant: Tenant,
    /// The subject of the sessions concerned, unless it concerns a whole tenant.
    pub subject: Option<Subject>,
    /// The session concerned, if it is only one.
    pub session_id: Option<SessionId>,
    /// The reason of the revocation.
    pub reason: EndReason,
    /// The note of whoever revoked.
    pub note: Note,
    /// The instant of the revocation.
    pub revoked_at: Timestamp,
    /// The instant from which it may be deleted. Every token that it stops has expired by then.
    pub expires_at: Timestamp,
    /// True if sessions that it covers may still have to be marked as ended.
    pub unfinished: bool,
}

/// The parts of an earlier entry that the entry in its place takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierEntry {
    /// The sessions that it covers, if it is about all of a tenant's or a subject's.
    pub cut_off: Option<CutOff>,
    /// The instant from which it may be deleted.
    pub expires_at: Timestamp,
    /// True if sessions that it covers may be left to be ended.
    pub unfinished: bool,
}

/// An entry is kept for this much longer than its tokens are valid, because clocks may disagree.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);

impl BlacklistEntry {
    /// Creates the entry that stops all tokens of a session that ends now. None of its tokens was
    /// issued later than now or, if the clock has been set back since, later than the end of its
    /// replay window.
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

    /// Creates the entry that stops all sessions of a tenant, or of one of its subjects, that a
    /// cut-off covers, including sessions without a row. It is kept for the longest lifetime of a
    /// token, and at least while sessions have to be marked as ended.
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

    /// Returns this entry with what it takes over from an earlier one for the same thing: together
    /// they cover what either covers, and are kept as long as either. The reason and the note are
    /// those of the later cut-off, so `end` is called only if that is the earlier entry's.
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

    /// Returns the instant from which an entry may be deleted that stops every token of this
    /// session issued until `now`.
    pub fn expiry_for(session: &Session, now: Timestamp) -> Timestamp {
        let last_issue = now.max(session.last_replay());
        let last_expiry = session.policy.access_token_expiry(last_issue, session.idle_expires_at);
        last_expiry.max(now).plus(RETENTION_MARGIN)
    }

    /// Creates the entry that stops one access token of a session, which expires at
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
    /// Returns the cut-off of a revocation at `now`, united with the earlier ones. It lies later
    /// than now if the clock has been set back since a session was created.
    pub fn cut_off(&self, now: Timestamp, spared: Option<SessionId>) -> CutOff {
        let newest =
            self.newest.map(|id| Timestamp::from_micros(id.created_millis().saturating_mul(1000)));
        let up_to = newest.map_or(now, |newest| newest.max(now));
        let up_to = self.covered.map_or(up_to, |covered| covered.up_to.max(up_to));
        let cut_off = CutOff { up_to, spared };
        self.covered.map_or(cut_off, |covered| covered.union(cut_off))
    }

    /// Returns whether a cut-off is the first one, or covers the newest session while the entry
    /// does not. Repeating a revocation is no change unless a session was created in between.
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
    /// True if new entries may be added to the blacklist. If not, because it is full, a revocation
    /// that would add one is not carried out.
    pub may_add: bool,
    /// The longest lifetime of an access token. It is assumed for tokens whose session is not in
    /// the database.
    pub longest_token: Duration,
    /// The entry to be written if the database has no such live session although an authentic token
    /// names it. In that case an older copy of the database was restored, and nothing else would
    /// stop the token.
    pub fallback_entry: Option<BlacklistEntry>,
}

impl Revocation {
    /// Creates a revocation that writes an entry again that the database has lost, and ends the
    /// session that the entry stops, if the database has it. The tenant and the subject only inform
    /// people, and may be unknown.
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
        /// The session that stays.
        except: Option<SessionId>,
    },
    /// All current sessions of a tenant.
    Tenant(Tenant),
    /// Something whose entry the database has lost, and of which nothing but this entry is to be
    /// written.
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
            assert!(!after.is_changed_by(again), "repeating is no change: {after:?}");
        }
    }

    /// The session that the later cut-off spares may be covered by the earlier one.
    #[test]
    fn two_cut_offs_cover_what_either_covers() {
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
                    "also when it is applied twice"
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
    fn a_clock_set_back_before_the_revocation_does_not_shorten_the_entry() {
        let session = session();
        let at = START.minus(Duration::from_secs(3600));
        let ended = Ended { at, reason: EndReason::SignedOut, note: Note::default() };
        let issued_before_the_jump =
            session.policy.access_token_expiry(START, session.idle_expires_at);
        assert!(BlacklistEntry::for_session(&session, &ended).expires_at >= issued_before_the_jump);
    }
}
