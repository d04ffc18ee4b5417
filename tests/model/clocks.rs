//! A model with numbers that checks the only assumption of [`super::protocol`] about time: a lease
//! that was requested before a wait began has ended when the wait ends. The model has two machines.
//! Each has its own clock, which runs up to a tenth too fast or too slow.

use stateright::{Model, Property};

/// The time by which an exact clock advances in one instant. A clock that drifts by a tenth
/// advances by one more or one less.
pub const INSTANT: i16 = 10;
/// The duration of a lease.
pub const LEASE: i16 = 90;
/// The part of the wait that covers the drift of both clocks.
pub const DRIFT: i16 = LEASE * 2 / 10;
/// The part of the wait that covers two things. One is the square of the drift: 2 here, and four
/// millionths of a second with a drift of a thousandth. The other is one instant in which a machine
/// and its clock stand still.
pub const MARGIN: i16 = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    WaitIsOneLease,
    WaitWithoutMargin,
    DeadlineFromReply,
    /// The clock is `CLOCK_MONOTONIC` instead of `CLOCK_BOOTTIME`.
    ClockStopsInSuspend,
}

pub struct Clocks {
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The time that is left of the lease, by the clock of its replica.
    lease: i16,
    has_reply: bool,
    /// The time that is left of the wait, by the clock of the replica that waits. `None` before the
    /// wait begins.
    wait: Option<i16>,
    stood_still: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Pass { at_replica: i16, at_waiter: i16 },
    StandStill { at_waiter: i16 },
    Reply,
    BeginWait,
}

impl Model for Clocks {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // The renewal is being sent. It reads the database before the revocation commits, and so
        // before the wait begins.
        vec![State { lease: LEASE, has_reply: false, wait: None, stood_still: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at_waiter in [INSTANT - 1, INSTANT + 1] {
            for at_replica in [INSTANT - 1, INSTANT + 1] {
                actions.push(Action::Pass { at_replica, at_waiter });
            }
            if !state.stood_still || self.broken == Some(Broken::ClockStopsInSuspend) {
                actions.push(Action::StandStill { at_waiter });
            }
        }
        if !state.has_reply {
            actions.push(Action::Reply);
        }
        if state.wait.is_none() {
            actions.push(Action::BeginWait);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::Pass { at_replica, at_waiter } => {
                next.lease = (state.lease - at_replica).max(0);
                next.wait = state.wait.map(|wait| (wait - at_waiter).max(0));
            }
            Action::StandStill { at_waiter } => {
                next.stood_still = true;
                next.wait = state.wait.map(|wait| (wait - at_waiter).max(0));
            }
            Action::Reply => {
                next.has_reply = true;
                if self.broken == Some(Broken::DeadlineFromReply) {
                    next.lease = LEASE;
                }
            }
            Action::BeginWait => {
                next.wait = Some(match self.broken {
                    Some(Broken::WaitIsOneLease) => LEASE,
                    Some(Broken::WaitWithoutMargin) => LEASE + DRIFT,
                    _ => LEASE + DRIFT + MARGIN,
                });
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no lease outlives a wait that began later", |_, state: &State| {
                !(state.wait == Some(0) && state.has_reply && state.lease > 0)
            }),
            Property::sometimes("a wait ends", |_, state: &State| state.wait == Some(0)),
            Property::sometimes("a lease is in force while a wait runs", |_, state: &State| {
                state.wait.is_some_and(|wait| wait > 0) && state.has_reply && state.lease > 0
            }),
        ]
    }
}
