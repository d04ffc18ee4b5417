//! A model with numbers that checks what [`super::watching`] assumes about the end of a watch lease:
//! it has ended when a wait is over that began after the replica's lease was asked for, and when the
//! replica that gave it has counted its time. There are three machines: the watcher, its replica,
//! and another replica, which waits for W. Each has its own clock, which runs up to a tenth too fast
//! or too slow; that of the replica that waits is always too fast, because that is the worst case.
//! The clocks of the watcher and of its replica may stand still for one instant.

use stateright::{Model, Property};

use super::clocks::{DRIFT, INSTANT, LEASE};

/// The margin. Here it is the smallest with which the model holds.
const MARGIN: i16 = 13;
/// The longest watch lease, by the configuration.
const WATCH_LEASE: i16 = 70;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A watch lease is as long as the configuration says, whatever is left of the replica's lease.
    ReplicaLeaseIgnored,
    /// A watch lease is as long as what is left of the replica's lease, less the drift.
    ValidityWithoutMargin,
    /// A watch lease is as long as what is left of the replica's lease, less the margin.
    ValidityWithoutDrift,
    /// The replica reads its own lease before the renewal arrives.
    LeaseReadEarly,
    /// The replica counts the watch lease without the drift.
    CountWithoutDrift,
    /// The replica counts the watch lease without the margin.
    CountWithoutMargin,
    /// The watcher reads its clocks when the lease arrives.
    TimeTakenOnArrival,
    /// The watcher compares no wall clock, so it does not notice that its clock stands still.
    WatcherReadsOneClock,
    /// The replica compares no wall clock when it reads what is left of its lease.
    ReplicaReadsOneClock,
}

/// The end of a watch lease that the model compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end of W, on PostgreSQL.
    Wait,
    /// The end that the replica counts. The replica's lease never ends, as on SQLite.
    Count,
}

pub struct Lengths {
    pub end: End,
    pub broken: Option<Broken>,
}

/// A renewal of the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewal {
    NotSent,
    Sent,
    /// A lease with this validity is on its way.
    Answered(i16),
    Received,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The time that is left of the replica's lease, by its clock; with [`End::Count`] the longest
    /// watch lease. Zero once it makes no difference.
    lease: i16,
    /// What was left when the replica read it early. This occurs only if a rule is broken.
    read_early: Option<i16>,
    renewal: Renewal,
    /// By the watcher's clock, the time since it read its clocks. Once it has the watch lease, the
    /// time that is left of it.
    watch: i16,
    /// The time that is left until the end that is compared. `None` before it is counted.
    left: Option<i16>,
    has_replica_stood_still: bool,
    has_watcher_stood_still: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Pass { at_watcher: i16, at_replica: i16 },
    Ask,
    ReadEarly,
    Answer,
    Receive,
}

impl State {
    fn is_in_force(&self) -> bool {
        self.renewal == Renewal::Received && self.watch > 0
    }
}

impl Lengths {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// Returns the validity of a watch lease (rule 2).
    fn validity(&self, lease: i16) -> i16 {
        if self.breaks(Broken::ReplicaLeaseIgnored) {
            return WATCH_LEASE;
        }
        let lease = lease.min(WATCH_LEASE);
        let drift = (lease * 2 + 9) / 10;
        match self.broken {
            Some(Broken::ValidityWithoutMargin) => lease - drift,
            Some(Broken::ValidityWithoutDrift) => lease - MARGIN,
            _ if self.end == End::Count => lease,
            _ => lease - drift - MARGIN,
        }
    }

    /// Returns the time for which the replica counts a watch lease.
    fn count(&self, validity: i16) -> i16 {
        // Rounded up.
        let drift = (validity * 2 + 9) / 10;
        match self.broken {
            Some(Broken::CountWithoutDrift) => validity + MARGIN,
            Some(Broken::CountWithoutMargin) => validity + drift,
            _ => validity + drift + MARGIN,
        }
    }

    /// Lets an instant pass.
    fn pass(&self, state: &State, at_watcher: i16, at_replica: i16) -> Option<State> {
        let mut next = *state;
        if at_watcher == 0 {
            let may = !state.has_watcher_stood_still || self.breaks(Broken::WatcherReadsOneClock);
            (may && state.renewal != Renewal::NotSent).then_some(())?;
            next.has_watcher_stood_still = true;
        }
        if at_replica == 0 {
            let may = !state.has_replica_stood_still || self.breaks(Broken::ReplicaReadsOneClock);
            (may && state.lease > 0 && self.end == End::Wait).then_some(())?;
            next.has_replica_stood_still = true;
        }
        match self.end {
            End::Wait => {
                next.lease = (state.lease - at_replica).max(0);
                next.left = state.left.map(|left| (left - INSTANT - 1).max(0));
            }
            End::Count => next.left = state.left.map(|left| (left - at_replica).max(0)),
        }
        match state.renewal {
            Renewal::NotSent => {}
            Renewal::Sent | Renewal::Answered(_) => {
                next.watch = (state.watch + at_watcher).min(LEASE)
            }
            Renewal::Received => next.watch = (state.watch - at_watcher).max(0),
        }
        Some(next)
    }
}

impl Model for Lengths {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let state = State {
            lease: LEASE,
            read_early: None,
            renewal: Renewal::NotSent,
            watch: 0,
            left: None,
            has_replica_stood_still: false,
            has_watcher_stood_still: false,
        };
        match self.end {
            // The replica has just asked for its lease, which does not cover the revocation. The
            // wait begins at once, because a wait that begins later ends later.
            End::Wait => vec![State { left: Some(LEASE + DRIFT + MARGIN), ..state }],
            End::Count => [10, 37, 64, WATCH_LEASE].map(|lease| State { lease, ..state }).to_vec(),
        }
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for at_watcher in [0, INSTANT - 1, INSTANT + 1] {
            for at_replica in [0, INSTANT - 1, INSTANT + 1] {
                actions.push(Action::Pass { at_watcher, at_replica });
            }
        }
        actions.extend([Action::Ask, Action::ReadEarly, Action::Answer, Action::Receive]);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        if state.renewal == Renewal::Received && state.watch == 0 {
            // The watch lease has ended.
            return None;
        }
        let mut next = *state;
        match action {
            Action::Pass { at_watcher, at_replica } => {
                return self.pass(state, at_watcher, at_replica);
            }
            Action::Ask => {
                (state.renewal == Renewal::NotSent).then_some(())?;
                next.renewal = Renewal::Sent;
            }
            Action::ReadEarly => {
                let may = self.breaks(Broken::LeaseReadEarly) && state.read_early.is_none();
                (may && state.renewal == Renewal::NotSent).then_some(())?;
                next.read_early = Some(state.lease);
            }
            Action::Answer => {
                (state.renewal == Renewal::Sent && state.lease > 0).then_some(())?;
                let validity = self.validity(state.read_early.unwrap_or(state.lease));
                (validity > 0).then_some(())?;
                next.renewal = Renewal::Answered(validity);
                next.lease = 0;
                if self.end == End::Count {
                    next.left = Some(self.count(validity));
                }
            }
            Action::Receive => {
                let Renewal::Answered(validity) = state.renewal else { return None };
                let since = if self.breaks(Broken::TimeTakenOnArrival) { 0 } else { state.watch };
                next.renewal = Renewal::Received;
                next.watch = (validity - since).max(0);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no watch lease outlives the end", |_, state: &State| {
                !(state.left == Some(0) && state.is_in_force())
            }),
            Property::sometimes("a watch lease is in force", |_, state: &State| {
                state.left.is_some_and(|left| left > 0) && state.is_in_force()
            }),
            Property::sometimes("a watch lease ends", |_, state: &State| {
                state.renewal == Renewal::Received && state.watch == 0
            }),
        ]
    }
}
