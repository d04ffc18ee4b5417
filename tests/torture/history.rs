//! What was asked and answered in a run, by one clock.

use std::{fmt, time::Duration};

use countersign::proto::InactiveReason;

/// Time since the run began.
pub type Moment = Duration;

/// A session, by its place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionNumber(pub usize);

/// An access token, by its place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenNumber(pub usize);

/// A session whose creation was acknowledged.
#[derive(Clone, Debug)]
pub struct Session {
    pub tenant: String,
    pub subject: String,
    /// When its creation was asked for.
    pub asked: Moment,
    /// When that was answered.
    pub known: Moment,
}

/// What a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Session(SessionNumber),
    Token(TokenNumber),
    Subject { tenant: String, subject: String },
    Tenant(String),
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Create,
    Refresh {
        session: SessionNumber,
        /// The refresh token may have been used before, and there is no grace: the session may end.
        is_reuse: bool,
        /// The access token that the refresh makes inactive.
        supersedes: Option<TokenNumber>,
    },
    Validate(TokenNumber),
    Revoke(Target),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// The token is good.
    Active,
    /// It is not.
    Inactive(InactiveReason),
    /// Refused for good, for this reason.
    Refused(String),
    /// Not possible at the moment, for this reason; it says when to come back. A write may have
    /// been made.
    NotNow(String),
    /// The caller's deadline was over. A write may have been made, or be made later.
    GivenUp,
    /// The connection ended, or there was none. A write may have been made.
    Disconnected,
    /// What no caller may see.
    Wrong(String),
}

impl Answer {
    /// Whether a question was answered, rather than failed.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Done | Self::Active | Self::Inactive(_) | Self::Refused(_))
    }
}

/// A question to a replica, and what came of it.
#[derive(Clone, Debug)]
pub struct Call {
    pub replica: usize,
    /// Before it was sent.
    pub begin: Moment,
    /// After the answer had come.
    pub end: Moment,
    pub ask: Ask,
    pub answer: Answer,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, begin, end, ask, answer } = self;
        write!(f, "{begin:>13.6?} to {end:>13.6?} at replica {replica}: {ask:?} -> {answer:?}")
    }
}

/// When a process was not there, or might not be.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub replica: usize,
    pub from: Moment,
    /// None: it has not come back.
    pub to: Option<Moment>,
}

/// What was done to a replica or to the database.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: String,
    pub from: Moment,
    pub to: Moment,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from, to } = self;
        write!(f, "{from:>13.6?} to {to:>13.6?}, {what}")
    }
}

/// The database was set back under running replicas.
#[derive(Clone, Copy, Debug)]
pub struct SetBack {
    /// To what it was then, or a little later.
    pub kept: Moment,
    /// Between these two.
    pub from: Moment,
    pub to: Moment,
}

/// The end of a run, when nothing is wrong any more.
#[derive(Clone, Debug, Default)]
pub struct Healed {
    pub at: Moment,
    /// The replicas that are there.
    pub replicas: Vec<usize>,
    /// How many tokens were known.
    pub tokens: usize,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub sessions: Vec<Session>,
    /// The session of each token.
    pub tokens: Vec<SessionNumber>,
    pub calls: Vec<Call>,
    pub faults: Vec<Fault>,
    pub outages: Vec<Outage>,
    pub set_backs: Vec<SetBack>,
    /// Replicas whose process ended although nobody ended it.
    pub fallen: Vec<usize>,
    /// None: it has never been.
    pub healed: Option<Healed>,
    /// Whether tokens expire while the run lasts.
    pub tokens_expire: bool,
    /// How far the wall clocks of the replicas differ.
    pub skew: Duration,
}
