//! Whether a history keeps the promise: once a revocation is acknowledged, nobody answers active,
//! nor refreshes; and nothing is revoked that nobody asked for.

use std::fmt;

use countersign::proto::InactiveReason;

use crate::history::{
    Answer, Ask, Call, Healed, History, Moment, Session, SessionNumber, SetBack, Target,
    TokenNumber,
};

/// What must not have happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    /// What happened, and what it contradicts.
    pub story: Vec<String>,
}

/// What a history must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No call that began after the acknowledgement of a revocation answers active.
    ActiveAfterRevoked,
    /// No call that began after the acknowledgement of a revocation refreshes the session.
    RefreshedAfterRevoked,
    /// What nobody tried to revoke is active.
    InactiveUnasked,
    /// A session that nobody tried to revoke can be refreshed, and what was created can be revoked.
    RefusedUnasked,
    /// Errors say what they are and when to come back, and connections end only when processes do.
    WrongError,
    /// In the end every replica answers for every token, and acknowledges a revocation.
    Unanswered,
    /// A process ends only when somebody ends it.
    Fallen,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story.join("\n      "))
    }
}

fn violation(rule: Rule, story: impl IntoIterator<Item = impl fmt::Display>) -> Violation {
    Violation { rule, story: story.into_iter().map(|line| line.to_string()).collect() }
}

/// What is said of a session or a token by all calls together.
#[derive(Clone, Default)]
struct Fate<'a> {
    /// The first call that may have revoked it: it may be inactive from its begin on.
    attempted: Option<&'a Call>,
    /// The revocations that were acknowledged: it must be inactive from the end of the first on,
    /// unless the database was set back in between.
    acknowledged: Vec<&'a Call>,
}

impl<'a> Fate<'a> {
    fn attempt(&mut self, call: &'a Call) {
        if self.attempted.is_none_or(|first| call.begin < first.begin) {
            self.attempted = Some(call);
        }
    }

    fn acknowledge(&mut self, call: &'a Call) {
        self.acknowledged.push(call);
    }

    /// Both fates together.
    fn or(mut self, other: Self) -> Self {
        if let Some(call) = other.attempted {
            self.attempt(call);
        }
        self.acknowledged.extend(other.acknowledged);
        self
    }

    fn may_be_revoked(&self, at: Moment) -> bool {
        self.attempted.is_some_and(|call| call.begin < at)
    }

    /// The revocation by which a call must find it revoked.
    fn max_validity(&self, history: &History, call: &Call) -> Option<&'a Call> {
        let holds = self
            .acknowledged
            .iter()
            .filter(|made| made.end < call.begin && history.promises(made, call));
        holds.min_by_key(|made| made.end).copied()
    }
}

/// The fates of all sessions and tokens.
pub struct Fates<'a> {
    history: &'a History,
    sessions: Vec<Fate<'a>>,
    /// Of a token itself and its session.
    tokens: Vec<Fate<'a>>,
}

impl<'a> Fates<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut sessions = vec![Fate::default(); history.sessions.len()];
        let mut tokens = vec![Fate::default(); history.tokens.len()];
        for call in &history.calls {
            match &call.ask {
                Ask::Revoke(Target::Session(SessionNumber(session))) => {
                    revoke(&mut sessions[*session], call)
                }
                Ask::Revoke(Target::Token(TokenNumber(token))) => revoke(&mut tokens[*token], call),
                Ask::Revoke(target @ (Target::Subject { .. } | Target::Tenant(_))) => {
                    for (session, fate) in history.sessions.iter().zip(&mut sessions) {
                        let (is_meant, slack) = match target {
                            Target::Tenant(tenant) => (session.tenant == *tenant, history.skew),
                            Target::Subject { tenant, subject } => (
                                session.tenant == *tenant && session.subject == *subject,
                                Moment::ZERO,
                            ),
                            Target::Session(_) | Target::Token(_) => continue,
                        };
                        // A call without an answer may be carried out later.
                        if is_meant
                            && (call.answer != Answer::Done || session.asked < call.end + slack)
                        {
                            fate.attempt(call);
                        }
                        let is_known = match target {
                            // By the time of their creation, also those that are lost.
                            Target::Tenant(_) => true,
                            _ => !history.may_have_lost(session, call),
                        };
                        if is_meant
                            && call.answer == Answer::Done
                            && session.known < call.begin
                            && is_known
                        {
                            fate.acknowledge(call);
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
        // Of a session that is lost, a refresh token or an identifier does not lead to its access
        // tokens any more.
        for (session, fate) in history.sessions.iter().zip(&mut sessions) {
            fate.acknowledged.retain(|call| {
                !matches!(call.ask, Ask::Revoke(Target::Session(_)))
                    || !history.may_have_lost(session, call)
            });
        }
        let of_session = |SessionNumber(session): SessionNumber| sessions[session].clone();
        let tokens = tokens
            .into_iter()
            .zip(&history.tokens)
            .map(|(fate, session)| fate.or(of_session(*session)));
        Self { tokens: tokens.collect(), history, sessions }
    }

    /// The revocation by which a call about a token must find it revoked.
    pub fn revoked(&self, TokenNumber(token): TokenNumber, call: &Call) -> Option<&'a Call> {
        self.tokens[token].max_validity(self.history, call)
    }
}

/// The excuses of a set-back of the database, which lost what was acknowledged before it.
impl History {
    /// Returns whether the session may be unknown to a call, because the database was set back to
    /// what it was before its creation.
    fn may_have_lost(&self, session: &Session, call: &Call) -> bool {
        let lost =
            |at: &SetBack| session.known > at.kept && session.asked < at.to && call.end > at.from;
        self.set_backs.iter().any(lost)
    }

    /// Returns whether a session may be as it was before, because the database was set back.
    fn may_have_set_back(&self, session: &Session, call: &Call) -> bool {
        self.set_backs.iter().any(|at| session.asked < at.to && call.end > at.from)
    }

    /// Returns whether a revocation that was acknowledged must hold for a call. One that may have
    /// been written before the database was set back holds again once those who remember it have
    /// written it again: at the latest when all is well.
    fn promises(&self, revocation: &Call, call: &Call) -> bool {
        let is_well = self.healed.as_ref().is_some_and(|healed| call.begin >= healed.at);
        is_well || !self.set_backs.iter().any(|at| revocation.begin < at.to && call.end > at.from)
    }
}

/// A call that revokes just this.
fn revoke<'a>(fate: &mut Fate<'a>, call: &'a Call) {
    fate.attempt(call);
    if call.answer == Answer::Done {
        fate.acknowledge(call);
    }
}

/// All that must not have happened, in the order in which it did.
pub fn check(history: &History) -> Vec<Violation> {
    let fates = Fates::of(history);
    let mut calls: Vec<_> = history.calls.iter().collect();
    calls.sort_by_key(|call| call.end);
    let calls = calls.into_iter().filter_map(|call| check_call(history, &fates, call));
    let fallen = history
        .fallen
        .iter()
        .map(|replica| violation(Rule::Fallen, [format!("replica {replica} has ended")]));
    calls.chain(fallen).chain(check_end(history)).collect()
}

fn check_call(history: &History, fates: &Fates<'_>, call: &Call) -> Option<Violation> {
    let broken = |rule| Some(violation(rule, [call]));
    match (&call.ask, &call.answer) {
        // Tables and functions are replaced.
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
            let revocation = fates.revoked(*token, call)?;
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
            if fates.tokens[*token].may_be_revoked(call.end) =>
        {
            None
        }
        (Ask::Validate(_), _) => broken(Rule::InactiveUnasked),
        (Ask::Refresh { session: SessionNumber(session), .. }, Answer::Done) => {
            let revocation = fates.sessions[*session].max_validity(history, call)?;
            Some(violation(Rule::RefreshedAfterRevoked, [revocation, call]))
        }
        (
            Ask::Refresh { session: SessionNumber(session), is_reuse, .. },
            Answer::Refused(reason),
        ) => {
            let is_fair = match reason.as_str() {
                "SESSION_REVOKED" => fates.sessions[*session].may_be_revoked(call.end),
                "REFRESH_TOKEN_REUSED" => *is_reuse,
                "REFRESH_TOKEN_INVALID" => {
                    history.may_have_set_back(&history.sessions[*session], call)
                }
                _ => false,
            };
            if is_fair { None } else { broken(Rule::RefusedUnasked) }
        }
        (Ask::Create | Ask::Revoke(_), Answer::Done) => None,
        (Ask::Revoke(Target::Session(SessionNumber(session))), Answer::Refused(_))
            if history.may_have_set_back(&history.sessions[*session], call) =>
        {
            None
        }
        (Ask::Create | Ask::Refresh { .. } | Ask::Revoke(_), _) => broken(Rule::RefusedUnasked),
    }
}

/// Once everything works again, every replica must answer for every token, and revoke. What it must
/// say is a rule of its own.
fn check_end(history: &History) -> Vec<Violation> {
    let unanswered = |story: String| violation(Rule::Unanswered, [story]);
    let Some(Healed { at, replicas, tokens }) = &history.healed else {
        return vec![unanswered("it has not healed".to_owned())];
    };
    let mut missing = vec![];
    for replica in replicas {
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
        if !revokes {
            missing.push(unanswered(format!("replica {replica} does not revoke")));
        }
    }
    missing
}
