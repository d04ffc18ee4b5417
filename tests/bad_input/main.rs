//! Tests of how the service answers bad input. The lists below make a test of each rule for each
//! engine. Each test has a database of its own. Messages, frames and connections that are broken
//! below the level of a call are tested on SQLite only, because no engine is involved in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod grpc;
mod harness;
mod http_port;
mod jwt;
mod memory;
mod operation;
mod operation_on_postgres;
mod refresh;
mod revoke;

use countersign_test_support::database::Engine;

/// Makes a test of each rule on one engine.
macro_rules! tests {
    ($name:ident on $engine:ident: $($area:ident { $($rule:ident,)* })*) => {
        mod $name {
            $(mod $area {
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $rule() {
                        crate::Engine::$engine.run(crate::$area::$rule()).await;
                    }
                )*
            })*
        }
    };
}

/// Makes tests of the rules that hold on every engine, and of the further rules that are listed for
/// this engine only.
macro_rules! engine {
    ($name:ident on $engine:ident: $($alone:tt)*) => { tests! {
        $name on $engine:
        jwt {
            altered_tokens_are_refused_under_an_eddsa_key,
            altered_tokens_are_refused_under_an_es256_key,
            altered_tokens_are_refused_under_an_rs256_key,
        }
        refresh {
            a_forged_refresh_token_is_refused_and_changes_nothing,
            guessed_refresh_tokens_are_refused_and_end_no_session,
            callers_without_access_cannot_refresh_and_do_not_use_up_the_refresh_token,
            a_hundred_reuses_of_a_refresh_token_leave_one_row,
            a_storm_of_refreshes_at_the_same_expiry_rotates_each_session_once,
        }
        revoke {
            a_refused_revocation_adds_no_row_and_an_accepted_one_of_a_subject_or_tenant_adds_one,
            thousands_of_garbage_tokens_add_no_row,
            thousands_of_repeated_revocations_leave_one_row_for_each_target,
            revoking_a_token_revokes_every_other_token_with_the_same_jti,
        }
        $($alone)*
    }};
}

engine! {
    sqlite on Sqlite:
    grpc {
        malformed_requests_and_messages_get_the_expected_answer,
        a_client_that_does_not_complete_the_preface_is_closed,
        a_client_that_stops_or_makes_no_progress_is_disconnected,
        frames_that_http2_does_not_allow_get_the_expected_error,
        a_flood_ends_only_the_connection_of_its_client,
        the_tls_port_answers_only_tls_and_a_silent_client_delays_no_other,
    }
    http_port {
        a_request_head_is_parsed_by_rfc_9112_or_refused_and_the_connection_closed,
        request_content_is_delimited_by_rfc_9112_or_refused_and_the_connection_closed,
        a_request_head_over_64_kib_is_refused,
        a_method_that_a_path_does_not_support_is_refused_with_a_list_of_the_allowed_ones,
        a_key_is_accepted_only_in_well_formed_basic_or_bearer_credentials,
        probes_are_answered_while_clients_that_read_nothing_fill_the_port_and_its_reserve,
        a_client_that_reads_or_sends_too_slowly_is_disconnected,
    }
    memory {
        verified_tokens_stay_within_their_memory_limit_whatever_they_claim,
        a_batch_whose_answer_is_too_long_is_refused_at_the_first_request_that_does_not_fit,
        unread_answers_count_towards_the_limit_until_they_are_read,
        a_connection_stays_open_although_its_large_messages_are_refused,
    }
}
engine! {
    postgres on Postgres:
    operation_on_postgres {
        writes_are_refused_while_postgresql_lacks_disk_or_memory_and_succeed_afterwards,
        calls_without_a_free_connection_are_refused_and_nothing_is_lost,
    }
}
