//! The limits of a session: how long its tokens and it itself live, and how many a subject may
//! have.

use std::time::Duration;

use super::{
    text::{Audience, PolicyName},
    time::Timestamp,
};

/// Name of the policy that is always there.
pub const DEFAULT: &str = "default";

/// The longest lifetime that any configuration may give an access token: beyond it, a token is no
/// longer short-lived.
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
    /// The time after a rotation in which the previous refresh token yields the current one in any
    /// case.
    pub refresh_grace: Duration,
    /// Extends that time as long as the current refresh token has never been presented.
    pub replay: Replay,
    /// The longest time after a rotation for which [`Replay::UntilUsed`] extends it.
    pub replay_limit: Duration,
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

/// For how long the previous refresh token yields the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// Within the grace alone.
    Grace,
    /// Also later, until the current one is presented: until then it may never have arrived.
    UntilUsed,
}

impl Replay {
    /// The name under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grace => "grace",
            Self::UntilUsed => "until_used",
        }
    }

    /// The value of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Grace, Self::UntilUsed].into_iter().find(|value| value.as_str() == name)
    }
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
        [Self::KeepAccessToken, Self::RevokeAccessToken]
            .into_iter()
            .find(|value| value.as_str() == name)
    }
}

/// Limits that contradict each other. It prints as the end of a sentence that starts with the
/// policy's name.
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
    /// A replay until use would end before the grace does.
    #[error("replay_limit must not be shorter than refresh_grace")]
    ReplayLimitTooShort,
    /// An access token would have to be issued again under its identifier long after it expired,
    /// and its blacklist entry kept as long: a client that refreshes often could fill the
    /// blacklist.
    #[error(
        "replay = \"until_used\" does not go with on_refresh = \"revoke_access_token\": choose one"
    )]
    ReplayOfRevokedTokens,
    /// Beyond what instants can tell.
    #[error("replay_limit must be at most 36500d")]
    ReplayLimitTooLong,
    /// Beyond what instants can tell.
    #[error("absolute_lifetime must be at most 36500d")]
    AbsoluteTooLong,
}

/// The longest absolute lifetime, a hundred years: instants far beyond it could not be told.
const LONGEST_LIFETIME: Duration = Duration::from_secs(36_500 * 86_400);

impl Policy {
    /// Refuses limits that contradict each other.
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

/// The longest grace for access tokens of this lifetime. A replay within the grace may have to
/// repeat an access token, which must be active then; its expiry is rounded down to a whole second.
pub fn longest_grace(access_token_ttl: Duration) -> Duration {
    access_token_ttl.saturating_sub(Duration::from_secs(1))
}

impl SessionPolicy {
    /// The time after a rotation in which the previous refresh token yields the current one, unless
    /// the current one is presented meanwhile.
    pub fn replay_window(&self) -> Duration {
        match self.replay {
            Replay::Grace => self.refresh_grace,
            Replay::UntilUsed => self.refresh_grace.max(self.replay_limit),
        }
    }

    /// When a session touched at `now` goes idle: never after its absolute end.
    pub fn idle_expiry(&self, now: Timestamp, expires_at: Timestamp) -> Timestamp {
        now.plus(self.idle_timeout).min(expires_at)
    }

    /// When an access token issued at `now` expires: never after the session, in whole seconds.
    ///
    /// The session's idle end bounds it too, so that a session that has gone idle has no token that
    /// still validates.
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
                replay: Replay::Grace,
                replay_limit: Duration::from_secs(86_400),
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
        assert_eq!(replaying(Replay::UntilUsed, 1_000_000), Ok(()), "the session ends before");
        assert_eq!(replaying(Replay::UntilUsed, 9), Err(PolicyError::ReplayLimitTooShort));
        assert_eq!(replaying(Replay::Grace, 9), Ok(()), "it counts for nothing");
        assert_eq!(
            replaying(Replay::UntilUsed, 4_000_000_000),
            Err(PolicyError::ReplayLimitTooLong)
        );
    }

    #[test]
    fn the_limit_counts_where_replays_last_until_use() {
        let mut policy = policy(600, 7200, 86400, 10).session;
        assert_eq!(policy.replay_window(), Duration::from_secs(10));
        policy.replay = Replay::UntilUsed;
        assert_eq!(policy.replay_window(), Duration::from_secs(86_400));
        policy.replay_limit = Duration::ZERO;
        assert_eq!(policy.replay_window(), Duration::from_secs(10), "the grace holds in any case");
        for replay in [Replay::Grace, Replay::UntilUsed] {
            assert_eq!(Replay::from_name(replay.as_str()), Some(replay));
        }
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
