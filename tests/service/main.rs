//! Tests of the rules of the service from outside: configuration, store, server and tasks run as in
//! production, and a client calls over a socket. Only the clock is replaced by one that the tests
//! set.
//!
//! Each rule is one function. The lists below make one test of it for each engine, with a database
//! of its own. A function that is missing from the lists is dead code, so `-D warnings` reports it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod audit_listing;
mod audit_walk;
mod batch;
mod callers;
mod calls;
mod changes;
mod clock;
mod create;
mod factors;
mod faults;
mod fields;
mod gateways;
mod health;
mod http;
mod import;
mod inactive;
mod keys;
mod lifecycle;
mod limits;
mod listing;
mod metadata;
mod metrics;
mod policies;
mod postgres_only;
mod refresh;
mod refusals;
mod revoke;
mod secrecy;
mod setback;
mod sqlite_only;
mod vectors;
mod watch;
mod wide;

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

/// Makes tests of the rules that hold on every engine, and of the rules that hold on this engine
/// alone.
macro_rules! engine {
    ($name:ident on $engine:ident: $($alone:tt)*) => { tests! {
        $name on $engine:
        audit {
            audit_records_are_written_in_batches_and_within_a_second,
            a_record_that_arrives_during_a_write_waits_for_others_to_join_its_batch,
            audit_records_are_kept_while_the_database_is_unavailable,
            records_whose_commit_was_not_confirmed_are_not_written_twice,
            a_record_that_the_database_refuses_does_not_keep_others_from_being_written,
            old_audit_records_are_deleted_even_if_the_audit_table_is_disabled,
            metrics_report_dropped_left_out_and_waiting_audit_records,
            every_change_is_recorded_with_caller_action_and_owner_and_other_calls_are_not,
            a_repeated_revocation_adds_neither_an_audit_row_nor_a_log_line,
            a_revocation_whose_caller_goes_away_is_recorded_all_the_same,
            the_last_records_are_in_the_table_when_the_service_has_stopped,
            every_session_that_the_quota_evicts_has_an_audit_record,
        }
        audit_walk {
            every_operation_that_changes_something_leaves_its_audit_records,
            the_next_sweep_records_an_expired_session_with_the_time_of_its_expiry,
        }
        batch {
            batch_answers_are_in_the_order_of_the_requests_and_equal_those_of_validate,
            a_batch_has_1_to_256_requests,
            an_invalid_field_is_named_with_its_index_in_the_batch,
        }
        callers {
            each_role_may_make_only_its_own_calls_and_only_for_sessions_of_its_tenants,
            an_unknown_caller_gets_the_same_answer_whatever_its_key_and_its_request,
            a_caller_limited_to_audiences_creates_and_validates_tokens_for_those_alone,
            a_caller_that_sends_the_request_id_of_another_gets_no_tokens_for_other_audiences,
            a_caller_over_its_rate_limit_is_asked_to_retry_later_and_others_are_served,
            any_key_is_accepted_if_no_callers_are_configured,
        }
        calls {
            a_call_returns_the_identifier_that_it_was_sent_with_or_gets_a_new_one,
            a_failed_call_is_logged_with_the_data_that_identify_its_cause,
            a_slow_call_is_logged_with_the_times_of_its_parts,
            a_slow_request_over_http_is_logged_with_its_route,
            the_audit_names_the_call_that_asked_for_an_action,
        }
        changes {
            a_step_up_satisfies_the_demand_and_makes_earlier_tokens_inactive_before_its_answer,
            tokens_of_all_earlier_authentications_stay_inactive,
            a_reauthentication_renews_the_idle_time_and_the_lifetime_if_the_policy_says_so,
            a_repeated_reauthentication_yields_the_same_tokens_until_the_session_is_refreshed,
            a_request_for_a_session_is_not_repeated_after_its_reauthentication,
            a_wrong_reauthentication_names_the_field_and_changes_nothing,
            a_used_refresh_token_ends_the_session_also_at_a_reauthentication,
            a_refresh_token_of_an_earlier_authentication_does_not_tell_how_its_session_ended,
            no_token_of_a_race_with_a_revocation_is_accepted_after_it,
            an_update_changes_the_named_fields_and_takes_effect_at_the_next_refresh,
            an_update_can_make_the_access_tokens_inactive_and_leaves_the_refresh_token,
            a_wrong_update_names_the_field_and_changes_nothing,
        }
        watch {
            a_watcher_gets_all_revocations_keys_and_rules_and_then_a_lease,
            a_revocation_is_acknowledged_once_every_watcher_has_confirmed_it,
            a_revocation_waits_for_a_silent_watcher_until_its_lease_is_over,
            a_watcher_gets_no_further_lease_before_it_has_confirmed_its_last_one,
            the_revocation_of_a_key_waits_for_watchers,
            a_stream_goes_on_after_its_cursor_at_the_same_process_only,
            wrong_messages_of_a_watcher_end_its_stream_with_a_reason,
            the_number_of_watchers_is_limited,
            streams_end_when_the_service_stops_and_it_waits_for_their_leases,
            a_change_of_the_lifetimes_reaches_watchers,
            a_watcher_limited_to_a_tenant_gets_its_revocations_only_and_all_keys,
            the_stream_of_a_caller_whose_registration_changes_ends,
        }
        wide {
            a_client_can_be_revoked_and_its_later_sessions_are_accepted,
            sessions_can_be_revoked_by_the_time_of_their_creation,
            sessions_can_be_revoked_by_the_time_of_their_authentication,
            several_subjects_are_revoked_and_recorded_each,
            a_dry_run_counts_and_changes_nothing,
            sessions_of_all_tenants_are_revoked_only_with_the_confirmation_of_a_dry_run,
            the_progress_of_a_revocation_is_listed_for_those_who_may_see_it,
            a_wrong_wide_target_names_the_field_and_changes_nothing,
        }
        clock {
            a_revoked_token_stays_inactive_if_the_clock_goes_back_after_a_sweep,
            a_blacklist_entry_stays_until_a_minute_after_the_expiry_of_its_tokens,
            the_sweeper_deletes_nothing_while_the_clock_is_briefly_an_hour_ahead,
            a_session_revoked_after_the_clock_went_back_stays_revoked_once_the_clock_is_right,
            a_tenant_revoked_after_the_clock_went_back_loses_all_earlier_sessions,
            ended_sessions_are_deleted_after_their_retention_and_live_ones_are_kept,
            the_sweep_command_refuses_a_clock_that_is_far_from_the_time_of_the_newest_row,
        }
        create {
            a_bare_request_gets_the_defaults,
            a_session_identifier_contains_the_time_of_its_creation,
            a_tenant_has_the_policy_and_the_audiences_that_the_configuration_gives_it,
            a_request_may_only_shorten_the_limits_of_the_policy,
            an_authentication_further_in_the_future_than_the_leeway_is_refused,
            validate_returns_claims_only_in_the_full_view,
            every_access_token_of_a_session_has_exactly_the_claims_of_its_creation,
            an_integer_that_a_double_cannot_represent_exactly_is_refused_at_any_depth,
            claims_have_4096_bytes_at_most_and_no_reserved_name,
            a_token_too_long_for_validate_is_not_issued,
            repeated_requests_with_one_id_yield_the_same_session_even_if_concurrent,
            a_request_id_used_by_another_request_or_caller_is_refused_and_changes_nothing,
            of_two_different_concurrent_requests_with_one_id_only_one_succeeds,
            a_new_session_over_the_quota_evicts_the_oldest,
            a_new_session_over_the_quota_is_refused_if_the_policy_says_so,
        }
        factors {
            the_time_of_each_method_is_kept_to_the_microsecond_and_shown_in_whole_seconds,
            a_factor_is_recent_enough_up_to_the_demanded_age,
            a_reauthentication_keeps_only_the_factors_that_the_caller_names_again,
            a_time_in_the_future_or_after_the_authentication_is_refused,
            an_invalid_demand_for_a_factor_is_refused_with_its_field,
        }
        faults {
            calls_report_a_failing_database_and_validate_still_answers,
            the_index_learns_of_a_revocation_whose_caller_left_after_the_commit,
            a_revocation_whose_caller_leaves_at_any_moment_takes_effect_fully_or_not_at_all,
            writes_wait_for_a_locked_database_while_reads_and_validate_go_on,
            a_damaged_row_fails_only_the_calls_that_need_it,
            the_sessions_of_a_revoked_tenant_end_even_if_one_row_is_damaged,
        }
        fields {
            a_text_may_have_as_many_bytes_as_its_limit_and_not_one_more,
            control_characters_are_refused_and_empty_texts_only_where_a_value_is_required,
            a_list_may_have_as_many_entries_as_its_limit_and_not_one_more,
            an_invalid_scope_or_policy_name_is_refused,
            device_texts_are_never_refused_and_the_answer_shows_them_as_they_were_stored,
            requests_that_differ_only_in_the_port_of_the_device_count_as_repeated,
        }
        gateways {
            both_kinds_of_gateways_get_the_same_answers,
            the_settings_for_gateways_change_while_the_service_runs,
            checks_are_answered_in_every_form_in_which_envoy_may_send_them,
            the_application_gets_the_verified_identity_and_no_header_that_the_client_forged,
            claim_values_are_encoded_so_that_they_cannot_break_a_header,
            the_path_and_query_of_the_client_after_the_prefix_are_not_read_as_demands,
            gateways_are_answered_without_the_database,
            introspection_returns_the_claims_of_a_good_token_and_nothing_about_others,
            oauth_revocation_takes_either_token_and_ignores_invalid_ones,
            callers_over_http_must_be_known_and_may_do_no_more_than_over_grpc,
            the_metadata_name_the_endpoints_of_introspection_and_revocation,
        }
        health {
            validate_is_refused_until_the_blacklist_is_loaded,
            a_revocation_is_not_acknowledged_before_its_entry_is_in_the_index,
            health_of_an_unknown_service_is_not_found,
            the_first_signal_only_turns_health_to_not_serving_and_the_second_stops_the_service,
            a_call_in_flight_at_the_signal_is_finished_and_answered,
            reflection_lists_the_services,
        }
        http {
            the_service_is_live_but_not_ready_until_the_blacklist_is_loaded,
            the_service_is_live_but_not_ready_while_it_finishes_calls_after_the_signal,
            an_idle_connection_does_not_keep_the_service_from_stopping,
            unknown_paths_are_not_found_and_read_only_paths_refuse_other_methods,
            a_request_head_beyond_the_limits_is_refused_and_the_next_request_is_answered,
            metrics_follow_openmetrics_and_each_metric_has_a_description,
            a_revocation_is_counted_when_it_is_acknowledged,
            metrics_show_an_unacknowledged_revocation_and_count_it_if_its_caller_gives_up,
            metrics_have_the_older_text_format_for_scrapers_that_prefer_it,
        }
        import {
            an_imported_session_keeps_its_data_and_its_times,
            a_repeated_import_creates_nothing_twice,
            a_session_that_has_ended_is_not_imported_to_the_microsecond,
            an_import_brings_back_no_session_that_a_revocation_covers,
            each_invalid_field_of_an_imported_session_is_named_and_spoils_no_other_session,
            an_import_has_up_to_500_sessions_and_the_larger_size_limit,
            an_import_that_only_validates_writes_nothing,
            an_import_exceeds_quotas_and_the_next_sign_in_enforces_them,
            a_refresh_token_of_the_other_system_belongs_to_one_session_only,
            a_refresh_token_of_the_other_system_is_replayed_within_the_grace_and_reused_after_it,
            an_imported_session_that_is_not_refreshed_in_time_ends,
            a_refresh_token_of_the_other_system_can_reauthenticate_and_is_invalid_after_it,
            a_refresh_token_of_the_other_system_revokes_its_session_and_no_other,
            refresh_tokens_of_the_other_system_are_accepted_only_if_the_settings_say_so,
            many_refreshes_at_once_by_a_token_of_the_other_system_leave_one_lineage,
            a_limited_admin_imports_only_what_is_within_its_limits,
            the_sweeper_deletes_refresh_tokens_of_the_other_system_with_their_sessions,
        }
        inactive {
            the_validity_of_a_token_begins_and_ends_exactly_to_the_second,
            a_bit_flipped_anywhere_makes_a_token_inactive,
            a_refresh_token_is_not_accepted_as_an_access_token,
            a_token_of_another_service_with_the_same_issuer_is_rejected_for_its_unknown_key,
            each_demand_that_a_token_does_not_meet_has_its_own_reason,
        }
        keys {
            the_next_key_is_published_before_it_signs_and_the_previous_key_is_accepted_afterwards,
            a_rotation_by_hand_is_refused_until_every_verifier_may_know_the_next_key,
            tokens_of_a_revoked_key_are_inactive_and_their_sessions_stay_live,
            a_refresh_moves_its_session_to_the_newest_key_and_old_keys_stay_for_other_sessions,
            refresh_tokens_of_a_revoked_key_are_refused_and_access_tokens_stay_valid,
            a_new_algorithm_takes_effect_at_the_next_rotation_and_older_tokens_stay_valid,
            the_public_keys_are_served_with_an_etag_and_a_max_age,
            the_metadata_name_the_address_of_the_public_keys,
            key_rows_that_were_tampered_with_are_not_used_and_prevent_a_start,
            a_key_whose_row_is_damaged_can_be_revoked,
            no_key_with_valid_tokens_is_dropped_when_the_clock_leaps,
        }
        lifecycle {
            a_revoked_session_is_inactive_at_once_and_after_a_restart,
            a_live_session_goes_on_after_a_restart,
            a_refresh_can_be_replayed_after_the_service_has_restarted,
            a_missing_or_foreign_master_key_is_refused_and_the_right_one_still_opens_the_database,
        }
        limits {
            a_session_ends_at_its_idle_expiry_to_the_microsecond,
            a_session_ends_at_its_absolute_expiry_to_the_microsecond_despite_refreshes,
            an_access_token_is_active_until_the_second_of_its_expiry,
            an_access_token_never_outlives_the_absolute_expiry_of_its_session,
            a_repeated_creation_returns_the_same_tokens_and_extends_no_lifetime,
            an_authentication_is_recent_enough_up_to_the_demanded_age,
            a_token_issued_within_the_last_second_of_a_session_is_already_expired,
            a_session_may_live_for_a_hundred_years,
        }
        listing {
            pages_follow_each_other_without_gap_or_overlap_the_newest_session_first,
            a_long_page_is_read_in_parts_and_ends_before_it_exceeds_the_size_limit,
            a_session_created_between_two_pages_does_not_shift_the_second_page,
            a_page_token_of_another_request_is_refused,
            each_filter_selects_the_sessions_that_are_listed_and_counted,
            a_search_ends_early_and_says_so_if_too_few_of_many_sessions_pass_the_filter,
            an_expired_session_is_not_listed_as_live_nor_as_ended_before_a_sweep_records_its_end,
        }
        metadata {
            metadata_are_returned_as_they_are_now_and_only_when_asked_for,
            a_batch_reads_the_metadata_of_all_its_sessions_by_one_query,
            tokens_are_validated_without_the_database_unless_metadata_are_needed,
            a_token_is_revoked_if_the_row_says_so_before_the_index_does,
            an_active_token_whose_row_was_deleted_has_no_metadata,
            metadata_count_as_a_read_and_towards_the_length_of_the_answer,
        }
        audit_listing {
            records_are_listed_by_subject_session_caller_action_and_time,
            without_the_table_the_answer_says_that_the_records_are_in_the_log,
        }
        metrics {
            every_method_is_counted_with_its_code_and_its_duration,
            calls_that_are_refused_time_out_or_are_cancelled_are_counted_with_their_codes,
            every_http_route_is_counted_with_its_status_and_its_duration,
            the_counts_agree_with_those_of_a_client_over_10_000_calls,
        }
        policies {
            a_client_has_the_policy_and_the_audiences_that_the_configuration_gives_it,
            presets_can_be_named_like_any_policy_and_be_the_base_of_others,
            a_stricter_policy_reaches_a_live_session_at_its_next_refresh,
            a_session_that_has_expired_by_the_stricter_policy_ends_and_so_do_its_tokens,
            a_refresh_token_that_is_reused_stays_the_same_and_yields_working_access_tokens,
            a_refresh_of_a_reused_token_revokes_the_access_token_before_if_the_policy_says_so,
            a_reauthentication_replaces_a_reused_refresh_token,
            settings_change_while_the_service_runs,
            an_update_does_not_apply_stricter_limits,
        }
        refresh {
            one_of_64_concurrent_refreshes_rotates_and_the_others_repeat_its_answer,
            a_replay_until_the_end_of_the_grace_repeats_the_refresh_token_and_changes_nothing,
            a_replay_one_microsecond_past_the_grace_ends_the_session_and_revokes_its_tokens,
            a_refresh_by_a_token_two_generations_old_is_reuse_even_within_the_grace,
            reuse_ends_only_the_session_of_the_reused_token,
            only_one_access_token_is_active_if_a_refresh_revokes_the_former_one,
            a_replay_always_yields_an_access_token_that_is_active,
            a_refresh_may_narrow_the_scopes_of_the_new_access_token_but_not_of_the_session,
            a_refresh_replaces_the_device_only_if_the_request_has_one,
            a_refresh_token_can_be_replayed_for_a_day_until_its_successor_is_used,
            a_replay_one_microsecond_past_the_replay_limit_ends_the_session_and_its_tokens,
            a_session_keeps_the_replay_policy_under_which_it_was_created,
        }
        refusals {
            every_invalid_field_of_a_call_is_named,
            an_unknown_session_is_not_found,
            a_revocation_is_refused_while_the_blacklist_is_full_and_the_refusal_names_the_quota,
            a_message_beyond_its_size_limit_is_refused_and_the_connection_stays_open,
        }
        revoke {
            any_token_or_the_identifier_of_a_session_revokes_that_whole_session_and_no_other,
            an_old_refresh_token_revokes_its_session_even_long_after_its_grace,
            revoking_a_subject_ends_all_its_sessions_except_the_one_to_be_spared,
            a_tenant_revocation_spares_a_session_created_later_in_the_same_microsecond,
            the_default_tenant_can_be_revoked,
            one_access_token_can_be_revoked_alone,
            an_expired_access_token_can_revoke_its_session_and_revoking_it_alone_does_nothing,
            a_revocation_of_an_expired_session_adds_no_row,
            end_reasons_that_only_the_service_may_give_are_refused,
        }
        secrecy {
            logs_errors_and_debug_prints_hold_no_token_no_key_and_no_claim_value,
        }
        setback {
            a_token_whose_session_the_database_does_not_know_any_more_can_be_revoked,
            sessions_that_the_database_does_not_know_any_more_can_be_revoked,
            a_token_of_a_session_that_the_database_takes_for_expired_can_be_revoked,
            a_lowered_limit_for_access_tokens_holds_for_the_refreshes_of_older_sessions,
            the_sessions_of_a_revoked_tenant_end_even_if_the_caller_gives_up,
        }
        $($alone)*
    }};
}

engine! {
    sqlite on Sqlite:
    sqlite_only {
        a_second_service_on_the_same_folder_is_refused,
        a_database_locked_by_another_connection_is_not_reported_as_damaged,
    }
    vectors {
        client_libraries_decide_on_demands_and_times_as_the_service_does,
        client_libraries_decide_as_the_service_does_after_each_revocation,
        client_libraries_keep_the_rules_of_the_stream,
    }
}
engine! {
    postgres on Postgres:
    postgres_only {
        services_on_one_database_serve_the_same_sessions,
        services_on_one_database_reject_tokens_that_the_others_have_revoked,
        a_revocation_of_another_replica_is_not_acknowledged_before_its_entry_is_in_the_index,
        calls_report_a_crashed_database_server_and_validate_still_answers,
        an_answer_that_rests_only_on_reads_waits_for_a_later_renewal,
        calls_are_refused_as_retriable_while_no_key_is_active_and_succeed_with_the_next_key,
        lost_revocations_are_rewritten_without_waiting_for_one_another,
        the_sessions_of_a_tenant_whose_revocation_was_lost_end_again,
        a_service_whose_clock_is_too_far_off_refuses_to_validate,
        a_service_with_a_clock_too_far_behind_acknowledges_revocations_and_validates_nothing,
        a_service_whose_clock_is_too_far_ahead_acknowledges_no_revocation,
        a_service_without_a_lease_leaves_the_sweeps_to_others,
        a_service_that_starts_with_a_wrong_clock_does_not_serve_until_the_clock_is_right,
        an_expired_token_can_be_revoked_while_it_may_be_valid_by_another_clock,
        a_sweep_uses_the_clock_of_the_database,
        replicas_with_different_clocks_agree_on_what_is_valid_replayed_and_reused,
        the_oldest_session_is_the_one_that_was_created_first_whichever_replicas_created_them,
        replicas_exchange_a_refresh_token_of_another_system_for_one_and_the_same,
    }
}
