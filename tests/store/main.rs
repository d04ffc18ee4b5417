//! Tests of the contract of [`countersign::store::Store`] on every engine.
//!
//! Each rule is one function over `&dyn Store`. The list below turns each function into one test
//! per engine, and each test has its own database. A function that is missing from the list is dead
//! code, so `-D warnings` reports it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod changing;
mod concurrency;
mod creating;
mod decisions;
mod engines;
mod feed;
mod keys;
mod legacy_tokens;
mod listing;
mod partitions;
mod postgres_only;
mod quota;
mod refreshing;
mod renewals;
mod revoking;
mod sqlite_only;
mod support;
mod sweeping;
mod tenants;
mod wide;

/// Makes a test of each rule on one engine. The rules after the semicolon also get the database,
/// because they read or change tables in ways that the contract does not offer.
macro_rules! tests {
    (
        $engine:ident:
        $($area:ident { $($rule:ident,)* })*;
        $($table:ident { $($of_table:ident,)* })*
    ) => {
        mod $engine {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $rule() {
                    let database = super::engines::$engine().await;
                    super::$area::$rule(database.store()).await;
                }
            )*)*
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $of_table() {
                    let database = super::engines::$engine().await;
                    super::$table::$of_table(database.store(), &database).await;
                }
            )*)*
        }
    };
}

/// Makes a test of every rule of the contract on one engine.
macro_rules! conformance {
    ($engine:ident) => {
        tests! {
            $engine:
            creating {
                every_field_of_a_session_is_read_back,
                the_smallest_values_of_all_fields_are_read_back,
                the_largest_values_of_all_fields_are_read_back,
                numbers_in_claims_are_read_back_to_the_last_digit,
                claims_may_hold_any_text_that_json_can_hold,
                an_unknown_session_is_read_as_none,
                metadata_are_read_with_what_shows_that_a_token_was_revoked,
                a_repeated_request_returns_the_first_session_and_adds_no_row,
                a_different_request_with_the_same_id_is_refused_and_changes_nothing,
                a_row_without_a_fingerprint_is_matched_by_its_subject_and_client,
                the_same_request_id_in_another_tenant_creates_another_session,
                a_repeated_request_returns_its_session_even_if_that_has_ended,
                a_duplicate_session_id_is_an_error_and_does_not_affect_concurrent_creations,
            }
            legacy_tokens {
                a_token_stands_for_the_session_that_it_was_imported_with,
                a_token_stands_for_one_session_even_if_many_are_created_with_it_at_once,
                a_repeated_creation_with_a_token_returns_the_first_session,
                a_session_that_a_revocation_covers_leaves_no_token,
                creations_with_and_without_tokens_can_share_a_batch,
                old_tokens_are_deleted_in_batches_the_oldest_first,
            }
            quota {
                a_session_over_the_limit_is_refused_without_an_eviction,
                a_session_over_the_limit_evicts_the_oldest_session,
                under_a_lowered_limit_a_creation_evicts_every_session_over_the_limit,
                ended_and_expired_sessions_do_not_count,
                sessions_of_others_do_not_count,
                a_limit_of_zero_means_no_limit,
                a_limit_that_was_lowered_far_is_reached_over_several_creations,
                a_limit_holds_even_if_it_is_too_large_to_read_all_sessions,
                concurrent_creations_of_one_subject_evict_all_sessions_over_the_limit,
                a_repeated_request_evicts_nobody_and_is_not_refused,
            }
            decisions {
                random_refreshes_are_decided_as_the_domain_decides,
                random_creations_are_decided_as_the_domain_decides,
                random_entries_replace_earlier_ones_as_the_domain_decides,
                random_revocations_are_decided_as_the_domain_decides,
            }
            refreshing {
                a_rotation_writes_what_the_domain_decides_and_nothing_else,
                a_refresh_updates_the_device_if_one_is_given_and_keeps_it_otherwise,
                a_replay_changes_nothing,
                replays_until_used_remain_possible_after_the_grace_until_the_next_rotation,
                a_reuse_ends_the_session_and_stops_its_tokens,
                a_refused_attempt_changes_nothing,
                an_unknown_session_is_refused,
                a_refresh_that_keeps_the_previous_access_token_adds_no_entry,
                an_access_token_that_a_refresh_revokes_is_stopped_until_it_expires,
                a_session_that_reuses_its_refresh_token_is_refreshed_by_any_number_of_callers,
                stricter_limits_are_written_at_a_refresh_and_end_a_session_that_exceeds_them,
            }
            changing {
                a_reauthentication_writes_what_the_domain_decides_and_nothing_else,
                a_reauthentication_writes_the_stricter_limits_that_reach_the_session,
                an_update_writes_what_the_domain_decides_and_nothing_else,
                only_the_refresh_token_of_the_last_reauthentication_can_be_exchanged,
                a_repeated_reauthentication_returns_the_same_session_and_its_feed_position,
                a_refused_change_changes_nothing,
                a_used_refresh_token_ends_its_session_also_at_a_reauthentication,
                concurrent_changes_and_refreshes_of_a_session_leave_one_lineage,
            }
            revoking {
                a_revoked_session_ends_and_its_tokens_are_stopped,
                a_second_revocation_does_not_change_an_ended_session,
                an_expired_session_is_not_changed_by_a_revocation,
                an_unknown_session_is_not_found,
                all_sessions_of_a_subject_end_except_the_spared_one,
                a_subject_revoked_twice_has_one_entry_and_no_more_sessions_end,
                a_subject_without_sessions_can_be_revoked,
                a_later_revocation_of_a_subject_cannot_spare_a_session_that_was_already_revoked,
                no_session_is_created_or_refreshed_under_a_revocation_of_its_subject,
                expired_sessions_of_a_subject_are_not_counted,
                the_revocation_of_one_token_does_not_change_its_session,
                a_token_revoked_twice_has_one_entry_at_a_new_feed_position,
                the_revocation_of_a_token_adds_no_entry_if_its_session_is_over_or_unknown,
                a_revocation_that_would_add_an_entry_to_a_full_blacklist_does_nothing,
                an_authentic_token_is_stopped_even_if_its_session_is_unknown_or_seems_expired,
            }
            tenants {
                a_revoked_tenant_has_one_entry_and_its_sessions_are_counted,
                no_more_sessions_are_counted_than_the_limit,
                the_default_tenant_can_be_revoked_like_any_other_tenant,
                a_tenant_revoked_twice_has_one_entry_at_a_new_feed_position,
                a_repeated_revocation_of_a_tenant_reports_a_change_only_for_new_sessions,
                only_a_few_of_many_concurrent_revocations_of_a_tenant_report_a_change,
                ended_and_expired_sessions_of_a_revoked_tenant_are_not_counted,
                a_revocation_of_a_tenant_covers_sessions_created_with_a_clock_ahead,
                a_later_revocation_by_a_clock_behind_covers_no_less_than_the_first,
                unfinished_revocations_of_tenants_are_listed_with_how_their_sessions_end,
                covered_sessions_end_in_batches_and_later_sessions_do_not_end,
                a_tenant_revocation_does_not_change_sessions_that_had_ended_before,
                the_entry_is_kept_as_long_as_any_token_of_its_sessions_could_be_valid,
                the_entry_is_kept_as_long_as_tokens_that_were_issued_under_earlier_limits,
                a_tenant_without_known_sessions_can_be_revoked,
                a_late_job_does_not_undo_a_newer_revocation_of_the_tenant,
                no_session_is_created_or_refreshed_under_a_revocation_of_its_tenant,
                all_sessions_end_in_batches_up_to_an_instant,
            }
            wide {
                a_cut_off_of_a_client_ends_only_its_sessions_and_counts_them,
                a_cut_off_by_authentication_ends_earlier_authentications_in_all_tenants,
                a_batch_looks_at_no_more_sessions_than_it_may,
                the_progress_of_a_cut_off_lasts_until_the_same_sessions_are_revoked_again,
                a_wide_entry_is_deleted_only_after_a_walk_that_began_after_its_expiry,
                several_subjects_are_revoked_together_or_not_at_all,
            }
            feed {
                the_feed_returns_entries_page_by_page_in_the_order_of_their_sequence_numbers,
                a_reader_that_hints_wake_sees_every_entry_once_during_concurrent_revocations,
                every_kind_of_new_entry_changes_the_hint,
            }
            concurrency {
                one_of_many_concurrent_refreshes_rotates_and_the_others_replay,
                concurrent_refreshes_of_different_sessions_do_not_mix,
                a_concurrent_revocation_returns_no_position_before_the_entry_of_the_session,
                only_one_of_many_concurrent_creations_for_one_request_is_new,
                of_two_concurrent_requests_with_one_id_only_one_gets_the_session,
                a_limit_holds_for_many_concurrent_creations,
                concurrent_evictions_leave_as_many_sessions_as_the_limit_allows,
                a_refresh_racing_a_revocation_never_brings_the_session_back,
                a_refresh_racing_the_revocation_of_its_tenant_never_brings_the_session_back,
                abandoned_calls_do_not_affect_later_ones,
            }
            sweeping {
                only_expired_entries_are_deleted,
                one_call_deletes_no_more_entries_than_the_limit,
                the_latest_expiry_of_all_deleted_entries_is_recorded,
                the_entry_of_a_tenant_is_kept_until_its_sessions_have_ended,
                the_entry_of_a_tenant_is_kept_for_a_session_of_its_last_millisecond,
                the_entry_of_a_tenant_is_kept_for_a_session_created_with_a_clock_ahead,
                the_entry_of_a_tenant_is_not_kept_for_sessions_created_since,
                the_entry_of_a_tenant_is_not_kept_for_a_later_session_created_with_a_clock_behind,
                an_entry_that_must_be_kept_does_not_count_towards_the_limit_of_a_sweep,
                sequence_numbers_are_not_reused_after_the_newest_entries_are_deleted,
                sessions_are_deleted_by_the_time_at_which_they_ended_or_expired,
                a_session_whose_expiry_was_recorded_stays_expired_after_the_clock_goes_back,
                one_call_deletes_no_more_sessions_than_the_limit,
            }
            listing {
                the_newest_session_is_listed_first,
                a_list_is_filtered_by_tenant_subject_device_and_state,
                a_session_is_listed_as_live_until_it_expires_and_as_over_once_that_is_recorded,
                pages_list_every_session_exactly_once,
                a_search_finds_the_sessions_that_pass_every_filter,
                a_search_finds_the_sessions_that_were_created_in_a_period,
                a_search_finds_the_sessions_that_ended_in_a_period_or_for_a_reason,
                a_read_looks_at_a_limited_number_of_sessions_and_the_next_one_goes_on,
                subjects_that_look_alike_are_different_subjects,
            }
            keys {
                keys_are_read_back_in_every_state,
                a_change_is_applied_once_and_only_to_the_version_of_the_ring_that_it_names,
                only_one_of_two_concurrent_key_changes_is_made,
                a_refresh_key_is_in_use_as_long_as_a_live_session_has_a_token_of_it,
            };
            audit {
                every_field_of_a_record_is_kept,
                a_search_finds_the_records_that_meet_every_condition,
                a_search_looks_at_a_limited_number_of_records_and_the_next_one_goes_on,
                any_text_is_kept_unchanged,
                a_record_that_was_already_written_is_not_added_again,
                records_of_many_concurrent_writers_are_all_kept,
                records_are_deleted_when_they_are_old_and_no_sooner,
                one_call_deletes_the_oldest_records_and_no_more_than_the_limit,
                concurrent_sweeps_delete_each_record_once,
                the_expiry_of_a_session_is_recorded_once_and_never_for_an_ended_session,
                expiries_are_recorded_in_batches_no_larger_than_the_limit,
                the_expiry_of_a_refreshed_session_is_recorded_only_once_it_has_expired,
                concurrent_recorders_record_each_expired_session_once,
                a_session_that_expires_after_the_clock_was_set_back_is_recorded,
                a_session_is_not_deleted_before_its_expiry_is_recorded,
                the_queries_in_the_documentation_can_be_run,
            }
            sweeping {
                an_entry_is_kept_while_it_covers_a_live_session,
            }
        }
    };
}

conformance!(sqlite);
conformance!(postgres);
