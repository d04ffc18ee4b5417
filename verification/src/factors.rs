//! Demands for recent factors of an authentication.

use std::time::Duration;

use crate::{claims::AccessClaims, time::Timestamp};

/// A demand for an authentication method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactorDemand<'a> {
    /// The method that `amr` must name.
    pub method: &'a str,
    /// The longest time since the method was verified; none for no demand.
    pub max_age: Option<Duration>,
}

impl FactorDemand<'_> {
    /// Returns whether a token meets the demand. A method without a time is never recent. A time
    /// must not be assumed for it: a token may lack the time because a replica of an older version
    /// issued it.
    pub fn is_met_by(&self, token: &AccessClaims, now: Timestamp) -> bool {
        let is_recent = |max_age| {
            let verified = token.amr_verified_at.iter().find(|(method, _)| method == self.method);
            verified.is_some_and(|(_, at)| now.since(*at) <= max_age)
        };
        token.amr.iter().any(|method| method == self.method) && self.max_age.is_none_or(is_recent)
    }
}
