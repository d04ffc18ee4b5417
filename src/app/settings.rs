//! Converts the configuration into the settings of each part.

use std::{sync::Arc, time::Duration};

use crate::{
    authority::Settings,
    callers::meter::Ceilings,
    config::{Config, limits::Limits},
    domain::{live_policy::LivePolicies, policies::Policies},
    grpc::{server::ConnectionLimits, services::CallLimits},
    http::server::{self as http_server, RESERVED_CONNECTIONS, RESERVED_TIME},
    net::accept::{self, Reserve},
};

/// Returns the settings of the use cases.
pub fn settings(config: &Config) -> Settings {
    Settings {
        issuer: config.issuer.clone(),
        leeway: config.tokens.leeway,
        max_clock_skew: if config.database.is_shared() {
            config.lease.max_clock_skew
        } else {
            Duration::ZERO
        },
        max_access_token_ttl: config.tokens.max_access_token_ttl,
        longest_token: config.tokens.max_access_token_ttl,
        acr_order: config.tokens.acr_order.clone().into(),
        legacy_refresh_tokens: config.tokens.legacy_refresh_tokens,
        policies: Policies {
            by_name: config.policies.clone(),
            tenants: config.tenants.clone(),
            clients: config.clients.clone(),
            default_audience: config.tokens.default_audience.clone(),
        },
        live_policies: Arc::new(LivePolicies::among(config.policies.values())),
        max_blacklist_entries: config.max_blacklist_entries,
        sweep_batch: config.sweeper.batch_size,
        session_retention: config.sweeper.session_retention,
        audit_table: config.audit.table,
        audit_retention: config.audit.retention,
        token_cache_bytes: config.tokens.verified_cache_bytes,
        signing_rotation: config.keys.signing,
        refresh_rotation: config.keys.refresh,
        jwks_max_age: config.keys.jwks_max_age,
    }
}

/// Returns the limits on the calls of all callers together.
pub fn ceilings(limits: &Limits) -> Ceilings {
    Ceilings {
        calls: limits.max_calls,
        reads: limits.max_reads,
        writes: limits.max_writes,
        batches: limits.batches(),
    }
}

/// Returns the limits of the gRPC port.
pub fn grpc_accept_limits(limits: &Limits) -> accept::Limits {
    accept::Limits {
        connections: limits.max_connections,
        reserve: None,
        handshake: limits.handshake_timeout,
    }
}

/// Returns the limits of the HTTP port. Its reserve admits probes when the port is full
/// (decision 17).
pub fn http_accept_limits(limits: &Limits) -> accept::Limits {
    let time = RESERVED_TIME.min(limits.handshake_timeout);
    accept::Limits {
        connections: limits.max_http_connections,
        reserve: Some(Reserve { connections: RESERVED_CONNECTIONS, time }),
        handshake: limits.handshake_timeout,
    }
}

/// Returns the limits of a connection to the HTTP port.
pub fn http_connection_limits(limits: &Limits) -> http_server::ConnectionLimits {
    http_server::ConnectionLimits {
        // The time in which the head of a request is read counts as part of the call.
        head: limits.call_timeout.min(limits.idle_timeout),
        // A response may take up to twice this time, so this is at most half of the idle timeout.
        answer: limits.call_timeout.min(limits.idle_timeout / 2),
    }
}

/// Returns the most connections that may be open at once, on both ports together.
pub fn max_connections(limits: &Limits) -> usize {
    limits
        .max_connections
        .saturating_add(limits.max_http_connections)
        .saturating_add(RESERVED_CONNECTIONS)
}

/// Returns the limits of a connection to the gRPC port.
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

/// Returns the limits of a gRPC call.
pub fn call_limits(limits: &Limits) -> CallLimits {
    CallLimits {
        request_bytes: limits.max_request_bytes,
        batch_bytes: limits.max_batch_bytes,
        answer_bytes: limits.max_answer_bytes,
        unsent_bytes: limits.max_unsent_bytes,
        unsent_bytes_of_connection: limits.unsent_bytes_of_connection(),
        time: limits.call_timeout,
    }
}
