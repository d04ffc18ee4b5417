//! The tables for Diesel. `migrations/sqlite` documents the columns.

diesel::table! {
    sessions (id) {
        id -> Binary,
        tenant -> Text,
        subject -> Text,
        client_id -> Text,
        audience -> Text,
        scopes -> Text,
        claims -> Text,
        acr -> Text,
        amr -> Text,
        amr_verified_at -> Text,
        authenticated_at -> BigInt,
        user_agent -> Text,
        ip_address -> Text,
        device_label -> Text,
        device_id -> Text,
        policy -> Text,
        access_token_ttl -> BigInt,
        idle_timeout -> BigInt,
        refresh_grace -> BigInt,
        replay_limit -> BigInt,
        on_refresh -> Text,
        replay -> Text,
        created_at -> BigInt,
        refreshed_at -> BigInt,
        idle_expires_at -> BigInt,
        expires_at -> BigInt,
        generation -> BigInt,
        lineage_secret -> Binary,
        refresh_key -> Binary,
        access_token_id -> Binary,
        request_id -> Nullable<Text>,
        request_fingerprint -> Nullable<Binary>,
        metadata -> Text,
        authentication_id -> Nullable<Binary>,
        reauthentication_lifetime -> Nullable<BigInt>,
        reauthentication_id -> Nullable<Text>,
        reauthentication_fingerprint -> Nullable<Binary>,
        created_by -> Nullable<Text>,
        refresh_mode -> Text,
        extended_at -> Nullable<BigInt>,
        earlier_tokens_expire_at -> Nullable<BigInt>,
        ended_at -> Nullable<BigInt>,
        end_reason -> Nullable<Text>,
        end_note -> Nullable<Text>,
        revision -> BigInt,
        is_over -> Bool,
    }
}

diesel::table! {
    blacklist (seq) {
        seq -> BigInt,
        kind -> Text,
        key -> Binary,
        up_to -> Nullable<BigInt>,
        tenant -> Text,
        subject -> Nullable<Text>,
        session_id -> Nullable<Binary>,
        reason -> Text,
        note -> Text,
        revoked_at -> BigInt,
        expires_at -> BigInt,
        unfinished -> Bool,
        ended_sessions -> BigInt,
        walked_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    large_subjects (tenant, subject) {
        tenant -> Text,
        subject -> Text,
        sessions -> BigInt,
        counted_at -> BigInt,
    }
}

diesel::table! {
    legacy_refresh_tokens (hash) {
        hash -> Binary,
        session_id -> Binary,
        secret -> Binary,
        expires_at -> BigInt,
    }
}

diesel::table! {
    sweeper (id) {
        id -> BigInt,
        forgotten_until -> BigInt,
    }
}

diesel::table! {
    watchers (validity) {
        validity -> BigInt,
    }
}

diesel::table! {
    signing_keys (kid) {
        kid -> Text,
        purpose -> Text,
        algorithm -> Text,
        sealed -> Binary,
        created_at -> BigInt,
        activated_at -> Nullable<BigInt>,
        retired_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    audit (at, id) {
        at -> BigInt,
        id -> Binary,
        action -> Text,
        caller -> Text,
        peer -> Nullable<Text>,
        tenant -> Nullable<Text>,
        subject -> Nullable<Text>,
        session_id -> Nullable<Binary>,
        kid -> Nullable<Text>,
        reason -> Nullable<Text>,
        note -> Text,
        sessions -> Nullable<BigInt>,
        left_out -> BigInt,
        x_request_id -> Nullable<Text>,
        client_id -> Nullable<Text>,
        created_before -> Nullable<BigInt>,
        authenticated_before -> Nullable<BigInt>,
    }
}

diesel::table! {
    key_ring (id) {
        id -> Integer,
        version -> BigInt,
    }
}
