//! `[policies.NAME]`: the limits of sessions. A policy takes the limits that it does not set from
//! its preset, or else from `policies.default`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid, unknown_word},
    tokens::Tokens,
};
use crate::domain::{
    policy::{
        DEFAULT, OnQuota, OnRefresh, Policy, RefreshMode, Replay, SessionPolicy, longest_grace,
    },
    preset::Preset,
    text::PolicyName,
};

/// The policies by name.
pub type Policies = BTreeMap<String, Policy>;

/// A policy before it is completed and checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    #[serde(with = "super::span")]
    access_token_ttl: Option<Duration>,
    #[serde(with = "super::span")]
    idle_timeout: Option<Duration>,
    #[serde(with = "super::span")]
    absolute_lifetime: Option<Duration>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    refresh: Option<RefreshMode>,
    #[serde(with = "super::span", skip_serializing_if = "Option::is_none")]
    refresh_grace: Option<Duration>,
    #[serde(
        deserialize_with = "super::section::read_optional_choice",
        skip_serializing_if = "Option::is_none"
    )]
    replay: Option<Replay>,
    #[serde(with = "super::span", skip_serializing_if = "Option::is_none")]
    replay_limit: Option<Duration>,
    max_sessions_per_subject: Option<u32>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    on_quota: Option<OnQuota>,
    #[serde(deserialize_with = "super::section::read_optional_choice")]
    on_refresh: Option<OnRefresh>,
    reauthentication_extends: Option<bool>,
    apply_to_live: Option<bool>,
}

impl From<&Policy> for RawPolicy {
    fn from(policy: &Policy) -> Self {
        // A policy whose refresh token stays the same has no replays, so limits of theirs would be
        // refused.
        let rotates = policy.session.refresh == RefreshMode::Rotate;
        Self {
            preset: None,
            access_token_ttl: Some(policy.session.access_token_ttl),
            idle_timeout: Some(policy.session.idle_timeout),
            absolute_lifetime: Some(policy.absolute_lifetime),
            refresh: Some(policy.session.refresh),
            refresh_grace: rotates.then_some(policy.session.refresh_grace),
            replay: rotates.then_some(policy.session.replay),
            replay_limit: rotates.then_some(policy.session.replay_limit),
            max_sessions_per_subject: Some(policy.max_sessions_per_subject),
            on_quota: Some(policy.on_quota),
            on_refresh: Some(policy.session.on_refresh),
            reauthentication_extends: Some(policy.reauthentication_extends),
            apply_to_live: Some(policy.apply_to_live),
        }
    }
}

impl From<Preset> for RawPolicy {
    fn from(preset: Preset) -> Self {
        let limits = preset.limits();
        Self {
            access_token_ttl: Some(limits.access_token_ttl),
            idle_timeout: Some(limits.idle_timeout),
            absolute_lifetime: Some(limits.absolute_lifetime),
            reauthentication_extends: Some(limits.reauthentication_extends),
            ..Self::default()
        }
    }
}

impl RawPolicy {
    /// Takes from `base` what this policy does not set.
    fn or(&self, base: &Self) -> Self {
        Self {
            preset: self.preset.clone(),
            access_token_ttl: self.access_token_ttl.or(base.access_token_ttl),
            idle_timeout: self.idle_timeout.or(base.idle_timeout),
            absolute_lifetime: self.absolute_lifetime.or(base.absolute_lifetime),
            refresh: self.refresh.or(base.refresh),
            refresh_grace: self.refresh_grace.or(base.refresh_grace),
            replay: self.replay.or(base.replay),
            replay_limit: self.replay_limit.or(base.replay_limit),
            max_sessions_per_subject: self
                .max_sessions_per_subject
                .or(base.max_sessions_per_subject),
            on_quota: self.on_quota.or(base.on_quota),
            on_refresh: self.on_refresh.or(base.on_refresh),
            reauthentication_extends: self
                .reauthentication_extends
                .or(base.reauthentication_extends),
            apply_to_live: self.apply_to_live.or(base.apply_to_live),
        }
    }

    /// Returns the preset from which the policy starts, if it names one.
    fn preset(&self, name: &str) -> Result<Option<Preset>, ConfigError> {
        let Some(word) = &self.preset else { return Ok(None) };
        let known = Preset::ALL.map(Preset::as_str);
        let unknown = || unknown_word(format!("policies.{name}.preset"), word, &known);
        Preset::from_name(word).ok_or_else(unknown).map(Some)
    }

    /// Checks that the policy sets no limit of replays if its refresh token stays the same.
    fn check_replays(&self, name: &str, refresh: RefreshMode) -> Result<(), ConfigError> {
        let set = [
            ("refresh_grace", self.refresh_grace.is_some()),
            ("replay", self.replay.is_some()),
            ("replay_limit", self.replay_limit.is_some()),
        ];
        match (refresh, set.into_iter().find(|(_, is_set)| *is_set)) {
            (RefreshMode::Reuse, Some((setting, _))) => Err(invalid(
                format!("policies.{name}.{setting}"),
                "does not go with refresh = \"reuse\", under which the refresh token stays the \
                 same: leave one of the two out",
            )),
            _ => Ok(()),
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
            refresh: RefreshMode::Rotate,
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
        apply_to_live: false,
    }
}

/// Completes and checks the policies, and adds the presets.
pub fn check(raw: &BTreeMap<String, RawPolicy>, tokens: &Tokens) -> Result<Policies, ConfigError> {
    let default = raw.get(DEFAULT).cloned().unwrap_or_default();
    let default_base = default.preset(DEFAULT)?.map(RawPolicy::from).unwrap_or_default();
    // The other policies inherit what the default policy has from its preset too.
    let inherited = default.or(&default_base);
    let mut policies = Policies::new();
    for preset in Preset::ALL {
        let limits = RawPolicy::from(preset);
        // A preset must not make a shorter `tokens.max_access_token_ttl` an error.
        let access_token_ttl =
            limits.access_token_ttl.map(|ttl| ttl.min(tokens.max_access_token_ttl));
        let limits = RawPolicy { access_token_ttl, ..limits };
        policies.insert(preset.as_str().to_owned(), complete(&limits, None, preset.as_str())?);
    }
    for (name, policy) in raw.iter().filter(|(name, _)| *name != DEFAULT) {
        if Preset::from_name(name).is_some() {
            return Err(invalid(
                format!("policies.{name}"),
                format!(
                    "is the name of a preset, which cannot be changed: give your policy another \
                     name, and preset = \"{name}\""
                ),
            ));
        }
        let base = match policy.preset(name)? {
            Some(preset) => RawPolicy::from(preset),
            None => inherited.clone(),
        };
        policies.insert(name.clone(), complete(policy, Some(&base), name)?);
    }
    policies.insert(DEFAULT.to_owned(), complete(&default, Some(&default_base), DEFAULT)?);
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

/// Returns the policies without their derived limits. Derived are the presets, the limits that a
/// policy takes from a preset or from the default policy, and a grace that is shortened to fit the
/// lifetime of access tokens.
pub fn written(
    raw: &BTreeMap<String, RawPolicy>,
    policies: &Policies,
) -> BTreeMap<String, RawPolicy> {
    let mut written = raw.clone();
    // The limits of a default policy that starts from a preset are derived from it.
    let default = raw.get(DEFAULT).cloned().unwrap_or_default();
    if let (Some(policy), None) = (policies.get(DEFAULT), &default.preset) {
        let RawPolicy { refresh_grace, .. } = default;
        written.insert(DEFAULT.to_owned(), RawPolicy { refresh_grace, ..RawPolicy::from(policy) });
    }
    written
}

/// Returns all policies in force, with the presets that they start from.
pub fn effective(
    raw: &BTreeMap<String, RawPolicy>,
    policies: &Policies,
) -> BTreeMap<String, RawPolicy> {
    let effective = |(name, policy): (&String, &Policy)| {
        let preset = raw.get(name).and_then(|policy| policy.preset.clone());
        (name.clone(), RawPolicy { preset, ..RawPolicy::from(policy) })
    };
    policies.iter().map(effective).collect()
}

/// Completes a policy, with limits from its base, and then from the policy that is built in.
fn complete(own: &RawPolicy, base: Option<&RawPolicy>, name: &str) -> Result<Policy, ConfigError> {
    let wrong_name = |error| invalid(format!("policies.{name:?}"), error);
    let built_in = built_in(PolicyName::try_from(name.to_owned()).map_err(wrong_name)?);
    let session = built_in.session;
    let raw = base.map_or_else(|| own.clone(), |base| own.or(base));
    let refresh = raw.refresh.unwrap_or(session.refresh);
    own.check_replays(name, refresh)?;
    let access_token_ttl = raw.access_token_ttl.unwrap_or(session.access_token_ttl);
    // The inherited grace is shortened if need be, so that a policy with a short `access_token_ttl`
    // need not set a grace as well.
    let inherited_grace = raw.refresh_grace.unwrap_or(session.refresh_grace);
    let inherited_grace = inherited_grace.min(longest_grace(access_token_ttl));
    let (refresh_grace, replay) = match refresh {
        RefreshMode::Rotate => {
            (own.refresh_grace.unwrap_or(inherited_grace), raw.replay.unwrap_or(session.replay))
        }
        RefreshMode::Reuse => (Duration::ZERO, Replay::Grace),
    };
    Ok(Policy {
        session: SessionPolicy {
            access_token_ttl,
            idle_timeout: raw.idle_timeout.unwrap_or(session.idle_timeout),
            refresh,
            refresh_grace,
            replay,
            replay_limit: raw.replay_limit.unwrap_or(session.replay_limit),
            on_refresh: raw.on_refresh.unwrap_or(session.on_refresh),
            ..session
        },
        absolute_lifetime: raw.absolute_lifetime.unwrap_or(built_in.absolute_lifetime),
        reauthentication_extends: raw
            .reauthentication_extends
            .unwrap_or(built_in.reauthentication_extends),
        max_sessions_per_subject: raw
            .max_sessions_per_subject
            .unwrap_or(built_in.max_sessions_per_subject),
        on_quota: raw.on_quota.unwrap_or(built_in.on_quota),
        apply_to_live: raw.apply_to_live.unwrap_or(built_in.apply_to_live),
    })
}
