//! Policies, and the limits that a session has.

use super::{Micros, SECOND};

/// A policy.
#[derive(Debug, PartialEq)]
pub struct Policy {
    pub name: &'static str,
    pub limits: Limits,
    /// The limits by the strict settings; none for the same ones.
    pub strict: Option<Limits>,
    pub applies_to_live: bool,
    /// The maximum number of live sessions of a subject; 0 for no limit.
    pub max_sessions: usize,
    /// True if the quota refuses a session instead of evicting the oldest.
    pub refuses: bool,
}

/// The settings of the service, of which one or the other are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Settings {
    #[default]
    Usual,
    /// Some policies have stricter limits, and refresh tokens of other systems are not accepted.
    Strict,
}

impl Policy {
    /// Returns the limits by these settings.
    pub fn limits(&self, settings: Settings) -> &Limits {
        match (settings, &self.strict) {
            (Settings::Strict, Some(strict)) => strict,
            _ => &self.limits,
        }
    }
}

/// The limits of a policy, or of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub access_token_ttl: Micros,
    pub idle_timeout: Micros,
    pub absolute_lifetime: Micros,
    /// True for `refresh = "reuse"`. There are no replays then.
    pub reuses: bool,
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

    /// Returns the limits of a session with these ones that other limits reach: of each limit the
    /// stricter one.
    pub fn stricter(&self, other: &Self) -> Self {
        let access_token_ttl = self.access_token_ttl.min(other.access_token_ttl);
        let revokes_access_token = self.revokes_access_token || other.revokes_access_token;
        // Without rotation, nothing limits the use of a refresh token.
        let (refresh_grace, until_used, replay_limit) = match (self.reuses, other.reuses) {
            (true, false) => (other.refresh_grace, other.until_used, other.replay_limit),
            (_, true) => (self.refresh_grace, self.until_used, self.replay_limit),
            (false, false) => (
                self.refresh_grace.min(other.refresh_grace),
                self.until_used && other.until_used,
                self.replay_limit.min(other.replay_limit),
            ),
        };
        Self {
            access_token_ttl,
            idle_timeout: self.idle_timeout.min(other.idle_timeout),
            absolute_lifetime: self.absolute_lifetime.min(other.absolute_lifetime),
            reuses: self.reuses && other.reuses,
            refresh_grace: refresh_grace.min(longest_grace(access_token_ttl)),
            // A policy cannot have both.
            until_used: until_used && !revokes_access_token,
            replay_limit,
            revokes_access_token,
            reauthentication_extends: self.reauthentication_extends
                && other.reauthentication_extends,
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
