//! Revocations, the blacklist entries that they write, and the time for which an entry must be
//! kept.

use std::time::Duration;

pub use countersign_verification::revocation::{
    FeedEntry, FeedPosition, RETENTION_MARGIN, Revoked, Seq, Timeline,
};

use super::{
    cut_off::{CutOff, CutOffKey, Scope},
    ids::{SessionId, TokenId},
    session::{EndReason, Ended, Session},
    text::{Note, Subject, Tenant},
    time::Timestamp,
};

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

    /// Creates the entry that stops all sessions that a cut-off covers, including sessions without
    /// a row. The entry is kept for the longest lifetime of a token, and in any case until all
    /// these sessions have been marked as ended.
    pub fn for_all(
        key: &CutOffKey,
        cut_off: CutOff,
        ended: &Ended,
        longest_token: Duration,
    ) -> Self {
        Self {
            revoked: Revoked::Sessions { key: key.clone(), cut_off },
            tenant: key.scope().tenant().cloned().unwrap_or_default(),
            subject: key.scope().subject().cloned(),
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

/// The state of the sessions of a scope before they are revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The newest session of the scope, live or ended. For a client it may be a session with
    /// another client.
    pub newest: Option<SessionId>,
    /// The cut-off of the blacklist entry, if there is one.
    pub covered: Option<CutOff>,
}

impl Coverage {
    /// Returns the cut-off of a revocation at `now` of all sessions that exist, united with the
    /// existing cut-off. The result is later than `now` if the clock has been set back since the
    /// newest session was created, or since the existing cut-off was made.
    pub fn cut_off(&self, now: Timestamp, spared: Option<SessionId>) -> CutOff {
        let newest =
            self.newest.map(|id| Timestamp::from_micros(id.created_millis().saturating_mul(1000)));
        let up_to = newest.map_or(now, |newest| newest.max(now));
        let up_to = self.covered.map_or(up_to, |covered| covered.up_to.max(up_to));
        self.with(CutOff { up_to, spared })
    }

    /// Returns a cut-off, united with the existing one.
    pub fn with(&self, cut_off: CutOff) -> CutOff {
        self.covered.map_or(cut_off, |covered| covered.union(cut_off))
    }

    /// Returns whether a cut-off by creation is the first one, or covers the newest session, which
    /// the existing cut-off does not cover. Repeating a revocation changes nothing unless a session
    /// was created in between.
    pub fn is_changed_by(&self, cut_off: CutOff) -> bool {
        let Some(covered) = self.covered else { return true };
        self.newest
            .is_some_and(|newest| cut_off.covers_created(newest) && !covered.covers_created(newest))
    }
}

/// A request to revoke something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The token, session, subject or tenant to be revoked.
    pub target: RevocationTarget,
    /// The time, the reason and the note.
    pub ended: Ended,
    /// The number of entries that may be added to the blacklist. A revocation that would add more
    /// is not carried out.
    pub room: usize,
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
            Revoked::Token(_) | Revoked::Sessions { .. } => None,
        };
        let unfinished = revoked.cut_off().is_some();
        let (tenant, subject) = match (&revoked, owner) {
            (Revoked::Sessions { key, .. }, _) => {
                (key.scope().tenant().cloned().unwrap_or_default(), key.scope().subject().cloned())
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
        Self { target, ended, room: usize::MAX, longest_token: Duration::ZERO, fallback_entry }
    }
}

impl RevocationTarget {
    /// Returns whether the sessions that end are counted in the transaction of the revocation.
    pub fn is_counted(&self) -> bool {
        !matches!(self, Self::Subjects { .. } | Self::Sessions { .. })
    }

    /// Returns the keys of the cut-offs that a revocation of the target makes.
    pub fn cut_off_keys(&self) -> Vec<CutOffKey> {
        let of_subject = |tenant: &Tenant, subject: &Subject| {
            CutOffKey::created(Scope::Subject(tenant.clone(), subject.clone()))
        };
        match self {
            Self::Session(_) | Self::Token { .. } => vec![],
            Self::Subject { tenant, subject, .. } => vec![of_subject(tenant, subject)],
            Self::Subjects { tenant, subjects } => {
                subjects.iter().map(|subject| of_subject(tenant, subject)).collect()
            }
            Self::Tenant(tenant) => vec![CutOffKey::created(Scope::Tenant(tenant.clone()))],
            Self::Sessions { key, .. } => vec![key.clone()],
            Self::Lost(entry) => match &entry.revoked {
                Revoked::Sessions { key, .. } => vec![key.clone()],
                Revoked::Session(_) | Revoked::Token(_) => vec![],
            },
        }
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
    /// All live sessions of several subjects.
    Subjects {
        /// The tenant of the subjects.
        tenant: Tenant,
        /// The subjects.
        subjects: Vec<Subject>,
    },
    /// All current sessions of a tenant.
    Tenant(Tenant),
    /// The sessions of a scope that exist, or that a given cut-off covers.
    Sessions {
        /// The scope, and the time that the cut-off compares.
        key: CutOffKey,
        /// The latest time that is covered; none for the sessions that exist.
        up_to: Option<Timestamp>,
    },
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
