//! Policies: the lifetimes of a session and its tokens, and the number of sessions that a subject
//! may have.

use std::time::Duration;

use super::{text::PolicyName, time::Timestamp};

/// The name of the policy that always exists.
pub const DEFAULT: &str = "default";

/// The longest lifetime that the configuration may give to access tokens. They are meant to be
/// short-lived.
pub const LONGEST_ACCESS_TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The limits for new sessions, as the configuration sets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The limits that each session keeps.
    pub session: SessionPolicy,
    /// The longest lifetime of a session, however often it is refreshed.
    pub absolute_lifetime: Duration,
    /// True if a reauthentication begins this lifetime anew.
    pub reauthentication_extends: bool,
    /// The number of live sessions that a subject may have; zero for no limit.
    pub max_sessions_per_subject: u32,
    /// The reaction to a request for a session beyond that number.
    pub on_quota: OnQuota,
    /// True if the limits reach the live sessions of the policy
    /// ([`LivePolicies`](super::live_policy::LivePolicies)).
    pub apply_to_live: bool,
}

/// The limits that a session has. It keeps them from its creation on, unless stricter ones reach it
/// ([`LivePolicies`](super::live_policy::LivePolicies)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPolicy {
    /// The name of the policy.
    pub name: PolicyName,
    /// The longest lifetime of an access token.
    pub access_token_ttl: Duration,
    /// The time after which the session expires unless it is refreshed.
    pub idle_timeout: Duration,
    /// Determines whether a refresh yields a new refresh token.
    pub refresh: RefreshMode,
    /// The time after a rotation in which the previous refresh token always yields the current one.
    pub refresh_grace: Duration,
    /// Determines whether the previous refresh token yields the current one even after the grace,
    /// as long as the current one has not been presented.
    pub replay: Replay,
    /// The time after a rotation in which [`Replay::UntilUsed`] has an effect.
    pub replay_limit: Duration,
    /// The effect of a refresh on the previous access token.
    pub on_refresh: OnRefresh,
    /// The time for which the session may live after a reauthentication, counted from that instant;
    /// none if a reauthentication does not extend the session.
    pub reauthentication_lifetime: Option<Duration>,
}

/// The reaction to a request for a new session if the subject already has as many sessions as its
/// policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnQuota {
    /// The oldest session ends.
    EvictOldest,
    /// The new session is refused.
    Refuse,
}

/// The effect of a refresh on the refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshMode {
    /// A refresh yields the next refresh token. The use of an earlier one ends the session.
    Rotate,
    /// The refresh token stays the same for as long as the session lives, so its theft is not
    /// noticed. This is meant for machines that cannot store a new token.
    Reuse,
}

impl RefreshMode {
    /// Returns the name under which the value is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Reuse => "reuse",
        }
    }

    /// Returns the value with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Rotate, Self::Reuse].into_iter().find(|value| value.as_str() == name)
    }
}

/// The time for which the previous refresh token yields the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// Only within the grace.
    Grace,
    /// Also after the grace, until the current refresh token is presented. Until then, it is
    /// possible that the client has never received the current token.
    UntilUsed,
}

impl Replay {
    /// Returns the name under which the value is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grace => "grace",
            Self::UntilUsed => "until_used",
        }
    }

    /// Returns the value with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Grace, Self::UntilUsed].into_iter().find(|value| value.as_str() == name)
    }
}

/// The effect of a refresh on the access token that was issued before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRefresh {
    /// The token stays valid until it expires.
    KeepAccessToken,
    /// The token is invalid from the refresh on.
    RevokeAccessToken,
}

impl OnRefresh {
    /// Returns the name under which the value is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepAccessToken => "keep_access_token",
            Self::RevokeAccessToken => "revoke_access_token",
        }
    }

    /// Returns the value with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::KeepAccessToken, Self::RevokeAccessToken]
            .into_iter()
            .find(|value| value.as_str() == name)
    }
}

/// The limits of a policy contradict each other or are out of range. The displayed text completes a
/// sentence that starts with the policy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Tokens carry whole seconds, so a shorter lifetime cannot be expressed.
    #[error("access_token_ttl must be at least 1s")]
    AccessTokenTooShort,
    /// A token with such a lifetime would be refused by Validate.
    #[error("access_token_ttl must not be longer than tokens.max_access_token_ttl")]
    AccessTokenTooLong,
    /// Access tokens would outlive a session that is not refreshed.
    #[error("idle_timeout must not be shorter than access_token_ttl")]
    IdleShorterThanAccessToken,
    /// The idle timeout would never be reached.
    #[error("absolute_lifetime must not be shorter than idle_timeout")]
    AbsoluteShorterThanIdle,
    /// At the end of the grace, a replay could no longer repeat a valid access token.
    #[error("refresh_grace must be shorter than access_token_ttl by at least a second")]
    GraceTooLong,
    /// Replays under [`Replay::UntilUsed`] would end before the grace does.
    #[error("replay_limit must not be shorter than refresh_grace")]
    ReplayLimitTooShort,
    /// A late replay would have to issue the access token again with the same `jti`. Once such a
    /// token is revoked, its blacklist entry would have to be kept for as long as replays are
    /// possible, so a client that refreshes often could fill the blacklist.
    #[error(
        "replay = \"until_used\" does not go with on_refresh = \"revoke_access_token\": choose one"
    )]
    ReplayOfRevokedTokens,
    /// Instants that far in the future may not be representable.
    #[error("replay_limit must be at most 36500d")]
    ReplayLimitTooLong,
    /// Instants that far in the future may not be representable.
    #[error("absolute_lifetime must be at most 36500d")]
    AbsoluteTooLong,
}

/// The longest absolute lifetime, a hundred years. Instants far beyond it may not be representable.
const LONGEST_LIFETIME: Duration = Duration::from_secs(36_500 * 86_400);

impl Policy {
    /// Checks that the limits are in range and do not contradict each other. Fails with the first
    /// problem found.
    pub fn check(&self, max_access_token_ttl: Duration) -> Result<(), PolicyError> {
        let SessionPolicy {
            access_token_ttl,
            idle_timeout,
            refresh_grace,
            replay,
            replay_limit,
            ..
        } = self.session;
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
        if refresh_grace > longest_grace(access_token_ttl) {
            return Err(PolicyError::GraceTooLong);
        }
        if replay == Replay::UntilUsed && replay_limit < refresh_grace {
            return Err(PolicyError::ReplayLimitTooShort);
        }
        if replay == Replay::UntilUsed && self.session.on_refresh == OnRefresh::RevokeAccessToken {
            return Err(PolicyError::ReplayOfRevokedTokens);
        }
        if replay_limit > LONGEST_LIFETIME {
            return Err(PolicyError::ReplayLimitTooLong);
        }
        Ok(())
    }
}

/// Returns the longest grace for access tokens of this lifetime. A replay within the grace may have
/// to repeat an access token, which must still be valid. The token's expiry is rounded down to a
/// whole second, so the grace must be a second shorter than the lifetime.
pub fn longest_grace(access_token_ttl: Duration) -> Duration {
    access_token_ttl.saturating_sub(Duration::from_secs(1))
}

impl SessionPolicy {
    /// Returns the time after a rotation in which the previous refresh token yields the current
    /// one, unless the current one is presented meanwhile.
    pub fn replay_window(&self) -> Duration {
        match (self.refresh, self.replay) {
            // There is no previous refresh token.
            (RefreshMode::Reuse, _) => Duration::ZERO,
            (RefreshMode::Rotate, Replay::Grace) => self.refresh_grace,
            (RefreshMode::Rotate, Replay::UntilUsed) => self.refresh_grace.max(self.replay_limit),
        }
    }

    /// Returns the idle expiry of a session that is created or refreshed at `now`. The idle expiry
    /// is never later than the absolute expiry.
    pub fn idle_expiry(&self, now: Timestamp, expires_at: Timestamp) -> Timestamp {
        now.plus(self.idle_timeout).min(expires_at)
    }

    /// Returns the expiry of an access token issued at `now`, in whole seconds.
    ///
    /// The expiry is never later than the session's idle expiry, so that no token outlives its
    /// session.
    pub fn access_token_expiry(&self, now: Timestamp, idle_expires_at: Timestamp) -> Timestamp {
        now.floor_to_second().plus(self.access_token_ttl).min(idle_expires_at).floor_to_second()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn policy(access: u64, idle: u64, absolute: u64, grace: u64) -> Policy {
        Policy {
            session: SessionPolicy {
                name: PolicyName::try_from("p".to_owned()).unwrap(),
                access_token_ttl: Duration::from_secs(access),
                idle_timeout: Duration::from_secs(idle),
                refresh: RefreshMode::Rotate,
                refresh_grace: Duration::from_secs(grace),
                replay: Replay::Grace,
                replay_limit: Duration::from_secs(86_400),
                on_refresh: OnRefresh::KeepAccessToken,
                reauthentication_lifetime: None,
            },
            absolute_lifetime: Duration::from_secs(absolute),
            reauthentication_extends: false,
            max_sessions_per_subject: 1,
            on_quota: OnQuota::Refuse,
            apply_to_live: false,
        }
    }

    #[test]
    fn each_contradiction_between_limits_is_refused_with_its_own_error() {
        let longest = Duration::from_secs(3600);
        assert_eq!(policy(600, 7200, 86400, 10).check(longest), Ok(()));
        assert_eq!(policy(0, 7200, 86400, 0).check(longest), Err(PolicyError::AccessTokenTooShort));
        assert_eq!(
            policy(3601, 7200, 86400, 10).check(longest),
            Err(PolicyError::AccessTokenTooLong)
        );
        assert_eq!(
            policy(600, 599, 86400, 10).check(longest),
            Err(PolicyError::IdleShorterThanAccessToken)
        );
        assert_eq!(
            policy(600, 7200, 7199, 10).check(longest),
            Err(PolicyError::AbsoluteShorterThanIdle)
        );
        assert_eq!(policy(600, 7200, 86400, 599).check(longest), Ok(()));
        assert_eq!(policy(600, 7200, 86400, 600).check(longest), Err(PolicyError::GraceTooLong));
        assert_eq!(
            policy(600, 7200, 4_000_000_000, 10).check(longest),
            Err(PolicyError::AbsoluteTooLong)
        );
        let replaying = |replay, limit| {
            let mut policy = policy(600, 7200, 86400, 10);
            policy.session.replay = replay;
            policy.session.replay_limit = Duration::from_secs(limit);
            policy.check(longest)
        };
        assert_eq!(replaying(Replay::UntilUsed, 10), Ok(()));
        assert_eq!(replaying(Replay::UntilUsed, 1_000_000), Ok(()), "the session ends earlier");
        assert_eq!(replaying(Replay::UntilUsed, 9), Err(PolicyError::ReplayLimitTooShort));
        assert_eq!(replaying(Replay::Grace, 9), Ok(()), "the limit has no effect");
        assert_eq!(
            replaying(Replay::UntilUsed, 4_000_000_000),
            Err(PolicyError::ReplayLimitTooLong)
        );
    }

    #[test]
    fn the_replay_limit_has_an_effect_only_with_until_used() {
        let mut policy = policy(600, 7200, 86400, 10).session;
        assert_eq!(policy.replay_window(), Duration::from_secs(10));
        policy.replay = Replay::UntilUsed;
        assert_eq!(policy.replay_window(), Duration::from_secs(86_400));
        policy.replay_limit = Duration::ZERO;
        assert_eq!(policy.replay_window(), Duration::from_secs(10), "the grace holds in any case");
        policy.refresh = RefreshMode::Reuse;
        assert_eq!(policy.replay_window(), Duration::ZERO, "there is nothing to replay");
        for replay in [Replay::Grace, Replay::UntilUsed] {
            assert_eq!(Replay::from_name(replay.as_str()), Some(replay));
        }
        for mode in [RefreshMode::Rotate, RefreshMode::Reuse] {
            assert_eq!(RefreshMode::from_name(mode.as_str()), Some(mode));
        }
    }

    proptest! {
        #[test]
        fn an_access_token_outlives_neither_its_session_nor_its_configured_lifetime(
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
