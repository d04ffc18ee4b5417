//! The refresh state machine, which decides what a presented refresh token does to its session (RFC
//! 9700, section 4.14.2).

use std::sync::Arc;

use super::{
    caller::Reach,
    ids::{SessionId, TokenId},
    key::RefreshKeyId,
    live_policy::LivePolicies,
    policy::{OnRefresh, RefreshMode},
    revocation::BlacklistEntry,
    session::{Device, EndReason, Ended, LineageSecret, Session, State},
    text::{Note, Scope},
    time::Timestamp,
};

/// An attempt to refresh a session with an authentic refresh token. The MAC of the token has been
/// checked, but the session may not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshAttempt {
    /// The session that the token names.
    pub session_id: SessionId,
    /// The generation that the token names.
    pub generation: u32,
    /// The secret that the token carries.
    pub secret: LineageSecret,
    /// The requested scopes; empty for all scopes of the session.
    pub scopes: Vec<Scope>,
    /// The current data of the device, if the request has any.
    pub device: Option<Device>,
    /// The tenants and audiences that the caller is limited to.
    pub reach: Arc<Reach>,
    /// The instant of the attempt.
    pub now: Timestamp,
    /// The `jti` of the next access token, if one is issued.
    pub next_access_token_id: TokenId,
    /// The refresh key under which the next refresh token is issued.
    pub next_key: RefreshKeyId,
    /// The policies whose limits reach live sessions.
    pub live_policies: Arc<LivePolicies>,
}

/// The judgement of an attempt by the row of its session alone. [`RefreshDecision`] also takes
/// revocations of the tenant and the subject into account.
#[derive(Clone, Debug, PartialEq)]
pub enum RefreshVerdict {
    /// The attempt is accepted, and the session changes to this state. Its refresh token stays the
    /// same if its policy says so.
    Rotate(Box<Session>),
    /// The token was exchanged before, but the client may never have received the next token. The
    /// answer is repeated, and nothing changes.
    Replay,
    /// The token was exchanged too long ago, or the next token has been exchanged since. Two
    /// parties must be assumed to hold the token, so the session ends.
    Reuse,
    /// The session is live by its own limits, but has expired, for this reason, by the stricter
    /// limits that reach it now. So it ends.
    Expire(EndReason),
    /// The attempt is refused, and nothing changes.
    Refuse(RefreshRefusal),
}

/// The decision about an attempt: what changes in the database, and which answer the caller gets.
#[derive(Clone, Debug, PartialEq)]
pub enum RefreshDecision {
    /// The attempt is accepted, and the session is rotated.
    Rotate {
        /// The session after the rotation.
        session: Box<Session>,
        /// The blacklist entry that stops the previous access token, if the session's policy asks
        /// for that.
        entry: Option<BlacklistEntry>,
    },
    /// The answer is repeated, and nothing changes.
    Replay {
        /// The session.
        session: Box<Session>,
        /// True if the rotation whose answer is repeated may have written a blacklist entry that
        /// some replica does not know yet.
        may_have_entry: bool,
    },
    /// The session ends.
    End {
        /// The session in its ended state.
        session: Box<Session>,
        /// The blacklist entry that stops the tokens of the session.
        entry: BlacklistEntry,
    },
    /// The attempt is refused, and nothing changes.
    Refuse(RefreshRefusal),
}

impl RefreshDecision {
    /// Decides an attempt. `session` is the session that the attempt names, if it exists.
    /// `is_covered` returns whether a cut-off covers the session. Such a session has ended, although the job that marks it as ended may not have
    /// reached its row yet.
    pub fn of<E>(
        attempt: &RefreshAttempt,
        session: Option<Session>,
        is_covered: impl FnOnce(&Session) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let Some(session) = session else { return Ok(Self::Refuse(RefreshRefusal::Unknown)) };
        let verdict = session.judge_refresh(attempt);
        if !matches!(verdict, RefreshVerdict::Refuse(_)) && is_covered(&session)? {
            return Ok(Self::Refuse(RefreshRefusal::Ended));
        }
        Ok(match verdict {
            RefreshVerdict::Refuse(refusal) => Self::Refuse(refusal),
            RefreshVerdict::Replay => Self::Replay {
                may_have_entry: session.policy.on_refresh == OnRefresh::RevokeAccessToken,
                session: Box::new(session),
            },
            RefreshVerdict::Reuse => Self::end(session, attempt.now, EndReason::RefreshTokenReused),
            RefreshVerdict::Expire(reason) => Self::end(session, attempt.now, reason),
            RefreshVerdict::Rotate(next) => {
                let entry = match next.policy.on_refresh {
                    OnRefresh::KeepAccessToken => None,
                    OnRefresh::RevokeAccessToken => {
                        Some(BlacklistEntry::superseded(&session, attempt.now))
                    }
                };
                Self::Rotate { session: next, entry }
            }
        })
    }

    fn end(session: Session, at: Timestamp, reason: EndReason) -> Self {
        let ended = Ended { at, reason, note: Note::default() };
        let (session, entry) = BlacklistEntry::end(session, ended);
        Self::End { session: Box::new(session), entry }
    }
}

/// The reason why an attempt is refused without any change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshRefusal {
    /// There is no such session, or the token does not carry its secret, or the caller is limited
    /// to other tenants or audiences.
    Unknown,
    /// The token's generation is later than any that was issued: an older copy of the database was
    /// restored, or a refresh key leaked.
    NeverIssued {
        /// The session's current generation.
        current: u32,
    },
    /// The session was ended.
    Ended,
    /// The session was not refreshed in time.
    ExpiredIdle,
    /// The session reached the end of its lifetime.
    ExpiredAbsolute,
    /// The attempt asks for this scope, which the session does not have.
    ScopeNotGranted(Scope),
}

impl Session {
    /// Judges an attempt. These are the only rules for rotation, replay and reuse, except that the
    /// fast path of PostgreSQL repeats the conditions of a rotation in SQL.
    ///
    /// An earlier generation is judged by the limits under which the current one was issued, even
    /// if stricter ones reach the session: a client that repeats a request in time must not lose
    /// its session because the configuration has changed meanwhile.
    pub fn judge_refresh(&self, attempt: &RefreshAttempt) -> RefreshVerdict {
        use RefreshVerdict::{Expire, Refuse, Replay, Reuse, Rotate};

        if attempt.session_id != self.id || attempt.secret != self.lineage.secret {
            return Refuse(RefreshRefusal::Unknown);
        }
        if !attempt.reach.has_tenant(&self.tenant)
            || !self.audience.iter().all(|one| attempt.reach.has_audience(one))
        {
            return Refuse(RefreshRefusal::Unknown);
        }
        match self.state(attempt.now) {
            State::Live => {}
            State::Ended { reason: EndReason::ExpiredIdle, .. } => {
                return Refuse(RefreshRefusal::ExpiredIdle);
            }
            State::Ended { reason: EndReason::ExpiredAbsolute, .. } => {
                return Refuse(RefreshRefusal::ExpiredAbsolute);
            }
            State::Ended { .. } => return Refuse(RefreshRefusal::Ended),
        }
        let stricter = self.tightened(&attempt.live_policies, attempt.now);
        if let Some(State::Ended { reason, .. }) =
            stricter.as_ref().map(|stricter| stricter.state(attempt.now))
        {
            return Expire(reason);
        }
        let current = self.lineage.generation;
        if attempt.generation > current {
            return Refuse(RefreshRefusal::NeverIssued { current });
        }
        let is_previous = attempt.generation.checked_add(1) == Some(current);
        // A replay requires that the current token, which followed the previous one, has never been
        // exchanged. This needs no check: otherwise the row would have a later generation.
        let may_replay = is_previous && attempt.now <= self.last_replay();
        if attempt.generation != current && !may_replay {
            return Reuse;
        }
        // The check of the scope must come after the reuse check, so that a request for an
        // excessive scope cannot hide the reuse of a token.
        if let Some(scope) = attempt.scopes.iter().find(|scope| !self.scopes.contains(scope)) {
            return Refuse(RefreshRefusal::ScopeNotGranted(scope.clone()));
        }
        // A replay repeats an answer, so stricter limits reach the session only at the next
        // rotation.
        match is_previous {
            true => Replay,
            false => Rotate(Box::new(stricter.as_ref().unwrap_or(self).refreshed(attempt))),
        }
    }

    fn refreshed(&self, attempt: &RefreshAttempt) -> Session {
        let mut next = self.clone();
        next.refreshed_at = attempt.now;
        next.idle_expires_at = self.policy.idle_expiry(attempt.now, self.expires_at);
        match self.policy.refresh {
            RefreshMode::Rotate => {
                next.lineage.generation = self.lineage.generation.saturating_add(1);
                next.lineage.key = attempt.next_key;
            }
            // The refresh token is computed from these values, so they stay the same.
            RefreshMode::Reuse => {}
        }
        next.access_token_id = attempt.next_access_token_id;
        if let Some(device) = &attempt.device {
            next.device = self.device.described_as(device);
        }
        next.revision = self.revision.saturating_add(1);
        next
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{
        super::policy::Replay,
        super::session::tests::{START, session},
        *,
    };

    fn attempt(session: &Session, generation: u32, now: Timestamp) -> RefreshAttempt {
        RefreshAttempt {
            session_id: session.id,
            generation,
            secret: session.lineage.secret,
            scopes: vec![],
            device: None,
            reach: Arc::default(),
            now,
            next_access_token_id: TokenId::new([4; 16]),
            next_key: RefreshKeyId([2; 8]),
            live_policies: Arc::default(),
        }
    }

    fn rotate(session: &Session, now: Timestamp) -> Session {
        match session.judge_refresh(&attempt(session, session.lineage.generation, now)) {
            RefreshVerdict::Rotate(next) => *next,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refresh_with_the_current_generation_rotates_it_and_extends_the_idle_expiry() {
        let now = START.plus(Duration::from_secs(30));
        let next = rotate(&session(), now);
        assert_eq!(next.lineage.generation, 2);
        assert_eq!(next.refreshed_at, now);
        assert_eq!(next.idle_expires_at, now.plus(Duration::from_secs(600)));
        assert_eq!(next.lineage.key, RefreshKeyId([2; 8]));

        let late = rotate(&next, START.plus(Duration::from_secs(500)));
        assert_eq!(late.idle_expires_at, late.expires_at, "never later than the absolute expiry");
    }

    #[test]
    fn the_previous_generation_replays_up_to_the_end_of_the_grace_and_not_a_microsecond_longer() {
        let now = START.plus(Duration::from_secs(30));
        let next = rotate(&session(), now);
        let edge = now.plus(Duration::from_secs(10));
        assert_eq!(next.judge_refresh(&attempt(&next, 1, edge)), RefreshVerdict::Replay);
        let past = edge.plus(Duration::from_micros(1));
        assert_eq!(next.judge_refresh(&attempt(&next, 1, past)), RefreshVerdict::Reuse);
    }

    /// For example, a phone may lose the answer, and ask again after the grace.
    #[test]
    fn with_until_used_the_previous_generation_replays_up_to_the_limit() {
        let mut first = session();
        first.policy.replay = Replay::UntilUsed;
        let now = START.plus(Duration::from_secs(30));
        let next = rotate(&first, now);
        let edge = now.plus(Duration::from_secs(300));
        assert!(
            edge > now.plus(next.policy.access_token_ttl),
            "the lifetime of access tokens is no limit"
        );
        assert_eq!(next.judge_refresh(&attempt(&next, 1, edge)), RefreshVerdict::Replay);
        let past = edge.plus(Duration::from_micros(1));
        assert_eq!(next.judge_refresh(&attempt(&next, 1, past)), RefreshVerdict::Reuse);

        let last = rotate(&next, now);
        assert_eq!(
            last.judge_refresh(&attempt(&last, 1, now)),
            RefreshVerdict::Reuse,
            "the next token was used"
        );
        assert_eq!(last.judge_refresh(&attempt(&last, 2, edge)), RefreshVerdict::Replay);
    }

    #[test]
    fn a_generation_before_the_previous_one_is_reuse_even_within_the_grace() {
        let now = START.plus(Duration::from_secs(30));
        let next = rotate(&rotate(&session(), now), now);
        assert_eq!(next.judge_refresh(&attempt(&next, 1, now)), RefreshVerdict::Reuse);
    }

    #[test]
    fn a_generation_that_was_never_issued_is_refused_and_changes_nothing() {
        let session = session();
        let verdict = session.judge_refresh(&attempt(&session, 2, START));
        assert_eq!(verdict, RefreshVerdict::Refuse(RefreshRefusal::NeverIssued { current: 1 }));
    }

    #[test]
    fn with_reuse_a_refresh_extends_the_session_and_keeps_its_refresh_token() {
        let mut session = session();
        session.policy.refresh = RefreshMode::Reuse;
        let now = START.plus(Duration::from_secs(30));
        let next = rotate(&session, now);
        assert_eq!(next.lineage, session.lineage);
        assert_eq!(next.idle_expires_at, now.plus(Duration::from_secs(600)));
        assert_eq!(next.access_token_id, TokenId::new([4; 16]));
        let late = now.plus(Duration::from_secs(500));
        assert_eq!(rotate(&next, late).lineage, session.lineage, "however often it is used");
    }

    #[test]
    fn a_wrong_secret_reveals_nothing_about_the_session() {
        let session =
            session().end(Ended { at: START, reason: EndReason::SignedOut, note: Note::default() });
        let mut wrong = attempt(&session, 7, START);
        wrong.secret = LineageSecret([0; 16]);
        assert_eq!(session.judge_refresh(&wrong), RefreshVerdict::Refuse(RefreshRefusal::Unknown));
    }

    #[test]
    fn a_refresh_may_ask_for_fewer_scopes_but_not_for_more() {
        let session = session();
        let scope = |name: &str| Scope::try_from(name.to_owned()).unwrap();
        let mut narrower = attempt(&session, 1, START);
        narrower.scopes = vec![scope("read")];
        let RefreshVerdict::Rotate(next) = session.judge_refresh(&narrower) else {
            panic!("rotates")
        };
        assert_eq!(next.scopes, session.scopes, "the session keeps what it has");

        let mut wider = attempt(&session, 1, START);
        wider.scopes = vec![scope("read"), scope("admin")];
        assert_eq!(
            session.judge_refresh(&wider),
            RefreshVerdict::Refuse(RefreshRefusal::ScopeNotGranted(scope("admin")))
        );
    }

    proptest! {
        /// For every sequence of attempts, the generation grows only by one at a time, no expiry is
        /// later than the absolute one, and only the current and the previous generation get
        /// tokens.
        #[test]
        fn any_sequence_of_attempts_leaves_one_lineage_of_refresh_tokens(
            until_used: bool, steps in proptest::collection::vec((0u32..6, 0u64..400), 1..40),
        ) {
            let mut session = session();
            session.policy.replay = if until_used { Replay::UntilUsed } else { Replay::Grace };
            let mut now = START;
            for (back, wait) in steps {
                now = now.plus(Duration::from_secs(wait));
                let current = session.lineage.generation;
                let presented = (current + 1).saturating_sub(back);
                match session.judge_refresh(&attempt(&session, presented, now)) {
                    RefreshVerdict::Rotate(next) => {
                        prop_assert_eq!(presented, current);
                        prop_assert_eq!(next.lineage.generation, current + 1);
                        prop_assert!(next.idle_expires_at <= next.expires_at);
                        prop_assert_eq!(next.expires_at, session.expires_at);
                        session = *next;
                    }
                    RefreshVerdict::Replay => {
                        prop_assert_eq!(presented + 1, current);
                        let window = if until_used { 300 } else { 10 };
                        let age = now.since(session.refreshed_at);
                        prop_assert!(age <= Duration::from_secs(window));
                    }
                    RefreshVerdict::Reuse => {
                        prop_assert!(presented < current);
                        let replays = presented + 1 == current && now <= session.last_replay();
                        prop_assert!(!replays, "a client that lost an answer is not signed out");
                    }
                    RefreshVerdict::Expire(reason) => prop_assert!(false, "{:?}", reason),
                    RefreshVerdict::Refuse(refusal) => {
                        let ahead = refusal == RefreshRefusal::NeverIssued { current };
                        prop_assert!((ahead && presented > current) || !session.is_live(now));
                    }
                }
            }
        }
    }
}
