//! The target of a revocation by client or by time, and the cut-off that it makes.

use std::time::Duration;

use super::error::AuthorityError;
use crate::domain::{
    cut_off::{CutOffKey, Scope},
    time::Timestamp,
};

/// Sessions by their client, or by a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsTarget {
    /// The sessions among which the boundary chooses; never those of one subject.
    pub scope: Scope,
    /// The boundary.
    pub boundary: Boundary,
}

/// The sessions of a scope that are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// All that exist.
    Now,
    /// Those that were created before this instant.
    CreatedBefore(Timestamp),
    /// Those whose user authenticated before this instant.
    AuthenticatedBefore(Timestamp),
}

impl SessionsTarget {
    /// Returns the cut-off that the revocation makes: its key, and the latest time that it covers if
    /// that does not depend on the time of the revocation. Fails if the instant is later than `now`
    /// or finer than the compared time.
    pub(super) fn cut_off(
        &self,
        now: Timestamp,
    ) -> Result<(CutOffKey, Option<Timestamp>), AuthorityError> {
        let check = |field: &str, before: Timestamp, unit: i64, name: &str| {
            if before > now {
                return Err(AuthorityError::field(field, "must not be in the future"));
            }
            if before.micros().rem_euclid(unit) != 0 {
                return Err(AuthorityError::field(field, format!("must be a whole {name}")));
            }
            Ok(Some(last_before(before)))
        };
        match self.boundary {
            Boundary::Now => Ok((CutOffKey::created(self.scope.clone()), None)),
            Boundary::CreatedBefore(before) => {
                let up_to = check("sessions.created_before", before, 1000, "millisecond")?;
                Ok((CutOffKey::created(self.scope.clone()), up_to))
            }
            Boundary::AuthenticatedBefore(before) => {
                let up_to = check("sessions.authenticated_before", before, 1_000_000, "second")?;
                let key = CutOffKey::authenticated(self.scope.clone())
                    .map_err(|problem| AuthorityError::field("sessions", problem))?;
                Ok((key, up_to))
            }
        }
    }
}

/// Returns the last instant before another one.
fn last_before(before: Timestamp) -> Timestamp {
    before.minus(Duration::from_micros(1))
}
