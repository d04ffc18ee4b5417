//! The limits of a session: how long its tokens and it itself live, and how many a subject may have.

use std::time::Duration;

use super::{
    text::{Audience, PolicyName},
    time::Timestamp,
};

/// Name of the policy that is always there.
pub const DEFAULT: &str = "default";

/// The longest lifetime that any configuration may give an access token: beyond it, a token is no longer short-lived.
pub const LONGEST_ACCESS_TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);

/// What is special about a tenant, as configured.
#[derive(Clone, Debug, Default)]
pub struct TenantRules {
    /// The policy of its sessions that name none.
    pub policy: Option<PolicyName>,
    /// The audiences that its sessions may have; empty for any.
    pub audiences: Vec<Audience>,
}

/// The limits that new sessions are created under, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What of it goes along with each session.
    pub session: SessionPolicy,
    /// How long a session lives, however often it is refreshed.
    pub absolute_lifetime: Duration,
    /// How many live sessions a subject may have; zero for no limit.
    pub max_sessions_per_subject: u32,
    /// What happens when one more is asked for.
    pub on_quota: OnQuota,
}

/// The limits that a session keeps from its creation on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Name of the policy.
    pub name: PolicyName,
    /// How long an access token lives at most.
    pub access_token_ttl: Duration,
    /// How long the session lives without a refresh.
    pub idle_timeout: Duration,
    /// How long after a rotation the previous refresh token yields the current one.
    pub refresh_grace: Duration,
    /// What a refresh does to the access token before it.
    pub on_refresh: OnRefresh,
}

/// What happens when a subject has as many sessions as its policy allows and asks for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnQuota {
    /// The oldest session ends.
    EvictOldest,
    /// The new session is refused.
    Refuse,
}

/// What a refresh does to the access token issued before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRefresh {
    /// It stays active until it expires.
    KeepAccessToken,
    /// It is inactive from the refresh on.
    RevokeAccessToken,
}

impl OnRefresh {
    /// The name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepAccessToken => "keep_access_token",
            Self::RevokeAccessToken => "revoke_access_token",
        }
    }

    /// The value of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::KeepAccessToken, Self::RevokeAccessToken].into_iter().find(|value| value.as_str() == name)
    }
}

/// Limits that contradict each other. It prints as the end of a sentence that starts with the policy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Tokens carry whole seconds.
    #[error("access_token_ttl must be at least 1s")]
    AccessTokenTooShort,
    /// A token of such a lifetime would not validate.
    #[error("access_token_ttl must not be longer than tokens.max_access_token_ttl")]
    AccessTokenTooLong,
    /// Access tokens would outlive the idle session.
    #[error("idle_timeout must not be shorter than access_token_ttl")]
    IdleShorterThanAccessToken,
    /// The idle time-out would never be reached.
    #[error("absolute_lifetime must not be shorter than idle_timeout")]
    AbsoluteShorterThanIdle,
    /// A replay could not repeat an access token that is still alive.
    #[error("refresh_grace must be shorter than access_token_ttl by at least a second")]
    GraceTooLong,
    /// Beyond what instants can tell.
    #[error("absolute_lifetime must be at most 36500d")]
    AbsoluteTooLong,
}

/// The longest absolute lifetime, a hundred years: instants far beyond it could not be told.
const LONGEST_LIFETIME: Duration = Duration::from_secs(36_500 * 86_400);

impl Policy {
    /// Refuses limits that contradict each other.
    pub fn check(&self, max_access_token_ttl: Duration) -> Result<(), PolicyError> {
        let SessionPolicy { access_token_ttl, idle_timeout, refresh_grace, .. } = self.session;
        if access_token_ttl < Duration::from_secs(1) {
            return Err(PolicyError::AccessTokenTooShort);
        }
        if access_token_ttl > max_access_token_ttl {
            return Err(PolicyError::AccessTokenTooLong);
        }
        if idle_timeout < access_token_ttl {
            return Err(PolicyError::IdleShorterThanAccessToken);
        }
        if self.absolute_lifetime < idle_timeout {
            return Err(PolicyError::AbsoluteShorterThanIdle);
        }
        if self.absolute_lifetime > LONGEST_LIFETIME {
            return Err(PolicyError::AbsoluteTooLong);
        }
        // Expiries are rounded down to a whole second.
        if refresh_grace > access_token_ttl.saturating_sub(Duration::from_secs(1)) {
            return Err(PolicyError::GraceTooLong);
        }
        Ok(())
    }
}

impl SessionPolicy {
    /// When a session touched at `now` goes idle: never after its absolute end.
    pub fn idle_expiry(&self, now: Timestamp, expires_at: Timestamp) -> Timestamp {
        now.plus(self.idle_timeout).min(expires_at)
    }

    /// When an access token issued at `now` expires: never after the session, in whole seconds.
    ///
    /// The session's idle end bounds it too, so that a session that has gone idle has no token that still validates.
    pub fn access_token_expiry(&self, now: Timestamp, idle_expires_at: Timestamp) -> Timestamp {
        now.floor_to_second().plus(self.access_token_ttl).min(idle_expires_at).floor_to_second()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(access: u64, idle: u64, absolute: u64, grace: u64) -> Policy {
        Policy {
            session: SessionPolicy {
                name: PolicyName::try_from("p".to_owned()).unwrap(),
                access_token_ttl: Duration::from_secs(access),
                idle_timeout: Duration::from_secs(idle),
                refresh_grace: Duration::from_secs(grace),
                on_refresh: OnRefresh::KeepAccessToken,
            },
            absolute_lifetime: Duration::from_secs(absolute),
            max_sessions_per_subject: 1,
            on_quota: OnQuota::Refuse,
        }
    }

    #[test]
    fn contradicting_limits_are_refused_one_by_one() {
        let longest = Duration::from_secs(3600);
        assert_eq!(policy(600, 7200, 86400, 10).check(longest), Ok(()));
        assert_eq!(policy(0, 7200, 86400, 0).check(longest), Err(PolicyError::AccessTokenTooShort));
        assert_eq!(policy(3601, 7200, 86400, 10).check(longest), Err(PolicyError::AccessTokenTooLong));
        assert_eq!(policy(600, 599, 86400, 10).check(longest), Err(PolicyError::IdleShorterThanAccessToken));
        assert_eq!(policy(600, 7200, 7199, 10).check(longest), Err(PolicyError::AbsoluteShorterThanIdle));
        assert_eq!(policy(600, 7200, 86400, 599).check(longest), Ok(()));
        assert_eq!(policy(600, 7200, 86400, 600).check(longest), Err(PolicyError::GraceTooLong));
        assert_eq!(policy(600, 7200, 4_000_000_000, 10).check(longest), Err(PolicyError::AbsoluteTooLong));
    }

    proptest! {
        #[test]
        fn no_expiry_ever_passes_the_one_above_it(
            now in 0i64..4_000_000_000_000_000, left in 0u64..10_000_000_000_000,
            access in 1u64..100_000, idle in 1u64..10_000_000,
        ) {
            let now = Timestamp::from_micros(now);
            let expires_at = now.plus(Duration::from_micros(left));
            let policy = policy(access, idle, idle, 0).session;
            let idle_expires_at = policy.idle_expiry(now, expires_at);
            let token = policy.access_token_expiry(now, idle_expires_at);
            prop_assert!(token <= idle_expires_at);
            prop_assert!(idle_expires_at <= expires_at);
            prop_assert!(idle_expires_at.since(now) <= policy.idle_timeout);
            prop_assert!(token.since(now) <= policy.access_token_ttl);
            prop_assert_eq!(token.subsecond_micros(), 0);
        }
    }
}
