//! Policies whose limits reach live sessions. At its next refresh or reauthentication, each limit of
//! a session becomes the stricter one of its own and the configured one.

use std::collections::BTreeMap;

use super::{
    policy::{OnRefresh, Policy, RefreshMode, Replay, SessionPolicy, longest_grace},
    session::Session,
    time::Timestamp,
};

/// The configured policies that apply to live sessions too, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LivePolicies(BTreeMap<String, Policy>);

impl LivePolicies {
    /// Selects the policies that apply to live sessions.
    pub fn among<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let live = policies.into_iter().filter(|policy| policy.apply_to_live);
        Self(live.map(|policy| (policy.session.name.to_string(), policy.clone())).collect())
    }

    /// Returns the policies.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.0.values()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl SessionPolicy {
    /// Returns the limits of which each is the stricter one of this policy and the configured one.
    fn stricter(&self, configured: &Policy) -> Self {
        let other = &configured.session;
        let access_token_ttl = self.access_token_ttl.min(other.access_token_ttl);
        let on_refresh = match self.on_refresh {
            OnRefresh::RevokeAccessToken => OnRefresh::RevokeAccessToken,
            OnRefresh::KeepAccessToken => other.on_refresh,
        };
        let (refresh_grace, replay, replay_limit) = match (self.refresh, other.refresh) {
            // There is no limit on the use of the refresh token yet, so every limit is stricter.
            (RefreshMode::Reuse, RefreshMode::Rotate) => {
                (other.refresh_grace, other.replay, other.replay_limit)
            }
            (_, RefreshMode::Reuse) => (self.refresh_grace, self.replay, self.replay_limit),
            (RefreshMode::Rotate, RefreshMode::Rotate) => (
                self.refresh_grace.min(other.refresh_grace),
                if self.replay == Replay::Grace { self.replay } else { other.replay },
                self.replay_limit.min(other.replay_limit),
            ),
        };
        Self {
            name: self.name.clone(),
            access_token_ttl,
            idle_timeout: self.idle_timeout.min(other.idle_timeout),
            refresh: match self.refresh {
                RefreshMode::Rotate => RefreshMode::Rotate,
                RefreshMode::Reuse => other.refresh,
            },
            refresh_grace: refresh_grace.min(longest_grace(access_token_ttl)),
            // A session cannot have both (`PolicyError::ReplayOfRevokedTokens`).
            replay: match on_refresh {
                OnRefresh::RevokeAccessToken => Replay::Grace,
                OnRefresh::KeepAccessToken => replay,
            },
            replay_limit,
            on_refresh,
            reauthentication_lifetime: self
                .reauthentication_lifetime
                .filter(|_| configured.reauthentication_extends)
                .map(|lifetime| lifetime.min(configured.absolute_lifetime)),
        }
    }
}

impl Session {
    /// Returns the session at `now` under the stricter limits that reach it; none if none do. The
    /// session may have expired by them.
    pub fn tightened(&self, live: &LivePolicies, now: Timestamp) -> Option<Self> {
        let configured = live.0.get(&*self.policy.name)?;
        let policy = self.policy.stricter(configured);
        let longest = self.lifetime_began_at().plus(configured.absolute_lifetime);
        let expires_at = self.expires_at.min(longest);
        if policy == self.policy && expires_at == self.expires_at {
            return None;
        }
        let idle_expiry = policy.idle_expiry(self.refreshed_at, expires_at);
        Some(Self {
            // Entries that stop the tokens issued so far must be kept for as long as these tokens
            // are valid, which the stricter limits do not say any more.
            earlier_tokens_expire_at: Some(self.last_token_expiry(now)),
            idle_expires_at: self.idle_expires_at.min(idle_expiry),
            expires_at,
            policy,
            ..self.clone()
        })
    }
}

#[cfg(test)]
#[path = "live_policy_tests.rs"]
mod tests;
