//! What each part is told of the configuration.

use std::time::Duration;

use crate::{
    authority::Settings,
    callers::meter::Ceilings,
    config::{Config, keys::Keys, limits::Limits},
    grpc::{server::ConnectionLimits, services::CallLimits},
    net::accept,
};

/// What the use cases are told.
pub fn settings(config: &Config) -> Settings {
    Settings {
        issuer: config.issuer.clone(),
        leeway: config.tokens.leeway,
        max_clock_skew: if config.database.is_shared() { config.lease.max_clock_skew } else { Duration::ZERO },
        max_access_token_ttl: config.tokens.max_access_token_ttl,
        default_audience: config.tokens.default_audience.clone(),
        policies: config.policies.clone().into_iter().collect(),
        tenants: config.tenants.clone().into_iter().collect(),
        max_blacklist_entries: config.max_blacklist_entries,
        sweep_batch: config.sweeper.batch_size,
        session_retention: config.sweeper.session_retention,
        audit_retention: config.audit.retention,
        token_cache_bytes: config.tokens.verified_cache_bytes,
        signing_rotation: config.keys.signing,
        refresh_rotation: config.keys.refresh,
        jwks_max_age: config.keys.jwks_max_age,
    }
}

/// How many calls there may be under way at once, of all callers together.
pub fn ceilings(limits: &Limits) -> Ceilings {
    Ceilings { calls: limits.max_calls, reads: limits.max_reads, writes: limits.max_writes, batches: limits.batches() }
}

/// What may come through a port with room for so many connections.
pub fn entrance_limits(limits: &Limits, connections: usize) -> accept::Limits {
    accept::Limits { connections, handshake: limits.handshake_timeout }
}

/// What a connection of the gRPC side may do.
pub fn connection_limits(limits: &Limits) -> ConnectionLimits {
    ConnectionLimits {
        metadata_bytes: limits.max_metadata_bytes,
        streams: limits.max_streams_per_connection,
        handshake: limits.handshake_timeout,
        idle: limits.idle_timeout,
        answer: limits.call_timeout,
        keepalive_interval: limits.keepalive_interval,
        keepalive_timeout: limits.keepalive_timeout,
    }
}

/// What a call of the gRPC side may be.
pub fn call_limits(limits: &Limits) -> CallLimits {
    CallLimits {
        request_bytes: limits.max_request_bytes,
        batch_bytes: limits.max_batch_bytes,
        answer_bytes: limits.max_answer_bytes,
        unsent_bytes: limits.max_unsent_bytes,
        time: limits.call_timeout,
    }
}

/// How often it is looked whether a key is due: often enough for the shortest span that the schedule is made of.
pub fn how_often(keys: &Keys) -> Duration {
    (keys.signing.publish_ahead / 10).clamp(Duration::from_millis(100), Duration::from_secs(30))
}
