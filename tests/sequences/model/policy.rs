//! Policies, and the limits that a session has.

use super::{Micros, SECOND};

/// A policy.
#[derive(Debug, PartialEq)]
pub struct Policy {
    pub name: &'static str,
    pub limits: Limits,
    /// The maximum number of live sessions of a subject; 0 for no limit.
    pub max_sessions: usize,
    /// True if the quota refuses a session instead of evicting the oldest.
    pub refuses: bool,
}

/// The limits of a policy, or of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub access_token_ttl: Micros,
    pub idle_timeout: Micros,
    pub absolute_lifetime: Micros,
    pub refresh_grace: Micros,
    /// True for `replay = "until_used"`.
    pub until_used: bool,
    pub replay_limit: Micros,
    pub revokes_access_token: bool,
    pub reauthentication_extends: bool,
}

impl Limits {
    /// Returns the limits of a session that asks for shorter lifetimes of its access tokens and of
    /// itself.
    pub fn shortened(&self, access_token_ttl: Option<Micros>, lifetime: Option<Micros>) -> Self {
        let access_token_ttl = access_token_ttl.unwrap_or(self.access_token_ttl);
        Self {
            access_token_ttl,
            absolute_lifetime: lifetime.unwrap_or(self.absolute_lifetime),
            refresh_grace: self.refresh_grace.min(longest_grace(access_token_ttl)),
            ..self.clone()
        }
    }

    /// Returns the time after a refresh for which the previous refresh token yields the current one
    /// again.
    pub fn replay_window(&self) -> Micros {
        match self.until_used {
            true => self.refresh_grace.max(self.replay_limit),
            false => self.refresh_grace,
        }
    }
}

/// A replay at the end of the grace must be able to repeat an access token, and its expiry is
/// rounded down to a second.
fn longest_grace(access_token_ttl: Micros) -> Micros {
    access_token_ttl - SECOND
}
