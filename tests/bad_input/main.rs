//! Checks how bad input is answered. The lists below make a test of each rule for each engine, with
//! a database of its own. Messages, frames and connections that are broken below the level of a
//! call are tested on SQLite only, because no engine is involved in them.
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

/// Makes tests of the rules that hold on every engine, and of those that hold on this one alone.
macro_rules! engine {
    ($name:ident on $engine:ident: $($alone:tt)*) => { tests! {
        $name on $engine:
        jwt {
            under_a_key_for_eddsa,
            under_a_key_for_es256,
            under_a_key_for_rs256,
        }
        refresh {
            what_is_not_authentic_is_refused_and_changes_nothing,
            guesses_find_nothing_and_sign_nobody_out,
            of_another_caller_and_without_the_right_it_is_good_for_nothing_and_not_used_up,
            a_stolen_token_shown_a_hundred_times_leaves_one_row,
            a_storm_at_the_same_expiry_rotates_each_session_once,
        }
        revoke {
            what_cannot_be_revoked_by_who_asks_adds_no_row_and_a_name_adds_one,
            thousands_of_garbage_tokens_add_no_row,
            the_same_thousands_of_times_leaves_one_row_each,
            another_form_of_the_same_claims_is_as_revoked_as_the_first,
        }
        $($alone)*
    }};
}

engine! {
    sqlite on Sqlite:
    grpc {
        requests_and_messages,
        a_client_that_does_not_complete_the_preface_is_closed,
        a_client_that_stops_or_makes_no_progress_is_cut_off,
        broken_frames,
        floods,
        on_the_port_of_tls,
    }
    http_port {
        a_head_is_read_as_the_standard_has_it_or_refused_and_the_connection_closed,
        content_ends_where_the_standard_has_it_or_is_refused_and_the_connection_closed,
        a_head_has_64_kib_and_not_a_byte_more,
        a_method_that_a_path_does_not_know_is_not_allowed_and_those_that_it_does_are_told,
        a_key_is_two_encoded_strings_in_basic_or_one_token_in_bearer_and_nothing_else,
        while_clients_that_read_nothing_fill_the_port_and_its_reserve_probes_get_in,
        a_client_that_takes_or_sends_nothing_or_little_does_not_keep_its_connection,
    }
    memory {
        verified_tokens_take_as_much_memory_as_they_may_whatever_they_claim,
        a_batch_whose_answer_would_be_too_long_is_refused_with_the_first_token_that_has_no_room,
        answers_that_are_not_read_count_until_they_are,
        a_connection_outlives_the_refusals_of_its_large_messages,
    }
}
engine! {
    postgres on Postgres:
    operation_on_postgres {
        what_has_no_room_is_refused_and_done_once_there_is,
        without_a_free_connection_calls_are_refused_and_nothing_is_lost,
    }
}
