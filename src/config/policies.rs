//! `[policies.NAME]`: the limits of sessions. A policy takes the limits that it does not set from
//! `policies.default`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid},
    tokens::Tokens,
};
use crate::domain::{
    policy::{DEFAULT, OnQuota, OnRefresh, Policy, Replay, SessionPolicy, longest_grace},
    text::PolicyName,
};

/// The policies by name.
pub type Policies = BTreeMap<String, Policy>;

/// A policy before it is completed and checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    #[serde(with = "super::span")]
    access_token_ttl: Option<Duration>,
    #[serde(with = "super::span")]
    idle_timeout: Option<Duration>,
    #[serde(with = "super::span")]
    absolute_lifetime: Option<Duration>,
    #[serde(with = "super::span")]
    refresh_grace: Option<Duration>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    replay: Option<Replay>,
    #[serde(with = "super::span")]
    replay_limit: Option<Duration>,
    max_sessions_per_subject: Option<u32>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    on_quota: Option<OnQuota>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    on_refresh: Option<OnRefresh>,
    reauthentication_extends: Option<bool>,
}

impl From<&Policy> for RawPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            access_token_ttl: Some(policy.session.access_token_ttl),
            idle_timeout: Some(policy.session.idle_timeout),
            absolute_lifetime: Some(policy.absolute_lifetime),
            refresh_grace: Some(policy.session.refresh_grace),
            replay: Some(policy.session.replay),
            replay_limit: Some(policy.session.replay_limit),
            max_sessions_per_subject: Some(policy.max_sessions_per_subject),
            on_quota: Some(policy.on_quota),
            on_refresh: Some(policy.session.on_refresh),
            reauthentication_extends: Some(policy.reauthentication_extends),
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn built_in(name: PolicyName) -> Policy {
    Policy {
        session: SessionPolicy {
            name,
            access_token_ttl: Duration::from_secs(600),
            idle_timeout: DAY * 14,
            refresh_grace: Duration::from_secs(30),
            replay: Replay::Grace,
            replay_limit: DAY,
            on_refresh: OnRefresh::KeepAccessToken,
            reauthentication_lifetime: None,
        },
        absolute_lifetime: DAY * 90,
        reauthentication_extends: false,
        max_sessions_per_subject: 50,
        on_quota: OnQuota::EvictOldest,
    }
}

/// Completes and checks the policies.
pub fn check(raw: &BTreeMap<String, RawPolicy>, tokens: &Tokens) -> Result<Policies, ConfigError> {
    let named = |name: &str| {
        PolicyName::try_from(name.to_owned())
            .map_err(|error| invalid(format!("policies.{name:?}"), error))
    };
    let empty = RawPolicy::default();
    let default =
        complete(&built_in(named(DEFAULT)?), raw.get(DEFAULT).unwrap_or(&empty), named(DEFAULT)?);
    let mut policies = Policies::from([(DEFAULT.to_owned(), default.clone())]);
    for (name, policy) in raw.iter().filter(|(name, _)| *name != DEFAULT) {
        policies.insert(name.clone(), complete(&default, policy, named(name)?));
    }
    for (name, policy) in &policies {
        policy
            .check(tokens.max_access_token_ttl)
            .map_err(|error| invalid(format!("policies.{name}"), error))?;
    }
    Ok(policies)
}

/// Returns the longest time for which any policy accepts a previous refresh token.
pub fn longest_replay(policies: &Policies) -> Duration {
    let windows = policies.values().map(|policy| policy.session.replay_window());
    windows.max().unwrap_or_default()
}

/// Returns the policies without their derived limits. Derived are the limits that a policy takes
/// from the default policy, and a grace that is shortened to fit the lifetime of access tokens.
pub fn written(
    raw: &BTreeMap<String, RawPolicy>,
    policies: &Policies,
) -> BTreeMap<String, RawPolicy> {
    let mut written = raw.clone();
    if let Some(policy) = policies.get(DEFAULT) {
        let refresh_grace = raw.get(DEFAULT).and_then(|policy| policy.refresh_grace);
        written.insert(DEFAULT.to_owned(), RawPolicy { refresh_grace, ..RawPolicy::from(policy) });
    }
    written
}

fn complete(base: &Policy, raw: &RawPolicy, name: PolicyName) -> Policy {
    let session = &base.session;
    let access_token_ttl = raw.access_token_ttl.unwrap_or(session.access_token_ttl);
    // The inherited grace is shortened if need be, so that a policy with a short `access_token_ttl`
    // need not set a grace as well.
    let inherited_grace = session.refresh_grace.min(longest_grace(access_token_ttl));
    Policy {
        session: SessionPolicy {
            name,
            access_token_ttl,
            idle_timeout: raw.idle_timeout.unwrap_or(session.idle_timeout),
            refresh_grace: raw.refresh_grace.unwrap_or(inherited_grace),
            replay: raw.replay.unwrap_or(session.replay),
            replay_limit: raw.replay_limit.unwrap_or(session.replay_limit),
            on_refresh: raw.on_refresh.unwrap_or(session.on_refresh),
            // A session gets its own lifetime.
            reauthentication_lifetime: None,
        },
        absolute_lifetime: raw.absolute_lifetime.unwrap_or(base.absolute_lifetime),
        reauthentication_extends: raw
            .reauthentication_extends
            .unwrap_or(base.reauthentication_extends),
        max_sessions_per_subject: raw
            .max_sessions_per_subject
            .unwrap_or(base.max_sessions_per_subject),
        on_quota: raw.on_quota.unwrap_or(base.on_quota),
    }
}
