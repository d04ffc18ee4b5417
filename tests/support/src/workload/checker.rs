//! Checks that a history keeps the guarantee: once a revocation is acknowledged, no replica answers
//! `active` or refreshes the session, and no watcher answers `active`; and nothing is revoked unless
//! somebody asked for it.

use std::fmt;

use countersign::proto::InactiveReason;

use crate::workload::history::{
    Answer, Ask, Call, Healed, History, Moment, Session, SessionNumber, SetBack, Target,
    TokenNumber,
};

/// A breach of a rule by a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule that is broken.
    pub rule: Rule,
    /// The replica or the watcher whose answer breaks the rule; `None` if no single answer does.
    pub replica: Option<usize>,
    /// The calls that contradict each other, as text.
    pub story: Vec<String>,
}

/// A rule that a history must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No call that began after the acknowledgement of a revocation finds a revoked token active.
    ActiveAfterRevoked,
    /// No call that began after the acknowledgement of a revocation refreshes the session.
    RefreshedAfterRevoked,
    /// A token that nobody tried to revoke is active.
    InactiveWithoutRevocation,
    /// A session that nobody tried to revoke can be refreshed, and a session that was created can
    /// be revoked.
    RefusedWithoutCause,
    /// An error has a reason, and says when to retry if a retry may help. A connection ends only
    /// when its process ends.
    WrongError,
    /// Once all faults are over, every replica and every watcher validates every token, and every
    /// replica acknowledges a revocation.
    Unanswered,
    /// A process ends only when the test ends it.
    ProcessEnded,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story.join("\n      "))
    }
}

fn violation(rule: Rule, story: impl IntoIterator<Item = impl fmt::Display>) -> Violation {
    Violation {
        rule,
        replica: None,
        story: story.into_iter().map(|line| line.to_string()).collect(),
    }
}

/// The calls that have revoked a session or a token, or may have.
#[derive(Clone, Default)]
struct RevokedBy<'a> {
    /// The first call that may have revoked the session or token. From the beginning of that call
    /// on, the token may be inactive.
    attempted: Option<&'a Call>,
    /// The revocations that were acknowledged. From the end of the first of them on, the token must
    /// be inactive, unless the database was set back in between.
    acknowledged: Vec<&'a Call>,
}

impl<'a> RevokedBy<'a> {
    fn attempt(&mut self, call: &'a Call) {
        if self.attempted.is_none_or(|first| call.begin < first.begin) {
            self.attempted = Some(call);
        }
    }

    fn acknowledge(&mut self, call: &'a Call) {
        self.acknowledged.push(call);
    }

    /// Merges the calls of both.
    fn or(mut self, other: Self) -> Self {
        if let Some(call) = other.attempted {
            self.attempt(call);
        }
        self.acknowledged.extend(other.acknowledged);
        self
    }

    fn may_have_been_revoked(&self, at: Moment) -> bool {
        self.attempted.is_some_and(|call| call.begin < at)
    }

    /// Returns the earliest acknowledged revocation that `call` must respect.
    fn acknowledged_before(&self, history: &History, call: &Call) -> Option<&'a Call> {
        let binding = self
            .acknowledged
            .iter()
            .filter(|made| made.end < call.begin && history.must_hold(made, call));
        binding.min_by_key(|made| made.end).copied()
    }
}

/// The revocations of all sessions and tokens in a history.
pub struct Revocations<'a> {
    history: &'a History,
    sessions: Vec<RevokedBy<'a>>,
    /// For each token, the revocations of the token itself and of its session.
    tokens: Vec<RevokedBy<'a>>,
}

impl<'a> Revocations<'a> {
    /// Indexes a history.
    pub fn of(history: &'a History) -> Self {
        let mut sessions = vec![RevokedBy::default(); history.sessions.len()];
        let mut tokens = vec![RevokedBy::default(); history.tokens.len()];
        for call in &history.calls {
            match &call.ask {
                Ask::Revoke(Target::Session(SessionNumber(session))) => {
                    revoke(&mut sessions[*session], call)
                }
                Ask::Revoke(Target::Token(TokenNumber(token))) => revoke(&mut tokens[*token], call),
                Ask::Revoke(
                    target @ (Target::Subject { .. } | Target::Tenant(_) | Target::Client { .. }),
                ) => {
                    for (session, revoked_by) in history.sessions.iter().zip(&mut sessions) {
                        let (is_meant, slack) = match target {
                            Target::Tenant(tenant) => (session.tenant == *tenant, history.skew),
                            Target::Client { tenant, client_id } => (
                                session.tenant == *tenant && session.subject == *client_id,
                                history.skew,
                            ),
                            Target::Subject { tenant, subject } => (
                                session.tenant == *tenant && session.subject == *subject,
                                Moment::ZERO,
                            ),
                            Target::Session(_) | Target::Token(_) => continue,
                        };
                        // A call without an answer may be carried out later, and then revokes
                        // sessions that were created after the call had ended.
                        if is_meant
                            && (call.answer != Answer::Done || session.asked < call.end + slack)
                        {
                            revoked_by.attempt(call);
                        }
                        let is_known = match target {
                            // The revocation of a tenant or a client covers all sessions that were
                            // created before it, also those that the database has lost.
                            Target::Tenant(_) | Target::Client { .. } => true,
                            _ => !history.may_have_lost(session, call),
                        };
                        if is_meant
                            && call.answer == Answer::Done
                            && session.known < call.begin
                            && is_known
                        {
                            revoked_by.acknowledge(call);
                        }
                    }
                }
                Ask::Refresh { session: SessionNumber(session), is_reuse, supersedes } => {
                    if *is_reuse {
                        sessions[*session].attempt(call);
                    }
                    if call.answer == Answer::Refused("REFRESH_TOKEN_REUSED".to_owned()) {
                        sessions[*session].acknowledge(call);
                    }
                    if let Some(TokenNumber(token)) = supersedes {
                        revoke(&mut tokens[*token], call);
                    }
                }
                Ask::Create | Ask::Validate(_) => {}
            }
        }
        // If the database has lost a session, a revocation by its identifier or refresh token does
        // not stop its access tokens.
        for (session, revoked_by) in history.sessions.iter().zip(&mut sessions) {
            revoked_by.acknowledged.retain(|call| {
                !matches!(call.ask, Ask::Revoke(Target::Session(_)))
                    || !history.may_have_lost(session, call)
            });
        }
        let of_session = |SessionNumber(session): SessionNumber| sessions[session].clone();
        let tokens = tokens
            .into_iter()
            .zip(&history.tokens)
            .map(|(revoked_by, session)| revoked_by.or(of_session(*session)));
        Self { tokens: tokens.collect(), history, sessions }
    }

    /// Returns the acknowledged revocation because of which `call` must find the token revoked.
    pub fn revoked(&self, TokenNumber(token): TokenNumber, call: &Call) -> Option<&'a Call> {
        self.tokens[token].acknowledged_before(self.history, call)
    }
}

/// A set-back of the database loses commits that were acknowledged before it. These functions
/// decide which answers a set-back excuses.
impl History {
    /// Returns whether a call may find the session unknown, because the database was set back to a
    /// state from before the session's creation.
    fn may_have_lost(&self, session: &Session, call: &Call) -> bool {
        let lost =
            |at: &SetBack| session.known > at.kept && session.asked < at.to && call.end > at.from;
        self.set_backs.iter().any(lost)
    }

    /// Returns whether a session may be in an earlier state at a call, because the database was set
    /// back.
    fn may_have_set_back(&self, session: &Session, call: &Call) -> bool {
        self.set_backs.iter().any(|at| session.asked < at.to && call.end > at.from)
    }

    /// Returns whether an acknowledged revocation must hold for a call. A set-back may have lost a
    /// revocation that began before the set-back ended. Such a revocation need not hold until the
    /// replicas that remember it have written it again. They have done so once the run has healed.
    fn must_hold(&self, revocation: &Call, call: &Call) -> bool {
        let is_healed = self.healed.as_ref().is_some_and(|healed| call.begin >= healed.at);
        is_healed || !self.set_backs.iter().any(|at| revocation.begin < at.to && call.end > at.from)
    }
}

/// Adds a call that revokes just this session or token.
fn revoke<'a>(revoked_by: &mut RevokedBy<'a>, call: &'a Call) {
    revoked_by.attempt(call);
    if call.answer == Answer::Done {
        revoked_by.acknowledge(call);
    }
}

/// Returns all violations. Those of calls come first, in the order in which the calls ended.
pub fn check(history: &History) -> Vec<Violation> {
    let revocations = Revocations::of(history);
    let mut calls: Vec<_> = history.calls.iter().collect();
    calls.sort_by_key(|call| call.end);
    let calls = calls.into_iter().filter_map(|call| {
        let violation = check_call(history, &revocations, call)?;
        Some(Violation { replica: Some(call.replica), ..violation })
    });
    let fallen = history
        .fallen
        .iter()
        .map(|replica| violation(Rule::ProcessEnded, [format!("replica {replica} has ended")]));
    calls.chain(fallen).chain(check_end(history)).collect()
}

fn check_call(history: &History, revocations: &Revocations<'_>, call: &Call) -> Option<Violation> {
    let broken = |rule| Some(violation(rule, [call]));
    match (&call.ask, &call.answer) {
        // While a dump is restored, tables and functions are replaced, so any error may occur.
        (_, Answer::Wrong(_))
            if history.set_backs.iter().any(|at| call.begin < at.to && call.end > at.from) =>
        {
            None
        }
        (_, Answer::Wrong(_)) => broken(Rule::WrongError),
        (_, Answer::Disconnected) => {
            let excuse = history.outages.iter().any(|outage| {
                outage.replica == call.replica
                    && outage.from < call.end
                    && outage.to.is_none_or(|to| call.begin < to)
            });
            if excuse { None } else { broken(Rule::WrongError) }
        }
        (_, Answer::NotNow(_) | Answer::GivenUp) => None,
        (Ask::Validate(token), Answer::Active) => {
            let revocation = revocations.revoked(*token, call)?;
            let session = history.tokens[token.0];
            let of = format!("{token:?} is of {session:?}, {:?}", history.sessions[session.0]);
            Some(violation(
                Rule::ActiveAfterRevoked,
                [revocation.to_string(), call.to_string(), of],
            ))
        }
        (Ask::Validate(_), Answer::Inactive(InactiveReason::Expired)) if history.tokens_expire => {
            None
        }
        (Ask::Validate(TokenNumber(token)), Answer::Inactive(InactiveReason::Revoked))
            if revocations.tokens[*token].may_have_been_revoked(call.end) =>
        {
            None
        }
        (Ask::Validate(_), _) => broken(Rule::InactiveWithoutRevocation),
        (Ask::Refresh { session: SessionNumber(session), .. }, Answer::Done) => {
            let revocation = revocations.sessions[*session].acknowledged_before(history, call)?;
            Some(violation(Rule::RefreshedAfterRevoked, [revocation, call]))
        }
        (
            Ask::Refresh { session: SessionNumber(session), is_reuse, .. },
            Answer::Refused(reason),
        ) => {
            let is_fair = match reason.as_str() {
                "SESSION_REVOKED" => revocations.sessions[*session].may_have_been_revoked(call.end),
                "REFRESH_TOKEN_REUSED" => *is_reuse,
                "REFRESH_TOKEN_INVALID" => {
                    history.may_have_set_back(&history.sessions[*session], call)
                }
                _ => false,
            };
            if is_fair { None } else { broken(Rule::RefusedWithoutCause) }
        }
        (Ask::Create | Ask::Revoke(_), Answer::Done) => None,
        (Ask::Revoke(Target::Session(SessionNumber(session))), Answer::Refused(_))
            if history.may_have_set_back(&history.sessions[*session], call) =>
        {
            None
        }
        (Ask::Create | Ask::Refresh { .. } | Ask::Revoke(_), _) => {
            broken(Rule::RefusedWithoutCause)
        }
    }
}

/// Checks that, once everything works again, every replica and every watcher has answered for every
/// token, and every replica has acknowledged a revocation. The answers themselves are checked by
/// other rules.
fn check_end(history: &History) -> Vec<Violation> {
    let unanswered = |story: String| violation(Rule::Unanswered, [story]);
    let Some(Healed { at, replicas, watchers, tokens }) = &history.healed else {
        return vec![unanswered("the run has not healed".to_owned())];
    };
    let mut missing = vec![];
    for replica in replicas.iter().chain(watchers) {
        let mut answered = vec![false; *tokens];
        let mut revokes = false;
        let calls =
            history.calls.iter().filter(|call| call.replica == *replica && call.begin >= *at);
        for call in calls.filter(|call| call.answer.is_known()) {
            match call.ask {
                Ask::Validate(TokenNumber(token)) if token < *tokens => answered[token] = true,
                Ask::Revoke(_) => revokes |= call.answer == Answer::Done,
                _ => {}
            }
        }
        let silent = answered.iter().filter(|answered| !**answered).count();
        if silent > 0 {
            missing
                .push(unanswered(format!("replica {replica} does not answer for {silent} tokens")));
        }
        if !revokes && !watchers.contains(replica) {
            missing.push(unanswered(format!("replica {replica} does not revoke")));
        }
    }
    missing
}
