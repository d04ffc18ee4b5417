//! The settings of the service, and their policies.

use crate::model::{LEEWAY, Limits, Micros, Policy, RETENTION, SECOND, Settings};

/// The policies.
pub const POLICIES: [Policy; 14] = [
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
    Policy { name: "machine", limits: REUSE, ..POLICY },
    Policy {
        name: "careful",
        limits: Limits { revokes_access_token: true, reauthentication_extends: true, ..REUSE },
        ..POLICY
    },
    // The strict settings change the policies below, some of which reach live sessions.
    Policy { name: "living", strict: Some(SHORT), applies_to_live: true, ..LONG },
    Policy { name: "keeping", strict: Some(SHORT), ..LONG },
    Policy {
        name: "revoking",
        strict: Some(Limits {
            idle_timeout: 40 * SECOND,
            refresh_grace: 3 * SECOND,
            revokes_access_token: true,
            ..LIMITS
        }),
        applies_to_live: true,
        ..LONG
    },
    Policy {
        name: "rotating",
        limits: REUSE,
        strict: Some(SHORT),
        applies_to_live: true,
        ..POLICY
    },
];

const POLICY: Policy = Policy {
    name: "default",
    limits: LIMITS,
    strict: None,
    applies_to_live: false,
    max_sessions: 0,
    refuses: false,
};

const LONG: Policy = Policy {
    limits: Limits {
        until_used: true,
        replay_limit: 40 * SECOND,
        reauthentication_extends: true,
        ..LIMITS
    },
    ..POLICY
};

const LIMITS: Limits = Limits {
    access_token_ttl: 20 * SECOND,
    idle_timeout: 60 * SECOND,
    absolute_lifetime: 150 * SECOND,
    reuses: false,
    refresh_grace: 5 * SECOND,
    until_used: false,
    replay_limit: 86_400 * SECOND,
    revokes_access_token: false,
    reauthentication_extends: false,
};

const REUSE: Limits = Limits { reuses: true, refresh_grace: 0, ..LIMITS };

const SHORT: Limits = Limits {
    access_token_ttl: 10 * SECOND,
    idle_timeout: 30 * SECOND,
    absolute_lifetime: 70 * SECOND,
    reuses: false,
    refresh_grace: 2 * SECOND,
    until_used: true,
    replay_limit: 15 * SECOND,
    revokes_access_token: false,
    reauthentication_extends: true,
};

/// Returns the settings of the service.
pub fn text(settings: Settings) -> String {
    let policies: String = POLICIES.iter().map(|policy| section(policy, settings)).collect();
    format!(
        "{policies}
        [tenants]
        [tokens]
        acr_order = ['low', 'high']
        leeway = '{}s'
        legacy_refresh_tokens = {}
        [sweeper]
        schedule = '0 0 29 2 *'
        session_retention = '{}s'
        [keys]
        rotation = '0s'
        refresh_rotation = '0s'
        [audit]
        table = false",
        LEEWAY / SECOND,
        settings == Settings::Usual,
        RETENTION / SECOND,
    )
}

/// Returns the section of a policy in the settings.
fn section(policy: &Policy, settings: Settings) -> String {
    let limits = policy.limits(settings);
    let seconds = |span: Micros| span / SECOND;
    let replay = if limits.until_used { "until_used" } else { "grace" };
    let refresh = match limits.reuses {
        true => "refresh = 'reuse'".to_owned(),
        false => format!(
            "refresh_grace = '{}s'\nreplay = '{replay}'\nreplay_limit = '{}s'",
            seconds(limits.refresh_grace),
            seconds(limits.replay_limit),
        ),
    };
    let on_refresh =
        if limits.revokes_access_token { "revoke_access_token" } else { "keep_access_token" };
    let on_quota = if policy.refuses { "refuse" } else { "evict_oldest" };
    format!(
        "[policies.{}]\naccess_token_ttl = '{}s'\nidle_timeout = '{}s'\nabsolute_lifetime = '{}s'\n\
         {refresh}\non_refresh = '{on_refresh}'\nreauthentication_extends = {}\n\
         apply_to_live = {}\nmax_sessions_per_subject = {}\non_quota = '{on_quota}'\n",
        policy.name,
        seconds(limits.access_token_ttl),
        seconds(limits.idle_timeout),
        seconds(limits.absolute_lifetime),
        limits.reauthentication_extends,
        policy.applies_to_live,
        policy.max_sessions,
    )
}
