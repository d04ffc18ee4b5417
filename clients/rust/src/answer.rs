//! The answer to the question whether a token is active.

use countersign_verification::inactive::InactiveReason;

use crate::{Error, Session};

/// The answer of a [`Verifier`](crate::Verifier). Only [`Answer::Active`] lets a request pass.
#[derive(Clone, Debug)]
#[must_use]
pub enum Answer {
    /// The token is authentic, its session is live, and all demands are met.
    Active(Session),
    /// The token is not accepted.
    Inactive(InactiveReason),
    /// It is not known whether the token is active, so the request must not pass. The client may
    /// try again.
    Unknown(Unknown),
}

/// The reason why it is not known whether a token is active.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unknown {
    /// This process has no lease: it is starting, or is cut off from the service, or was suspended.
    NoLease,
    /// The service did not answer the question.
    NotAnswered(Error),
    /// The answer of the service cannot be understood; it may be newer than this library.
    NotUnderstood,
}

impl Answer {
    /// Returns the session if the token is active.
    pub fn session(&self) -> Option<&Session> {
        match self {
            Self::Active(session) => Some(session),
            Self::Inactive(_) | Self::Unknown(_) => None,
        }
    }

    /// Returns whether the token is active.
    pub fn is_active(&self) -> bool {
        self.session().is_some()
    }

    /// Returns the reason if the token is inactive.
    pub fn inactive_reason(&self) -> Option<InactiveReason> {
        match self {
            Self::Inactive(reason) => Some(*reason),
            Self::Active(_) | Self::Unknown(_) => None,
        }
    }
}
