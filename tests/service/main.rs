//! Tests of the rules of the service from outside: configuration, store, server and tasks run as in
//! production, and a client calls over a socket. Only the clock is replaced by one that the tests
//! set.
//!
//! Each rule is one function. The lists below make a test of it for each engine, with a database of
//! its own. A function that is on no list is dead code, so `-D warnings` finds one that was
//! forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod audit_walk;
mod batch;
mod callers;
mod clock;
mod create;
mod faults;
mod fields;
mod gateways;
mod health;
mod http;
mod inactive;
mod keys;
mod lifecycle;
mod limits;
mod listing;
mod postgres_only;
mod refresh;
mod refusals;
mod revoke;
mod secrecy;
mod setback;
mod sqlite_only;

use countersign_test_support::database::Engine;

/// Makes a test of each rule on one engine.
macro_rules! tests {
    ($name:ident on $engine:ident: $($area:ident { $($rule:ident,)* })*) => {
        mod $name {
            $(mod $area {
                $(
                    #[tokio::test(flavor = "multi_thread")]
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
        audit {
            what_is_recorded_is_written_together_and_within_a_second,
            what_comes_while_others_are_written_lets_others_join_it,
            while_the_database_is_away_records_are_kept,
            a_commit_whose_answer_was_lost_is_not_written_twice,
            a_record_that_the_database_refuses_keeps_no_other_out,
            old_records_are_swept_whether_or_not_more_come,
            a_service_tells_how_its_audit_is_doing,
            each_thing_done_has_a_record_of_who_did_it_to_whom_and_what_changes_nothing_has_none,
            what_is_revoked_again_adds_neither_a_row_nor_a_line,
            a_revocation_whose_caller_goes_away_is_recorded_all_the_same,
            what_was_recorded_last_is_in_the_table_when_the_service_has_stopped,
            each_session_that_the_quota_ends_has_a_record,
        }
        audit_walk {
            each_way_to_change_something_leaves_a_record,
            a_session_that_expires_is_recorded_by_the_next_sweep_and_its_line_tells_when,
        }
        batch {
            answers_come_in_the_order_of_the_questions_and_are_those_of_validate,
            a_batch_has_1_to_256_questions,
            a_wrong_field_is_named_with_its_place_in_the_batch,
        }
        callers {
            each_role_may_what_the_contract_says_to_the_sessions_of_its_tenants_and_nothing_else,
            a_stranger_is_told_the_same_whatever_it_shows_and_asks,
            a_caller_with_audiences_makes_and_takes_tokens_for_them_alone,
            the_idempotency_key_of_another_caller_gives_no_tokens_beyond_ones_own_audiences,
            a_caller_who_takes_too_much_is_told_when_to_come_again_and_others_are_served,
            where_no_callers_are_configured_a_key_is_no_hindrance,
        }
        clock {
            after_a_sweep_a_clock_that_goes_back_makes_no_revoked_token_active,
            an_entry_stays_until_a_minute_after_the_expiry_of_its_tokens,
            a_clock_an_hour_ahead_for_a_moment_makes_the_sweeper_delete_nothing,
            a_session_revoked_after_the_clock_went_back_stays_revoked_when_it_is_right_again,
            a_tenant_revoked_after_the_clock_went_back_loses_all_it_had,
            sessions_that_have_been_over_for_long_are_deleted_and_others_are_kept,
            a_sweep_by_command_does_not_trust_a_clock_that_does_not_fit_the_newest_row,
        }
        create {
            a_bare_request_gets_the_defaults,
            a_session_identifier_tells_when_the_session_was_created,
            a_tenant_has_the_policy_and_the_audiences_that_the_configuration_gives_it,
            a_request_may_only_shorten_the_limits_of_the_policy,
            an_authentication_in_the_future_is_refused_beyond_the_leeway,
            claims_come_back_in_the_full_view_only,
            what_a_session_was_created_with_is_in_every_token_to_the_last_digit,
            an_integer_that_a_double_cannot_tell_from_its_neighbours_is_refused_at_any_depth,
            claims_have_4096_bytes_at_most_and_no_reserved_name,
            a_token_that_validate_would_not_read_is_not_issued,
            the_same_request_id_yields_the_same_session_even_at_once,
            another_request_or_another_callers_with_the_same_id_is_refused_and_changes_nothing,
            of_different_requests_with_one_id_at_once_one_is_answered,
            over_the_quota_the_oldest_session_goes,
            over_the_quota_a_new_session_is_refused_if_the_policy_says_so,
        }
        faults {
            while_the_database_fails_calls_say_so_and_validate_goes_on,
            a_caller_that_leaves_after_the_commit_leaves_no_index_behind_the_database,
            a_caller_that_leaves_at_any_moment_leaves_a_session_revoked_or_not_but_nothing_between,
            while_somebody_else_holds_the_database_writes_wait_and_validate_goes_on,
            a_damaged_row_is_an_error_for_whoever_needs_it_and_for_nobody_else,
            a_damaged_row_keeps_no_session_of_a_revoked_tenant_from_ending,
        }
        fields {
            a_text_has_as_many_bytes_as_its_limit_and_not_one_more,
            a_text_holds_no_control_character_and_is_empty_only_where_it_may_be,
            a_list_has_as_many_entries_as_its_limit_and_not_one_more,
            scopes_and_policies_have_a_form,
            display_data_refuses_no_session_and_no_refresh_and_the_answer_says_what_was_kept,
            a_repeated_request_is_the_same_if_what_is_kept_of_its_device_is,
        }
        gateways {
            both_kinds_of_gateways_get_the_same_answers,
            envoy_may_send_whatever_its_protocol_allows,
            the_application_learns_who_it_is_and_nothing_that_the_client_says,
            no_claim_breaks_a_header,
            behind_a_prefix_path_and_query_are_the_clients_and_demand_nothing,
            gateways_are_answered_without_the_database,
            introspection_tells_what_a_good_token_says_and_of_others_nothing,
            oauth_revokes_sessions_by_either_token_and_takes_no_notice_of_worthless_ones,
            who_asks_over_http_must_be_known_and_may_no_more_than_over_grpc,
            the_metadata_tell_where_tokens_are_introspected_and_revoked,
        }
        health {
            until_the_blacklist_is_loaded_nothing_is_vouched_for,
            a_revocation_is_not_acknowledged_before_the_index_knows_of_it,
            health_of_an_unknown_service_is_not_found,
            at_the_first_signal_health_turns_while_calls_are_still_taken_and_the_second_ends_it,
            a_call_in_flight_at_the_signal_is_finished_and_answered,
            reflection_lists_the_services,
        }
        http {
            until_the_blacklist_is_loaded_the_service_lives_and_is_not_ready,
            at_the_signal_the_service_is_not_ready_and_yet_alive_until_the_last_call_is_answered,
            an_idle_connection_does_not_keep_the_service_from_stopping,
            what_is_not_there_is_not_found_and_what_only_reads_takes_nothing,
            a_head_beyond_the_limits_is_refused_and_the_next_request_is_answered,
            metrics_have_the_form_of_openmetrics_and_say_what_they_mean,
            a_revocation_is_counted_when_it_is_acknowledged,
            a_wait_that_its_caller_gave_up_is_seen_while_it_lasts_and_counted,
            metrics_have_the_older_format_for_those_who_prefer_it,
        }
        inactive {
            the_time_of_a_token_ends_and_begins_at_the_second,
            a_bit_flipped_anywhere_makes_a_token_inactive,
            a_refresh_token_is_no_access_token,
            a_token_of_another_service_names_an_unknown_key_even_if_it_has_the_same_issuer,
            demands_that_a_token_does_not_meet_are_told_apart,
        }
        keys {
            the_next_key_is_known_before_it_signs_and_the_one_before_is_accepted_after,
            a_key_is_rotated_by_hand_once_every_verifier_may_know_the_next_one,
            a_revoked_key_is_worthless_and_sessions_live_on,
            a_refresh_moves_a_session_to_the_newest_refresh_key_and_an_old_one_is_kept_for_the_others,
            a_revoked_refresh_key_signs_out_those_who_have_a_token_of_it,
            another_algorithm_comes_with_the_next_rotation_and_the_old_one_verifies_on,
            the_public_keys_are_told_with_a_tag_and_for_how_long_they_hold,
            the_metadata_lead_to_the_public_keys,
            rows_that_were_tampered_with_are_not_used_and_the_others_serve_on,
            a_key_whose_row_is_damaged_can_be_revoked_and_is_put_right,
            a_clock_that_leaps_drops_no_key_whose_tokens_live,
        }
        lifecycle {
            a_revoked_session_is_inactive_at_once_and_after_a_restart,
            a_live_session_goes_on_after_a_restart,
            a_refresh_counts_as_one_even_if_the_service_restarts_before_its_replay,
            a_master_key_that_is_missing_or_foreign_is_refused_and_the_right_one_still_opens_it,
        }
        limits {
            a_session_goes_idle_at_the_microsecond,
            a_session_reaches_its_absolute_end_at_the_microsecond_however_often_it_is_refreshed,
            an_access_token_is_active_up_to_its_second_of_expiry,
            an_access_token_never_outlives_the_absolute_end,
            repeating_a_creation_repeats_its_tokens_and_prolongs_nothing,
            an_authentication_is_recent_enough_up_to_the_demanded_age,
            a_token_issued_within_the_last_second_of_a_session_is_expired,
            a_session_may_live_for_a_hundred_years,
        }
        listing {
            pages_follow_each_other_without_gap_or_overlap_the_newest_session_first,
            a_long_page_is_read_in_parts_and_ends_before_it_would_be_too_long,
            a_session_created_or_ended_between_two_pages_shifts_nothing,
            a_page_token_of_another_request_is_refused,
            states_are_those_of_the_instant_of_the_answer,
        }
        refresh {
            of_64_refreshes_at_once_one_rotates_and_63_repeat_its_answer,
            a_replay_up_to_the_end_of_the_grace_repeats_the_refresh_token_and_moves_nothing,
            a_replay_a_microsecond_after_the_grace_ends_the_session_with_all_its_tokens,
            a_token_two_generations_old_is_reuse_even_within_the_grace,
            reuse_ends_its_own_session_only,
            where_a_refresh_revokes_the_former_access_token_only_one_is_active_at_a_time,
            a_replay_always_yields_an_access_token_that_is_active,
            a_refresh_may_narrow_the_scopes_of_its_token_and_the_session_keeps_its_own,
            a_refresh_replaces_what_is_known_of_the_device_only_if_it_tells,
            until_its_successor_is_used_a_token_yields_it_again_for_a_day,
            a_replay_a_microsecond_after_the_limit_ends_the_session_with_all_its_tokens,
            a_session_keeps_its_replay,
        }
        refusals {
            each_wrong_field_of_a_call_is_named,
            a_session_that_is_not_there_is_not_found,
            a_full_blacklist_refuses_to_revoke_and_names_the_quota,
            a_message_over_a_megabyte_is_refused_and_the_connection_goes_on,
        }
        revoke {
            any_token_of_a_session_and_its_identifier_end_all_of_it_and_nothing_else,
            an_old_refresh_token_revokes_even_long_after_its_grace,
            a_subject_loses_all_sessions_but_the_excepted_one,
            a_tenant_loses_what_it_has_now_and_not_what_it_gets_in_the_same_microsecond,
            the_default_tenant_can_be_revoked,
            one_access_token_can_be_revoked_alone,
            an_expired_access_token_ends_its_session_and_alone_it_ends_nothing,
            what_is_over_is_revoked_without_a_row,
            reasons_of_the_service_itself_are_refused,
        }
        secrecy {
            logs_errors_and_debug_prints_hold_no_token_no_key_and_no_claim_value,
        }
        setback {
            a_token_whose_session_the_database_does_not_know_any_more_can_be_revoked,
            sessions_that_the_database_does_not_know_any_more_can_be_revoked,
            a_token_of_a_session_that_the_database_takes_for_expired_can_be_revoked,
            a_lowered_limit_for_access_tokens_holds_for_the_refreshes_of_older_sessions,
            a_tenant_whose_revocation_was_given_up_by_its_caller_ends_all_the_same,
        }
        $($alone)*
    }};
}

engine! {
    sqlite on Sqlite:
    sqlite_only {
        a_second_service_on_the_same_folder_is_refused,
        a_database_that_somebody_else_holds_is_not_called_damaged,
    }
}
engine! {
    postgres on Postgres:
    postgres_only {
        services_on_one_database_serve_the_same_sessions,
        services_on_one_database_find_what_the_others_have_revoked,
        a_revocation_that_another_service_made_is_not_acknowledged_before_the_index_knows_of_it,
        while_the_server_of_the_database_is_away_calls_say_so_and_validate_goes_on,
        what_was_only_read_is_told_once_a_later_renewal_has_shown_that_the_database_is_in_charge,
        without_a_key_that_makes_tokens_callers_come_again_and_the_next_key_is_used_at_once,
        lost_revocations_are_written_again_and_none_waits_until_all_know_of_another,
        the_sessions_of_a_tenant_whose_revocation_was_lost_end_again,
        a_service_whose_clock_is_further_off_than_it_may_be_vouches_for_nothing,
        a_service_whose_clock_is_too_far_behind_acknowledges_revocations_and_validates_nothing,
        a_service_whose_clock_is_too_far_ahead_acknowledges_no_revocation,
        a_service_without_a_lease_leaves_the_sweeps_to_others,
        a_service_that_starts_with_a_clock_that_is_off_waits_until_it_is_right,
        a_token_that_has_expired_is_revoked_as_long_as_it_may_be_good_by_another_clock,
        a_sweep_goes_by_the_clock_of_the_database,
        replicas_whose_clocks_differ_agree_on_what_is_valid_what_is_replayed_and_what_is_reused,
        the_oldest_session_is_the_one_that_was_created_first_whichever_replicas_created_them,
    }
}
