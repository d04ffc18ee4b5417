//! The policies, which the settings of the service are made from.

use crate::model::{Limits, Micros, Policy, SECOND};

/// The policies.
pub const POLICIES: [Policy; 8] = [
    POLICY,
    Policy {
        name: "phone",
        limits: Limits { until_used: true, replay_limit: 40 * SECOND, ..LIMITS },
        ..POLICY
    },
    Policy { name: "strict", limits: Limits { revokes_access_token: true, ..LIMITS }, ..POLICY },
    Policy { name: "two", max_sessions: 2, ..POLICY },
    Policy { name: "refusing", max_sessions: 2, refuses: true, ..POLICY },
    Policy {
        name: "extending",
        limits: Limits { reauthentication_extends: true, ..LIMITS },
        ..POLICY
    },
    Policy {
        name: "brief",
        limits: Limits {
            access_token_ttl: 2 * SECOND,
            idle_timeout: 3 * SECOND,
            absolute_lifetime: 7 * SECOND,
            refresh_grace: SECOND,
            ..LIMITS
        },
        ..POLICY
    },
    Policy {
        name: "guarded",
        limits: Limits { revokes_access_token: true, reauthentication_extends: true, ..LIMITS },
        max_sessions: 1,
        ..POLICY
    },
];

const POLICY: Policy = Policy { name: "default", limits: LIMITS, max_sessions: 0, refuses: false };

const LIMITS: Limits = Limits {
    access_token_ttl: 20 * SECOND,
    idle_timeout: 60 * SECOND,
    absolute_lifetime: 150 * SECOND,
    refresh_grace: 5 * SECOND,
    until_used: false,
    replay_limit: 86_400 * SECOND,
    revokes_access_token: false,
    reauthentication_extends: false,
};

/// Returns the section of a policy in the settings.
pub fn section(policy: &Policy) -> String {
    let limits = &policy.limits;
    let seconds = |span: Micros| span / SECOND;
    let replay = if limits.until_used { "until_used" } else { "grace" };
    let on_refresh =
        if limits.revokes_access_token { "revoke_access_token" } else { "keep_access_token" };
    let on_quota = if policy.refuses { "refuse" } else { "evict_oldest" };
    format!(
        "[policies.{}]\naccess_token_ttl = '{}s'\nidle_timeout = '{}s'\nabsolute_lifetime = '{}s'\n\
         refresh_grace = '{}s'\nreplay = '{replay}'\nreplay_limit = '{}s'\n\
         on_refresh = '{on_refresh}'\nreauthentication_extends = {}\n\
         max_sessions_per_subject = {}\non_quota = '{on_quota}'\n",
        policy.name,
        seconds(limits.access_token_ttl),
        seconds(limits.idle_timeout),
        seconds(limits.absolute_lifetime),
        seconds(limits.refresh_grace),
        seconds(limits.replay_limit),
        limits.reauthentication_extends,
        policy.max_sessions,
    )
}
