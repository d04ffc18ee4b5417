//! Tests of the contract of [`countersign::store::Store`] on every engine.
//!
//! Each rule is one function over `&dyn Store`. The list below makes a test of it for each engine,
//! with a database of its own. A function that is not on the list is dead code, so `-D warnings`
//! finds one that was forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod audit;
mod concurrency;
mod creating;
mod decisions;
mod engines;
mod feed;
mod keys;
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

/// Makes a test of each rule on one engine. The rules of the second list also get the database,
/// because they look at tables that the contract gives no way to read.
macro_rules! tests {
    ($engine:ident: $($area:ident { $($rule:ident,)* })*; $($table:ident { $($of_table:ident,)* })*) => {
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

/// The whole contract.
macro_rules! conformance {
    ($engine:ident) => {
        tests! {
            $engine:
            creating {
                every_field_of_a_session_is_read_back,
                the_least_values_are_read_back,
                the_greatest_values_are_read_back,
                numbers_in_claims_are_read_back_to_the_last_digit,
                claims_may_hold_every_text_that_json_can,
                a_session_that_is_not_there_is_none,
                the_same_request_gives_the_first_session_and_no_second_row,
                another_request_with_the_same_id_is_refused_and_changes_nothing,
                a_row_without_a_fingerprint_is_matched_by_its_subject_and_client,
                the_same_request_in_another_tenant_is_another_session,
                a_request_is_repeated_even_if_its_session_has_ended,
                a_duplicate_session_id_is_an_error_and_does_not_affect_concurrent_creations,
            }
            quota {
                a_session_over_the_limit_is_refused_and_none_is_evicted,
                a_session_over_the_limit_evicts_the_oldest_session,
                a_lowered_limit_evicts_as_many_as_are_too_many,
                ended_and_expired_sessions_do_not_count,
                sessions_of_others_do_not_count,
                a_limit_of_zero_means_no_limit,
                a_limit_lowered_far_is_reached_step_by_step,
                a_limit_too_great_to_read_all_sessions_holds_too,
                concurrent_creations_of_one_subject_evict_all_sessions_over_the_limit,
                a_repeated_request_evicts_nobody_and_is_not_refused,
            }
            decisions {
                attempts_at_random_are_decided_as_the_domain_decides,
                creations_at_random_are_decided_as_the_domain_decides,
                random_entries_replace_each_other_as_the_domain_decides,
                revocations_at_random_are_decided_as_the_domain_decides,
            }
            refreshing {
                a_rotation_writes_what_the_domain_decides_and_nothing_else,
                a_device_is_updated_when_given_and_kept_when_not,
                a_replay_changes_nothing,
                a_replay_until_use_goes_on_after_the_grace_and_ends_with_the_next_rotation,
                a_reuse_ends_the_session_and_stops_its_tokens,
                a_refused_attempt_changes_nothing,
                an_unknown_session_is_refused,
                a_kept_access_token_gets_no_entry,
                a_revoked_access_token_is_stopped_for_as_long_as_it_lives,
            }
            revoking {
                a_revoked_session_ends_and_its_tokens_are_stopped,
                an_ended_session_is_left_as_it_ended,
                an_expired_session_is_not_ended,
                an_unknown_session_is_not_found,
                all_sessions_of_a_subject_end_but_one,
                a_subject_revoked_twice_ends_nothing_more_and_has_one_entry,
                a_subject_without_sessions_is_revoked_all_the_same,
                a_later_revocation_of_a_subject_cannot_spare_a_session_that_was_already_revoked,
                no_session_is_created_or_refreshed_under_a_revocation_of_its_subject,
                expired_sessions_of_a_subject_are_not_counted,
                a_revoked_token_leaves_its_session_alone,
                a_token_revoked_twice_has_one_entry_with_a_new_seq,
                a_token_of_a_session_that_is_over_or_unknown_adds_no_entry,
                without_room_nothing_is_done_that_would_add_an_entry,
                an_authentic_token_is_stopped_even_if_its_session_is_not_known_to_live,
            }
            tenants {
                a_revoked_tenant_has_one_entry_and_its_sessions_are_counted,
                the_default_tenant_is_a_tenant_like_others,
                a_tenant_revoked_twice_has_one_entry_with_a_new_seq,
                a_tenant_revoked_again_has_changed_only_if_sessions_were_created_since,
                few_of_many_concurrent_revocations_of_a_tenant_change_something,
                sessions_that_are_over_are_not_counted,
                sessions_created_with_a_clock_ahead_are_covered,
                a_clock_set_back_does_not_uncover_what_was_covered,
                revoked_tenants_are_listed_with_how_they_end,
                sessions_end_in_batches_up_to_the_instant_and_no_further,
                a_tenant_revocation_does_not_change_sessions_that_had_ended_before,
                the_entry_is_kept_as_long_as_any_token_of_its_sessions_could_live,
                a_tenant_without_known_sessions_can_be_revoked,
                a_late_job_does_not_undo_a_newer_revocation_of_the_tenant,
                no_session_is_created_or_refreshed_under_a_revocation_of_its_tenant,
                all_sessions_end_in_batches_up_to_an_instant,
            }
            feed {
                entries_come_in_the_order_of_their_seq_page_by_page,
                a_follower_sees_every_entry_once_while_others_revoke,
                every_kind_of_new_entry_changes_the_hint,
            }
            concurrency {
                one_of_many_concurrent_refreshes_rotates_and_the_others_replay,
                sessions_refreshed_at_once_do_not_mix,
                a_concurrent_revocation_returns_no_position_before_the_entry_of_the_session,
                only_one_of_many_concurrent_creations_for_one_request_is_new,
                only_one_of_several_concurrent_requests_with_one_id_gets_the_session,
                a_limit_holds_against_many_creations_at_once,
                evictions_at_once_leave_as_many_as_the_limit,
                a_refresh_racing_a_revocation_never_brings_the_session_back,
                a_refresh_racing_the_end_of_its_tenant_never_brings_the_session_back,
                abandoned_calls_do_not_affect_later_ones,
            }
            sweeping {
                only_expired_entries_are_deleted,
                entries_are_deleted_at_most_the_limit_at_a_time,
                the_latest_expiry_that_was_ever_deleted_is_recorded,
                a_tenant_stays_until_its_sessions_have_ended,
                a_tenant_stays_for_a_session_of_its_last_millisecond,
                a_tenant_stays_for_a_session_created_with_a_clock_ahead,
                a_tenant_does_not_stay_for_sessions_created_since,
                a_tenant_does_not_stay_for_a_later_session_of_a_clock_behind,
                a_tenant_that_stays_does_not_use_up_the_limit,
                a_seq_is_not_used_again_after_the_newest_entries_are_gone,
                sessions_are_deleted_by_when_they_were_over,
                a_session_whose_expiry_was_recorded_stays_over_by_a_clock_that_went_back,
                sessions_are_deleted_at_most_the_limit_at_a_time,
            }
            listing {
                the_newest_session_is_listed_first,
                a_list_is_filtered_by_tenant_subject_and_state,
                a_session_is_live_until_its_idle_expiry_and_over_once_that_is_recorded,
                pages_cover_everything_once,
                texts_that_look_alike_are_different_texts,
            }
            keys {
                keys_are_read_back_in_every_state,
                a_change_is_made_once_and_for_the_ring_that_it_was_made_for,
                only_one_of_two_concurrent_key_changes_is_made,
                a_refresh_key_is_held_as_long_as_a_live_session_has_its_token,
            };
            audit {
                records_are_kept_field_by_field,
                any_text_is_kept_as_it_is,
                a_record_that_is_there_is_not_added_again,
                records_of_many_writers_lie_in_the_order_of_time,
                records_are_deleted_when_they_are_old_and_no_sooner,
                records_are_deleted_at_most_the_limit_at_a_time_the_oldest_first,
                sweeps_at_once_delete_everything_once,
                a_session_that_expired_is_recorded_once_and_one_that_was_ended_is_not,
                expiries_are_recorded_in_batches_no_larger_than_asked,
                a_refreshed_session_is_recorded_when_it_expires_at_last,
                concurrent_recorders_record_each_expired_session_once,
                a_session_that_expires_after_the_clock_was_set_back_is_recorded,
                a_session_is_not_deleted_before_its_expiry_is_recorded,
                the_queries_in_the_documentation_can_be_run,
            }
            sweeping {
                an_entry_that_covers_a_live_session_is_not_finished,
            }
        }
    };
}

conformance!(sqlite);
conformance!(postgres);
