//! Decides which sessions a revocation ends, which blacklist entry it writes, and what the caller
//! is told.
//!
//! A database engine reads the state that a decision needs, while it holds the locks that protect
//! that state. Then it writes what was decided.

use super::{
    cut_off::{Basis, CutOff, CutOffKey, Scope},
    ids::SessionId,
    revocation::{BlacklistEntry, Coverage, Revocation, RevocationTarget, Revoked},
    session::Session,
    text::{Subject, Tenant},
    time::Timestamp,
};

/// The largest number of a subject's sessions that are ended in the transaction of its revocation.
/// The job that ends covered sessions marks the others as ended later.
pub const MOST_ENDED_AT_ONCE: usize = 256;

/// The state of the database that the decision on a revocation depends on.
pub trait RevocationState {
    /// The error of a failed read.
    type Error;

    /// Reads a session, whatever its state.
    fn session(&mut self, id: SessionId) -> Result<Option<Session>, Self::Error>;

    /// Returns whether the blacklist has an entry for the same token, session or scope.
    fn has_entry(&mut self, revoked: &Revoked) -> Result<bool, Self::Error>;

    /// Reads the state of the sessions of a scope.
    fn survey(&mut self, key: &CutOffKey) -> Result<Survey, Self::Error>;

    /// Reads up to [`MOST_ENDED_AT_ONCE`] live sessions of a subject, the oldest first.
    fn live_sessions(
        &mut self,
        tenant: &Tenant,
        subject: &Subject,
    ) -> Result<OldestLive, Self::Error>;
}

/// The state of the sessions of a scope before they are revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The newest session of the scope, and the cut-off of its blacklist entry.
    pub coverage: Coverage,
    /// The number of live sessions that the blacklist entry does not cover, if they were counted.
    pub uncovered: Option<UncoveredCount>,
}

/// The largest number of sessions that are counted before a revocation is acknowledged. A count of
/// all sessions of a large tenant would delay its revocation by seconds.
pub const MOST_COUNTED: i64 = 10_000;

/// A count of the live sessions of a tenant or a subject that its blacklist entry does not cover.
/// The covered sessions have ended already, although the job that marks them as ended may not have
/// reached their rows yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UncoveredCount {
    /// The number of these sessions; [`MOST_COUNTED`] means so many or more.
    pub sessions: i64,
    /// The cut-off of the entry when the sessions were counted. If the entry has a different
    /// cut-off now, the number must not be used.
    pub covered: Option<CutOff>,
}

impl Survey {
    /// Returns the number of live sessions that the entry does not cover, if the number is known.
    fn uncovered(&self) -> Option<i64> {
        let counted = self.uncovered.filter(|counted| counted.covered == self.coverage.covered);
        counted.map(|counted| counted.sessions)
    }
}

/// The oldest live sessions of a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OldestLive {
    /// The sessions, the oldest first.
    pub sessions: Vec<Session>,
    /// True if the subject has more live sessions.
    pub has_more: bool,
}

/// The decision on a revocation: what it does, and what the caller is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevocationDecision {
    /// The blacklist entries to be written. Each replaces an older entry for the same target.
    pub entries: Vec<BlacklistEntry>,
    /// The sessions that end, in their ended state.
    pub ended: Vec<Session>,
    /// True if the database has the session to be revoked, or the session of the token. Always true
    /// for cut-offs.
    pub found: bool,
    /// True if nothing is done because the blacklist has no room for the entries.
    pub full: bool,
    /// True if the revocation stops anything that was not stopped before.
    pub changed: bool,
    /// The number of live sessions that end. For a tenant or a subject, sessions that its entry
    /// already covered are not counted, because they had ended before. Zero for the targets whose
    /// sessions only the job that ends covered sessions counts.
    pub sessions: i64,
}

impl RevocationDecision {
    fn nothing(found: bool) -> Self {
        Self { found, ..Self::default() }
    }

    fn no_room(found: bool) -> Self {
        Self { full: true, ..Self::nothing(found) }
    }
}

impl Revocation {
    /// Decides the revocation.
    pub fn decide<S: RevocationState>(
        &self,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        match &self.target {
            RevocationTarget::Session(id) => match state.session(*id)? {
                Some(session) if session.is_live(self.ended.at) => Ok(self.end(session)),
                session => self.stop_without_session(session.as_ref(), state),
            },
            RevocationTarget::Token { token, session_id, expires_at } => {
                match state.session(*session_id)? {
                    Some(session) if session.is_live(self.ended.at) => {
                        let entry =
                            BlacklistEntry::for_token(&session, *token, *expires_at, &self.ended);
                        self.add(entry, true, state)
                    }
                    session => self.stop_without_session(session.as_ref(), state),
                }
            }
            RevocationTarget::Subject { tenant, subject, except } => {
                self.end_subject(tenant, subject, *except, state)
            }
            RevocationTarget::Subjects { tenant, subjects } => {
                self.cut_off_subjects(tenant, subjects, state)
            }
            RevocationTarget::Tenant(tenant) => self.end_tenant(tenant, state),
            RevocationTarget::Sessions { key, up_to } => self.cut_off_scope(key, *up_to, state),
            RevocationTarget::Lost(entry) => self.add(entry.clone(), false, state),
        }
    }

    /// Ends a live session and stops its tokens.
    fn end(&self, session: Session) -> RevocationDecision {
        if self.room == 0 {
            return RevocationDecision::no_room(true);
        }
        let (session, entry) = BlacklistEntry::end(session, self.ended.clone());
        RevocationDecision {
            entries: vec![entry],
            ended: vec![session],
            changed: true,
            sessions: 1,
            ..RevocationDecision::nothing(true)
        }
    }

    /// Stops the tokens of a session that is not live. A session that was ended has an entry of its
    /// own, which stops all its tokens. A session that is unknown, or that has expired although one
    /// of its tokens is still valid, has no entry, so the fallback entry is added.
    fn stop_without_session<S: RevocationState>(
        &self,
        session: Option<&Session>,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        match &self.fallback_entry {
            Some(entry) if session.is_none_or(|session| session.ended.is_none()) => {
                self.add(entry.clone(), session.is_some(), state)
            }
            _ => Ok(RevocationDecision::nothing(session.is_some())),
        }
    }

    /// Adds an entry without ending a session. If the blacklist has no room, this is possible only
    /// if the entry replaces an older one.
    fn add<S: RevocationState>(
        &self,
        entry: BlacklistEntry,
        found: bool,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        let is_new = !state.has_entry(&entry.revoked)?;
        if is_new && self.room == 0 {
            return Ok(RevocationDecision::no_room(found));
        }
        Ok(RevocationDecision {
            entries: vec![entry],
            changed: is_new,
            ..RevocationDecision::nothing(found)
        })
    }

    fn end_tenant<S: RevocationState>(
        &self,
        tenant: &Tenant,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        let key = CutOffKey::created(Scope::Tenant(tenant.clone()));
        let survey = state.survey(&key)?;
        let Survey { coverage, .. } = survey;
        if coverage.covered.is_none() && self.room == 0 {
            return Ok(RevocationDecision::no_room(true));
        }
        let cut_off = coverage.cut_off(self.ended.at, None);
        let entry = self.entry(&key, cut_off);
        Ok(RevocationDecision {
            entries: vec![entry],
            changed: coverage.is_changed_by(cut_off),
            sessions: survey.uncovered().unwrap_or_default(),
            ..RevocationDecision::nothing(true)
        })
    }

    /// Writes one entry for each of several subjects. Their sessions are ended by the job that ends
    /// covered sessions, because they may be too many for one transaction.
    fn cut_off_subjects<S: RevocationState>(
        &self,
        tenant: &Tenant,
        subjects: &[Subject],
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        let mut decision = RevocationDecision::nothing(true);
        let mut added = 0;
        for subject in subjects {
            let key = CutOffKey::created(Scope::Subject(tenant.clone(), subject.clone()));
            let Survey { coverage, .. } = state.survey(&key)?;
            let cut_off = coverage.cut_off(self.ended.at, None);
            added += usize::from(coverage.covered.is_none());
            decision.changed |= coverage.is_changed_by(cut_off);
            decision.entries.push(self.entry(&key, cut_off));
        }
        Ok(if added > self.room { RevocationDecision::no_room(true) } else { decision })
    }

    /// Writes the entry of a scope. Nothing is counted, because there may be very many sessions.
    fn cut_off_scope<S: RevocationState>(
        &self,
        key: &CutOffKey,
        up_to: Option<Timestamp>,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        let Survey { coverage, .. } = state.survey(key)?;
        if coverage.covered.is_none() && self.room == 0 {
            return Ok(RevocationDecision::no_room(true));
        }
        let (cut_off, changed) = match (up_to, key.basis()) {
            (None, Basis::Creation) => {
                let cut_off = coverage.cut_off(self.ended.at, None);
                (cut_off, coverage.is_changed_by(cut_off))
            }
            (up_to, _) => {
                let cut_off = coverage.with(CutOff::up_to(up_to.unwrap_or(self.ended.at)));
                (cut_off, coverage.covered != Some(cut_off))
            }
        };
        Ok(RevocationDecision {
            entries: vec![self.entry(key, cut_off)],
            changed,
            ..RevocationDecision::nothing(true)
        })
    }

    fn entry(&self, key: &CutOffKey, cut_off: CutOff) -> BlacklistEntry {
        BlacklistEntry::for_all(key, cut_off, &self.ended, self.longest_token)
    }

    /// Writes the entry of a subject, and ends up to [`MOST_ENDED_AT_ONCE`] of its sessions. The
    /// subject's entry stops their tokens, so the sessions need no entries of their own.
    fn end_subject<S: RevocationState>(
        &self,
        tenant: &Tenant,
        subject: &Subject,
        except: Option<SessionId>,
        state: &mut S,
    ) -> Result<RevocationDecision, S::Error> {
        let key = CutOffKey::created(Scope::Subject(tenant.clone(), subject.clone()));
        let survey = state.survey(&key)?;
        let Survey { coverage, .. } = survey;
        if coverage.covered.is_none() && self.room == 0 {
            return Ok(RevocationDecision::no_room(true));
        }
        let cut_off = coverage.cut_off(self.ended.at, except);
        let live = state.live_sessions(tenant, subject)?;
        let mut entry = self.entry(&key, cut_off);
        entry.unfinished = live.has_more;
        let (mut ended, mut uncovered) = (vec![], 0);
        for session in
            live.sessions.into_iter().filter(|session| cut_off.covers_created(session.id))
        {
            entry.expires_at =
                entry.expires_at.max(BlacklistEntry::expiry_for(&session, self.ended.at));
            let was_covered =
                coverage.covered.is_some_and(|covered| covered.covers_created(session.id));
            uncovered += i64::from(!was_covered);
            ended.push(session.end(self.ended.clone()));
        }
        let sessions =
            if live.has_more { survey.uncovered().unwrap_or(uncovered) } else { uncovered };
        Ok(RevocationDecision {
            entries: vec![entry],
            ended,
            changed: coverage.is_changed_by(cut_off) || sessions > 0,
            sessions,
            ..RevocationDecision::nothing(true)
        })
    }
}
