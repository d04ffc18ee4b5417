//! Classifies the failures of work on a connection by the retry that each of them allows.

use diesel::result::Error;

use super::sqlstate::Class;
use crate::store::{
    StoreError,
    batch::{Failure, Retry},
};

/// A failure of work on a connection.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing was written, because of a conflict with concurrent transactions, or because the
    /// prepared statements of the connection are no longer valid. Another attempt may succeed.
    Conflict(StoreError),
    /// The connection is lost, or none could be made. If a commit was under way, it is not known
    /// whether it took effect.
    ConnectionLost(StoreError),
    /// The work failed on a good connection. Nothing was written, and the same work would fail
    /// again, at least for now.
    Failed(StoreError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::DatabaseError(_, information) => information.message().to_owned(),
            other => other.to_string(),
        };
        match Class::of(&error) {
            Class::Retry | Class::Outdated => Self::Conflict(StoreError::Unavailable(message)),
            Class::Unavailable => Self::Failed(StoreError::Unavailable(message)),
            Class::Lost | Class::Rejected => Self::ConnectionLost(StoreError::Unavailable(message)),
            Class::Bug if matches!(error, Error::DeserializationError(_)) => {
                Self::Failed(StoreError::Damaged(message))
            }
            Class::Bug => Self::Failed(StoreError::Refused(message)),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Conflict(error) | Fault::ConnectionLost(error) | Fault::Failed(error) => error,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let retry = match fault {
            Fault::Conflict(_) => Retry::Together,
            Fault::Failed(_) => Retry::Alone,
            Fault::ConnectionLost(_) => Retry::Never,
        };
        Self { error: fault.into(), retry }
    }
}
