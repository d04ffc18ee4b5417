//! Checks the times that a caller gives for an authentication.

use std::time::Duration;

use super::error::AuthorityError;
use crate::domain::{factors::FactorTimes, time::Timestamp};

/// Checks the time of an authentication, and the times at which its methods were verified. The
/// authentication is the last of these events, so none of them may be later. If the caller gives no
/// time for it, it was just now. Clocks may differ by `leeway`.
pub(super) fn check_times(
    authenticated_at: Option<Timestamp>,
    verified_at: &FactorTimes,
    now: Timestamp,
    leeway: Duration,
) -> Result<(), AuthorityError> {
    let latest = now.plus(leeway);
    if authenticated_at.is_some_and(|at| at > latest) {
        return Err(AuthorityError::field("authenticated_at", "is in the future"));
    }
    let Some((method, at)) = verified_at.latest() else { return Ok(()) };
    let problem = match authenticated_at {
        Some(authenticated_at) if at > authenticated_at => "is after authenticated_at",
        None if at > latest => "is in the future",
        Some(_) | None => return Ok(()),
    };
    let problem = format!("has a time for {:?} that {problem}", &**method);
    Err(AuthorityError::field("amr_verified_at", problem))
}
