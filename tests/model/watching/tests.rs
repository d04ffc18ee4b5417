//! The worlds in which the model is explored, and the broken rules.

use super::{Broken, Renewals, Watching};
use crate::{holds, is_violated};

fn without(rule: Broken, world: Watching) {
    is_violated(&format!("{rule:?}"), Watching { broken: Some(rule), ..world });
}

/// Returns a model of one replica, which revokes and has the watcher.
fn one() -> Watching {
    Watching { replicas: 1, watched: 0, ..Watching::default() }
}

/// Changes a model so that W acknowledges nothing. Then the age of a lease makes no difference, and
/// renewals need fewer steps.
fn by_reports(world: Watching) -> Watching {
    Watching { by_wait: false, renewals: Renewals::ExecutedAtOnce, ..world }
}

fn at_once(world: Watching) -> Watching {
    Watching { renewals: Renewals::AtOnce, ..world }
}

/// Returns a model of one replica, to which the watcher connects a second time.
fn reconnecting() -> Watching {
    Watching { reconnects: 1, ..by_reports(one()) }
}

/// Returns a model in which replica 1, which has the watcher, leaves.
fn leaving() -> Watching {
    Watching { leaves: true, ..by_reports(Watching::default()) }
}

/// Returns a model in which replica 1, which has the watcher, is removed and joins again.
fn removal() -> Watching {
    Watching { removals: 1, ..by_reports(Watching::default()) }
}

/// Returns a model in which the database is set back, so that the position of the first revocation
/// is given out again.
fn set_back() -> Watching {
    Watching { sets_back: true, revocations: 2, ..by_reports(one()) }
}

/// Returns a model of a watcher that connects, with its cursor, at any moment before or after the
/// database is set back.
fn connecting_after_a_set_back() -> Watching {
    Watching { is_connected: false, reconnects: 1, ..set_back() }
}

fn sqlite() -> Watching {
    Watching { is_sqlite: true, ..by_reports(one()) }
}

fn restarting() -> Watching {
    Watching { restarts: 1, ..sqlite() }
}

mod the_watchers_keep_the_promise {
    use super::*;

    #[test]
    fn acknowledgements_by_the_reports_and_by_the_wait() {
        holds("watchers of the replica that revokes", one());
        holds("watchers of another replica", Watching::default());
        holds("two revocations", Watching { revocations: 2, ..by_reports(one()) });
    }

    #[test]
    fn streams_that_end_and_resume_and_begin_with_a_snapshot() {
        holds("reconnecting", at_once(reconnecting()));
    }

    #[test]
    fn leaving_and_joining_again() {
        holds("leaving", leaving());
        holds("removal", at_once(removal()));
    }

    #[test]
    fn a_database_that_is_set_back() {
        holds("set back", at_once(set_back()));
    }

    #[test]
    fn sqlite_and_a_process_that_starts_again() {
        holds("SQLite", Watching { by_wait: true, ..sqlite() });
        holds("SQLite, started again", restarting());
    }
}

/// Models with wider bounds, which take minutes.
mod larger_worlds {
    use super::*;

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn two_revocations() {
        holds("two revocations, by either way", Watching { revocations: 2, ..one() });
        let other = Watching { revocations: 2, ..Watching::default() };
        holds("two revocations, another replica", by_reports(other));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn reconnecting_to_either_replica() {
        holds("reconnecting, renewals in steps", reconnecting());
        holds("reconnecting, short logs", Watching { trims: true, ..reconnecting() });
        let either = Watching { reconnects: 1, ..by_reports(Watching::default()) };
        holds("reconnecting to either replica", at_once(either.clone()));
        holds("reconnecting to either replica, renewals in steps", either);
        let twice = Watching { reconnects: 2, ..by_reports(one()) };
        holds("reconnecting twice", at_once(twice));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn removal_and_joining_again() {
        holds("removal, renewals in steps", removal());
        holds("removal, by either way", Watching { removals: 1, ..Watching::default() });
        holds("removal, two revocations", at_once(Watching { revocations: 2, ..removal() }));
        let crash = Watching { restarts: 1, reconnects: 1, ..removal() };
        holds("a crash, a removal, reconnecting", at_once(crash));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn leaving_and_reconnecting() {
        holds("leaving, reconnecting", at_once(Watching { reconnects: 1, ..leaving() }));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn a_database_that_is_set_back() {
        holds("set back, renewals in steps", set_back());
        holds("set back, connecting later", connecting_after_a_set_back());
        holds("set back, reconnecting", at_once(Watching { reconnects: 1, ..set_back() }));
        holds("set back, by either way", Watching { by_wait: true, ..set_back() });
        let two = Watching { replicas: 2, watched: 1, ..set_back() };
        holds("set back, another replica", at_once(two));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn sqlite() {
        let reconnecting = Watching { reconnects: 1, ..restarting() };
        holds("SQLite, started again, reconnecting", reconnecting.clone());
        let wait = Watching { by_wait: true, ..reconnecting };
        holds("SQLite, started again, reconnecting, by either way", at_once(wait));
    }
}

mod each_rule_is_needed {
    use super::*;

    #[test]
    fn the_replica_gives_leases_by_rules_1_to_3() {
        without(Broken::LeaseBeforePublished, Watching::default());
        without(Broken::LeaseReadAfterEntries, Watching::default());
        without(Broken::LeaseSentBeforeEntries, by_reports(one()));
        without(Broken::OutlivesReplica, one());
        without(Broken::EarlierLeaseForgotten, by_reports(one()));
    }

    #[test]
    fn the_replica_vouches_by_rules_4_and_5() {
        without(Broken::OnlyLastLeaseCounts, by_reports(one()));
        without(Broken::LastPositionSafeAtOnce, by_reports(one()));
        without(Broken::ReportsWithoutAsking, by_reports(one()));
        without(Broken::OwnWatchersSkipped, by_reports(one()));
        without(Broken::LeaseBehindVouched, by_reports(one()));
        without(Broken::SentBeforeRecorded, by_reports(one()));
        without(Broken::LeaseGivenWhileLeaving, leaving());
        without(Broken::LeaseOfEarlierMembership, at_once(set_back()));
    }

    #[test]
    fn leases_are_waited_for_by_rule_6() {
        without(Broken::EndedStreamForgotten, at_once(reconnecting()));
        without(Broken::RowDeletedWhileLeasesRun, leaving());
    }

    #[test]
    fn sqlite_needs_its_rules() {
        without(Broken::RestartForgetsLeases, restarting());
        without(Broken::WaitOnSqlite, Watching { by_wait: true, ..sqlite() });
    }

    #[test]
    fn a_reset_needs_each_part_of_rule_7() {
        without(Broken::NoResetAfterJoining, at_once(set_back()));
        without(Broken::ResetKeepsConfirmation, at_once(set_back()));
        without(Broken::ConfirmationOfAnotherMembership, at_once(set_back()));
    }

    #[test]
    fn a_stream_begins_by_rule_8() {
        without(Broken::CursorOfAnotherMembership, at_once(connecting_after_a_set_back()));
        let short_log = Watching { trims: true, ..reconnecting() };
        without(Broken::ResumesAcrossGap, at_once(short_log));
        without(Broken::SnapshotBeforePosition, at_once(reconnecting()));
        let connecting = Watching { is_connected: false, ..reconnecting() };
        without(Broken::PublishedBeforeIndex, connecting);
    }

    #[test]
    fn the_watcher_needs_each_of_its_rules() {
        without(Broken::LeaseTakenBeforeEntries, by_reports(one()));
        without(Broken::EarlierStreamHandled, at_once(reconnecting()));
        without(Broken::LeaseLoadedAfterLookUp, by_reports(one()));
        without(Broken::LeaseCheckedBeforeLookUp, at_once(reconnecting()));
        without(Broken::ResetUnnoticed, at_once(reconnecting()));
        without(Broken::DroppedBeforeLeaseEnds, at_once(reconnecting()));
        without(Broken::AnswersWithoutLease, by_reports(one()));
    }
}

/// These parts of the rules serve other ends than the promise, which holds without them.
mod not_needed_for_the_promise {
    use super::*;

    fn holds_without(rule: Broken, world: Watching) {
        holds(&format!("{rule:?}"), Watching { broken: Some(rule), ..world });
    }

    /// Without rule 3, a watcher that confirms nothing delays revocations for as long as it asks.
    #[test]
    fn a_lease_ahead_of_a_confirmation() {
        holds_without(Broken::NextLeaseUnconfirmed, by_reports(one()));
    }

    /// A replica joins again only after W, or counts the register as incomplete for W.
    #[test]
    fn the_leases_of_the_membership_before() {
        holds_without(Broken::ResetForgetsLeases, at_once(removal()));
        holds_without(Broken::ResetForgetsLeases, at_once(set_back()));
        holds_without(Broken::ResetKeepsLastPosition, at_once(set_back()));
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release --test model -- --ignored"]
    fn each_of_them_in_a_larger_world() {
        holds_without(Broken::NextLeaseUnconfirmed, Watching { revocations: 2, ..one() });
        holds_without(Broken::NextLeaseUnconfirmed, Watching::default());
        let two = || at_once(Watching { replicas: 2, watched: 1, ..set_back() });
        for rule in [Broken::ResetForgetsLeases, Broken::ResetKeepsLastPosition] {
            holds_without(rule, removal());
            holds_without(rule, set_back());
            holds_without(rule, two());
        }
    }
}
