//! A history: the calls of a run with their answers and times, by one clock.

use std::{fmt, time::Duration};

use countersign::proto::InactiveReason;

/// Time since the run began.
pub type Moment = Duration;

/// The index of a session in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionNumber(pub usize);

/// The index of an access token in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenNumber(pub usize);

/// A session whose creation was acknowledged.
#[derive(Clone, Debug)]
pub struct Session {
    /// The tenant.
    pub tenant: String,
    /// The subject.
    pub subject: String,
    /// The time at which the call to create it began.
    pub asked: Moment,
    /// The time at which that call was answered.
    pub known: Moment,
}

/// The target of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A session by its identifier.
    Session(SessionNumber),
    /// A session by a token, or the token alone.
    Token(TokenNumber),
    /// All sessions of a subject.
    Subject {
        /// The tenant of the subject.
        tenant: String,
        /// The subject.
        subject: String,
    },
    /// All sessions of a tenant.
    Tenant(String),
    /// All sessions that a tenant has with a client. Each subject has a client of its own, which has
    /// the name of the subject.
    Client {
        /// The tenant.
        tenant: String,
        /// The client.
        client_id: String,
    },
}

/// The request of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// CreateSession.
    Create,
    /// Refresh.
    Refresh {
        /// The session of the refresh token.
        session: SessionNumber,
        /// True if the refresh token may have been used before and has no grace, so that this
        /// refresh may end the session.
        is_reuse: bool,
        /// The access token that the refresh revokes.
        supersedes: Option<TokenNumber>,
    },
    /// Validate.
    Validate(TokenNumber),
    /// Revoke.
    Revoke(Target),
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The token is active.
    Active,
    /// The token is not active.
    Inactive(InactiveReason),
    /// The request was refused for this reason, and a retry would not help.
    Refused(String),
    /// The request is not possible at the moment, for this reason; the error says when to retry. A
    /// write may have been made.
    NotNow(String),
    /// The caller's deadline passed. A write may have been made, or may be made later.
    GivenUp,
    /// The connection ended, or there was none. A write may have been made.
    Disconnected,
    /// An error that no caller should ever see.
    Wrong(String),
}

impl Answer {
    /// Returns whether the outcome is known. Some errors leave open whether a write was made.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Done | Self::Active | Self::Inactive(_) | Self::Refused(_))
    }
}

/// A request to a replica or a watcher, and its outcome.
#[derive(Clone, Debug)]
pub struct Call {
    /// The replica that was called, or the watcher. Watchers have the numbers after those of the
    /// replicas.
    pub replica: usize,
    /// A time before the request was sent.
    pub begin: Moment,
    /// A time after the answer was received.
    pub end: Moment,
    /// The request.
    pub ask: Ask,
    /// The outcome.
    pub answer: Answer,
    /// The number of equal requests with this outcome, one after the other. A watcher may check a
    /// token many times. `begin` and `end` are then those of the check that promises most: the last
    /// one if the token is active, and the first one otherwise.
    pub count: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, begin, end, ask, answer, .. } = self;
        write!(f, "{begin:>13.6?} to {end:>13.6?} at replica {replica}: {ask:?} -> {answer:?}")
    }
}

/// A time in which a process was down, or may have been down.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// The replica of the process.
    pub replica: usize,
    /// The time from which the process may have been down.
    pub from: Moment,
    /// The time at which the process ran again; `None` if it was not started again.
    pub to: Option<Moment>,
}

/// A fault that was injected into a replica or the database.
#[derive(Clone, Debug)]
pub struct Fault {
    /// A description.
    pub what: String,
    /// The time at which the fault began.
    pub from: Moment,
    /// The time at which the fault ended.
    pub to: Moment,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from, to } = self;
        write!(f, "{from:>13.6?} to {to:>13.6?}, {what}")
    }
}

/// A set-back: the database was replaced by an older state of itself while replicas ran.
#[derive(Clone, Copy, Debug)]
pub struct SetBack {
    /// The older state dates from this time, or from a little later.
    pub kept: Moment,
    /// The database was replaced between `from` and `to`.
    pub from: Moment,
    /// The later bound, see `from`.
    pub to: Moment,
}

/// The last part of a run, in which no fault is in effect.
#[derive(Clone, Debug, Default)]
pub struct Healed {
    /// The time at which this part began.
    pub at: Moment,
    /// The replicas that must answer in this part.
    pub replicas: Vec<usize>,
    /// The watchers that must answer in this part.
    pub watchers: Vec<usize>,
    /// The number of tokens that had been issued before.
    pub tokens: usize,
}

/// Everything that was recorded in a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All sessions.
    pub sessions: Vec<Session>,
    /// The session of each token.
    pub tokens: Vec<SessionNumber>,
    /// All calls.
    pub calls: Vec<Call>,
    /// All faults.
    pub faults: Vec<Fault>,
    /// All outages.
    pub outages: Vec<Outage>,
    /// All set-backs.
    pub set_backs: Vec<SetBack>,
    /// Replicas whose process ended although the test did not end it.
    pub fallen: Vec<usize>,
    /// `None` if the run was never free of faults.
    pub healed: Option<Healed>,
    /// True if tokens expire during the run.
    pub tokens_expire: bool,
    /// The largest difference between the wall clocks of two replicas.
    pub skew: Duration,
}
