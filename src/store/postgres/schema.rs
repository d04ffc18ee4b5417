//! The tables for Diesel. `migrations/postgres` documents the columns.

/// Calls a macro with the names of the columns that a new session has, in the order of the table
/// below. The second string of each line is the cast to the column's type, which is needed if the
/// value is bound as another type.
macro_rules! with_new_columns {
    ($callback:ident! $($arguments:tt)*) => {
        $callback! {
            $($arguments)*
            "id" "",
            "access_token_id" "",
            "authenticated_at" "",
            "created_at" "",
            "refreshed_at" "",
            "idle_expires_at" "",
            "expires_at" "",
            "access_token_ttl" "",
            "idle_timeout" "",
            "refresh_grace" "",
            "replay_limit" "",
            "generation" "",
            "revision" "",
            "tenant" "",
            "subject" "",
            "client_id" "",
            "audience" "::text[]",
            "scopes" "::text[]",
            "claims" "::jsonb",
            "acr" "",
            "amr" "::text[]",
            "user_agent" "",
            "ip_address" "",
            "device_label" "",
            "policy" "",
            "on_refresh" "",
            "replay" "",
            "lineage_secret" "",
            "refresh_key" "",
            "request_id" "",
            "request_fingerprint" "",
            "metadata" "::jsonb",
            "reauthentication_lifetime" "",
            "created_by" "",
            "refresh_mode" "",
            "amr_verified_at" "::jsonb",
            "device_id" ""
        }
    };
}
pub(super) use with_new_columns;

/// Expands to the names of the columns that a new session has, each with a prefix.
macro_rules! new_columns {
    ($prefix:literal) => { with_new_columns!(new_columns! @names $prefix,) };
    (@names $prefix:literal, $first:literal $_:literal $(, $column:literal $__:literal)*) => {
        concat!($prefix, $first $(, ", ", $prefix, $column)*)
    };
}
pub(super) use new_columns;

diesel::table! {
    /// All columns except `sweep_on`, which is not part of a session. The statements that write
    /// sessions set it themselves.
    sessions (id) {
        id -> Uuid,
        access_token_id -> Uuid,
        authenticated_at -> Timestamptz,
        created_at -> Timestamptz,
        refreshed_at -> Timestamptz,
        idle_expires_at -> Timestamptz,
        expires_at -> Timestamptz,
        access_token_ttl -> Interval,
        idle_timeout -> Interval,
        refresh_grace -> Interval,
        replay_limit -> Interval,
        generation -> BigInt,
        revision -> BigInt,
        tenant -> Text,
        subject -> Text,
        client_id -> Text,
        audience -> Array<Text>,
        scopes -> Array<Text>,
        claims -> Jsonb,
        acr -> Text,
        amr -> Array<Text>,
        user_agent -> Text,
        ip_address -> Text,
        device_label -> Text,
        policy -> Text,
        on_refresh -> Text,
        replay -> Text,
        lineage_secret -> Binary,
        refresh_key -> Binary,
        request_id -> Nullable<Text>,
        request_fingerprint -> Nullable<Binary>,
        metadata -> Jsonb,
        reauthentication_lifetime -> Nullable<Interval>,
        created_by -> Nullable<Text>,
        refresh_mode -> Text,
        amr_verified_at -> Jsonb,
        device_id -> Text,
        authentication_id -> Nullable<Uuid>,
        reauthentication_id -> Nullable<Text>,
        reauthentication_fingerprint -> Nullable<Binary>,
        extended_at -> Nullable<Timestamptz>,
        earlier_tokens_expire_at -> Nullable<Timestamptz>,
        ended_at -> Nullable<Timestamptz>,
        end_reason -> Nullable<Text>,
        end_note -> Nullable<Text>,
        is_over -> Bool,
    }
}

diesel::table! {
    blacklist (seq) {
        seq -> BigInt,
        session_id -> Nullable<Uuid>,
        up_to -> Nullable<Timestamptz>,
        revoked_at -> Timestamptz,
        expires_at -> Timestamptz,
        kind -> Text,
        key -> Text,
        tenant -> Text,
        subject -> Nullable<Text>,
        reason -> Text,
        note -> Text,
        unfinished -> Bool,
        ended_sessions -> BigInt,
    }
}

diesel::table! {
    /// All columns except `peer`, which is read as a text (`host(peer)`).
    audit (at, id) {
        at -> Timestamptz,
        id -> Uuid,
        session_id -> Nullable<Uuid>,
        sessions -> Nullable<BigInt>,
        left_out -> BigInt,
        action -> Text,
        caller -> Text,
        tenant -> Nullable<Text>,
        subject -> Nullable<Text>,
        kid -> Nullable<Text>,
        reason -> Nullable<Text>,
        note -> Text,
        x_request_id -> Nullable<Text>,
        client_id -> Nullable<Text>,
        created_before -> Nullable<Timestamptz>,
        authenticated_before -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    feed_head (id) {
        id -> Bool,
        seq -> BigInt,
        timeline -> BigInt,
        ring -> BigInt,
    }
}

diesel::table! {
    legacy_refresh_tokens (hash) {
        session_id -> Uuid,
        expires_at -> Timestamptz,
        hash -> Binary,
        secret -> Binary,
    }
}

diesel::table! {
    sweeper (id) {
        id -> Bool,
        forgotten_until -> Timestamptz,
    }
}

diesel::table! {
    replicas (incarnation) {
        incarnation -> Uuid,
        joined_at -> Timestamptz,
        renewed_at -> Timestamptz,
        renewals -> BigInt,
        applied -> BigInt,
        name -> Text,
        version -> Text,
        holds_for -> Interval,
        address -> Text,
        watchers -> BigInt,
    }
}

diesel::table! {
    signing_keys (kid) {
        created_at -> Timestamptz,
        kid -> Text,
        purpose -> Text,
        algorithm -> Text,
        sealed -> Binary,
        activated_at -> Nullable<Timestamptz>,
        retired_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
    }
}
