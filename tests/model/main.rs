//! These tests check a model of the protocol by which an acknowledged revocation holds on every
//! replica. They explore all reachable states. They also show that each rule is necessary: without
//! the rule, the checker finds a sequence of steps after which a revoked token is active.
//!
//! `docs/decisions/0009-the-lease-protocol.md` describes the protocol, and `0009-history.md` lists
//! the bounds of each of these models. `docs/decisions/0034-watchers.md` has the same for watchers,
//! which verify locally: `watching` has the order of all steps, `lengths` the lengths of leases,
//! and `forgetting` the purge watermark. `cargo test --test model -- --nocapture` prints the number
//! of states. `scripts/torture model` explores the ignored models, which have wider bounds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// The tests read the clock only to report how long an exploration took.
#![allow(clippy::disallowed_methods)]

mod clocks;
mod feed;
mod forgetting;
mod lengths;
mod protocol;
mod purging;
mod replaying;
mod watching;

use std::{fmt::Debug, hash::Hash, time::Instant};

use clocks::Clocks;
use countersign::domain::policy::Replay;
use feed::Feed;
use forgetting::Forgetting;
use lengths::{End, Lengths};
use protocol::{Broken, Failover, Protocol};
use purging::{Guard, Purging};
use replaying::Replaying;
use stateright::{Checker, HasDiscoveries, Model};

/// Explores all reachable states. Checks that each `always` property holds in every state, and each
/// `sometimes` property in at least one state.
fn holds<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let begin = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {:.1} s",
        checker.unique_state_count(),
        begin.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

/// Explores until an `always` property is violated. Returns the number of steps that lead to the
/// violation.
fn is_violated<M>(name: &str, model: M) -> usize
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let begin = Instant::now();
    let checker =
        model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let violated = checker.model().properties().into_iter().find(|property| {
        matches!(property.expectation, stateright::Expectation::Always)
            && checker.discovery(property.name).is_some()
    });
    let Some(property) = violated else {
        panic!("{name}: nothing is violated in {} states", checker.unique_state_count());
    };
    let steps = checker.discovery(property.name).unwrap().into_actions();
    let (states, seconds) = (checker.unique_state_count(), begin.elapsed().as_secs_f64());
    println!(
        "{name}: {} steps lead to a violation; found among {states} states, {seconds:.1} s",
        steps.len()
    );
    for step in &steps {
        println!("    {step:?}");
    }
    steps.len()
}

fn without(rule: Broken, world: Protocol) {
    is_violated(&format!("{rule:?}"), Protocol { broken: Some(rule), ..world });
}

/// Returns a model of three members and one revocation.
fn one() -> Protocol {
    Protocol { revocations: 1, ..Protocol::default() }
}

/// Returns a model in which one member may be removed by others, at any moment of its renewal.
fn removal() -> Protocol {
    Protocol { removals: 1, reads_before_it_writes: true, ..one() }
}

/// Reduces a model to two members, which no other replica joins.
fn two_members(world: Protocol) -> Protocol {
    Protocol { members: 2, joins: false, ..world }
}

/// Changes a model to one member and two revocations, which is enough for some violations.
fn one_member(world: Protocol) -> Protocol {
    Protocol { members: 1, joins: false, revocations: 2, ..world }
}

fn synchronous() -> Protocol {
    Protocol { failover: Failover::Synchronous, ..one() }
}

fn asynchronous() -> Protocol {
    Protocol { failover: Failover::Asynchronous, ..one() }
}

/// Returns a model of two members whose database is set back once, to its state at any earlier
/// moment.
fn set_back() -> Protocol {
    two_members(Protocol { failover: Failover::SetBack, ..one() })
}

/// Returns a model in which an acknowledged entry is lost, so that its feed position is given out
/// again.
fn position_given_out_twice() -> Protocol {
    Protocol { revocations: 2, first_to_be_lost: true, ..set_back() }
}

/// Returns a model of one member, in which a replica that joins after the dump is not in the table
/// of members that is restored.
fn joined_since_the_dump() -> Protocol {
    Protocol { members: 1, joins: true, standby_behind: true, ..set_back() }
}

mod the_protocol_holds {
    use super::*;

    #[test]
    fn leases_renewals_and_acknowledgements_of_one_revocation() {
        holds(
            "one revocation",
            Protocol { leases_end_early: true, reads_before_it_writes: true, ..one() },
        );
    }

    #[test]
    fn leases_renewals_and_acknowledgements_of_two_revocations() {
        holds("two revocations", Protocol::default());
    }

    #[test]
    fn acknowledgements_by_the_members_alone_and_by_the_wait_alone() {
        holds("by the members", Protocol { by_wait: false, members: 2, crashes: 1, ..one() });
        holds("by the wait", Protocol { by_members: false, members: 2, crashes: 1, ..one() });
    }

    #[test]
    fn crashing_leaving_and_joining() {
        holds("crashes", Protocol { crashes: 2, ..one() });
        holds("crash and join", Protocol { members: 2, crashes: 1, ..one() });
    }

    #[test]
    fn one_replica_with_a_longer_lease() {
        holds("longer lease", Protocol { one_longer_lease: true, members: 2, crashes: 1, ..one() });
    }

    #[test]
    fn removal_of_members_that_do_not_renew() {
        holds("removal", Protocol { removals: 1, ..one() });
        holds("removal, snapshot first", two_members(removal()));
    }

    #[test]
    fn an_index_that_is_emptied_before_it_is_loaded_again() {
        holds("emptied index", Protocol { clears_index: true, ..two_members(removal()) });
    }

    #[test]
    fn an_old_primary_that_keeps_running_cut_off_from_its_standby() {
        holds("synchronous failover", Protocol { cancels: false, ..synchronous() });
        holds("synchronous failover, cancelled waits", two_members(synchronous()));
    }

    #[test]
    fn an_asynchronous_failover_that_loses_the_last_commits() {
        holds("asynchronous failover", Protocol { standby_behind: true, ..asynchronous() });
        holds("asynchronous failover at any moment", two_members(asynchronous()));
    }

    #[test]
    fn a_database_that_is_set_back_on_the_same_timeline() {
        holds("set back", set_back());
        holds(
            "set back, a position is given out twice",
            Protocol { by_wait: false, ..position_given_out_twice() },
        );
    }

    /// Explores the earlier form of rule 14, in which the wait begins when the commit has returned.
    /// That form is sufficient, too, as long as every cancelled wait is noticed.
    #[test]
    fn a_wait_that_begins_at_the_commit_if_every_retry_writes_again() {
        let from_commit = |world| Protocol { waits_from_commit: true, ..world };
        holds("from the commit", from_commit(one()));
        holds("from the commit, synchronous failover", from_commit(two_members(synchronous())));
    }
}

/// Models with wider bounds, which take minutes each.
mod larger_worlds {
    use super::*;

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn crash_and_join_with_two_revocations() {
        holds(
            "crash and join, two revocations",
            Protocol { members: 2, crashes: 1, ..Protocol::default() },
        );
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn removal_at_any_moment() {
        holds("removal, snapshot first, three members", removal());
        holds("removal, snapshot first, one joins", Protocol { members: 2, ..removal() });
        holds("removal and crash", Protocol { removals: 1, crashes: 1, ..one() });
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn synchronous_failover() {
        holds("synchronous failover, cancelled waits, three members", synchronous());
        holds("synchronous failover, one joins", Protocol { members: 2, ..synchronous() });
        holds(
            "synchronous failover, two revocations",
            two_members(Protocol { revocations: 2, ..synchronous() }),
        );
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn asynchronous_failover() {
        holds("asynchronous failover at any moment, three members", asynchronous());
        holds("asynchronous failover, one joins", Protocol { members: 2, ..asynchronous() });
        holds(
            "asynchronous failover, two revocations",
            two_members(Protocol { revocations: 2, ..asynchronous() }),
        );
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn a_database_that_is_set_back() {
        let to_the_beginning = Protocol { revocations: 2, standby_behind: true, ..set_back() };
        holds("set back to the beginning, two revocations", to_the_beginning);
        holds("set back, a position is given out twice, by either way", position_given_out_twice());
        holds("set back, one joined since the dump", joined_since_the_dump());
    }
}

mod each_rule_is_needed {
    use super::*;

    #[test]
    fn the_lease_needs_each_of_its_rules() {
        without(Broken::DeadlineFromReply, one());
        without(Broken::LeaseBeforeApplied, one());
        without(Broken::LeaseReadAfterLookUp, one());
        without(
            Broken::LeaseCheckedBeforeLookUp,
            Protocol { clears_index: true, ..two_members(removal()) },
        );
        without(Broken::FreedByEarlierRenewal, one());
    }

    #[test]
    fn the_acknowledgement_needs_each_of_its_rules() {
        without(Broken::AcknowledgementSkipsAMember, one());
        without(Broken::WaitTooShort, one());
        without(Broken::WaitFromRequest, one());
        without(Broken::WaitByOwnLeaseLength, Protocol { one_longer_lease: true, ..one() });
        without(Broken::MembersListedBeforeCommit, Protocol { members: 2, ..one() });
    }

    #[test]
    fn the_membership_needs_each_of_its_rules() {
        without(Broken::SnapshotBeforeRegistering, Protocol { members: 2, ..one() });
        without(Broken::RemovalWithoutCompare, two_members(removal()));
        without(Broken::RemovalWaitFromQuestion, two_members(removal()));
        without(Broken::RenewalRevivesRow, two_members(removal()));
        without(Broken::RowDeletedBeforeLease, Protocol { crashes: 1, ..one() });
        without(Broken::RowSharedByTwo, one());
    }

    #[test]
    fn a_synchronous_standby_needs_each_rule() {
        without(Broken::RenewalByRead, Protocol { cancels: false, ..synchronous() });
        without(Broken::CancelledRenewalAccepted, synchronous());
        without(Broken::CancelledCommitAcknowledged, synchronous());
        without(Broken::RetryAcknowledgedFromRead, synchronous());
        without(Broken::SeqWithoutHistory, one_member(synchronous()));
        without(Broken::FeedReadApart, one_member(synchronous()));
        without(
            Broken::MembersOfOldPrimary,
            Protocol { members: 1, cancels: false, ..synchronous() },
        );
    }

    #[test]
    fn an_asynchronous_standby_needs_each_rule() {
        without(Broken::ReloadReplacesMemory, two_members(asynchronous()));
        without(Broken::CounterNotCompared, one_member(asynchronous()));
        without(Broken::FeedReadApart, one_member(asynchronous()));
        let joined = Protocol { members: 1, standby_behind: true, ..asynchronous() };
        without(Broken::MembersTrustedAfterFailover, joined);
    }

    #[test]
    fn a_database_that_is_set_back_needs_each_rule() {
        without(
            Broken::EarlierRenewalCounts,
            Protocol { revocations: 2, standby_behind: true, ..set_back() },
        );
        without(Broken::EpochNotCompared, one_member(set_back()));
        without(
            Broken::MembersTrustedAfterFailover,
            Protocol { by_wait: false, ..joined_since_the_dump() },
        );
        without(Broken::ReloadReplacesMemory, set_back());
    }
}

/// A set-back also loses rows of the table of members. A replica that has nothing to compare the
/// table with cannot notice the loss. Decision 9 states these cases under "Limits".
mod not_promised_after_a_set_back {
    use super::*;

    #[test]
    fn revocations_by_a_process_that_starts_while_earlier_leases_are_in_force() {
        let world =
            Protocol { starts_after_set_back: true, by_wait: false, ..joined_since_the_dump() };
        is_violated("a process that starts", world);
    }

    #[test]
    fn revocations_by_a_member_that_has_not_renewed_since_the_dump() {
        is_violated(
            "not noticed",
            Protocol { set_back_unnoticed: true, revocations: 2, ..set_back() },
        );
    }
}

#[test]
fn no_lease_outlives_a_wait_that_began_later() {
    holds("clocks", Clocks { broken: None });
    for broken in [
        clocks::Broken::WaitIsOneLease,
        clocks::Broken::WaitWithoutMargin,
        clocks::Broken::DeadlineFromReply,
        clocks::Broken::ClockStopsInSuspend,
    ] {
        is_violated(&format!("{broken:?}"), Clocks { broken: Some(broken) });
    }
}

#[test]
fn a_replica_holds_every_entry_that_it_reports_as_applied() {
    holds("feed", Feed { broken: None });
    for broken in
        [feed::Broken::Bigserial, feed::Broken::FullPageCounts, feed::Broken::HeadReadLater]
    {
        is_violated(&format!("{broken:?}"), Feed { broken: Some(broken) });
    }
}

#[test]
fn a_revoked_token_stays_inactive_after_its_entry_is_swept() {
    let recorded = |broken| Purging { guard: Guard::Record, kept: 0, skew: None, broken };
    holds("swept, by the record", recorded(None));
    for broken in [
        purging::Broken::RecordReadBeforeEntries,
        purging::Broken::JudgedBeforeLookUp,
        purging::Broken::PurgesByOwnClock,
    ] {
        is_violated(&format!("{broken:?}"), recorded(Some(broken)));
    }

    let kept = |kept, skew| Purging { guard: Guard::Retention, kept, skew, broken: None };
    holds("swept, by keeping entries longer", kept(2, Some(1)));
    is_violated("purge at the token's expiry", kept(0, Some(1)));
    is_violated("a clock set back by more than is tolerated", kept(2, None));
}

#[test]
fn no_watch_lease_outlives_w_or_the_count_of_its_replica() {
    let lengths = |end, broken| Lengths { end, broken };
    holds("watch leases and W", lengths(End::Wait, None));
    holds("watch leases and their count", lengths(End::Count, None));
    for broken in [
        lengths::Broken::ReplicaLeaseIgnored,
        lengths::Broken::ValidityWithoutMargin,
        lengths::Broken::LeaseReadEarly,
        lengths::Broken::TimeTakenOnArrival,
        lengths::Broken::WatcherReadsOneClock,
        lengths::Broken::ReplicaReadsOneClock,
    ] {
        is_violated(&format!("{broken:?}"), lengths(End::Wait, Some(broken)));
    }
    for broken in [
        lengths::Broken::CountWithoutDrift,
        lengths::Broken::CountWithoutMargin,
        lengths::Broken::TimeTakenOnArrival,
        lengths::Broken::WatcherReadsOneClock,
    ] {
        is_violated(&format!("{broken:?}"), lengths(End::Count, Some(broken)));
    }

    // The drift of W is enough: it covers the two leases, because one follows the other.
    let without_drift = Some(lengths::Broken::ValidityWithoutDrift);
    holds("ValidityWithoutDrift", lengths(End::Wait, without_drift));
}

#[test]
fn a_revoked_token_stays_inactive_after_a_watcher_drops_its_entry() {
    holds("dropped by a watcher", Forgetting { broken: None });
    for broken in [
        forgetting::Broken::WatermarkReadBeforePage,
        forgetting::Broken::DropsByOwnClock,
        forgetting::Broken::DropsBeforeItRaises,
        forgetting::Broken::JudgedBeforeLookUp,
        forgetting::Broken::JudgedByLoadedLease,
    ] {
        is_violated(&format!("{broken:?}"), Forgetting { broken: Some(broken) });
    }
}

/// The rule holds however many answers are lost, and whenever the client retries.
#[test]
fn a_client_that_loses_answers_is_not_signed_out_while_replays_are_possible() {
    let alone = |replay, lasts| Replaying { replay, lasts, has_thief: false };
    holds("replays within the grace", alone(Replay::Grace, 1));
    holds("replays until use", alone(Replay::UntilUsed, 4));
    is_violated("a retry after the grace", alone(Replay::Grace, 2));
    is_violated("a retry after the limit", alone(Replay::UntilUsed, 5));
}

/// With replays until used, it is easier for a thief to refresh in turn with the client without
/// being detected. Even then, a refresh token whose successor was used never yields tokens.
#[test]
fn a_refresh_token_whose_successor_was_used_yields_no_tokens() {
    for replay in [Replay::Grace, Replay::UntilUsed] {
        holds("a thief", Replaying { replay, lasts: 6, has_thief: true });
    }
}
