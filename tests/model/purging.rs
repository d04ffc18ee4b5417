//! A model of the sweeper, which deletes an entry of the blacklist. The revoked token must not
//! become active again, although the wall clocks of the sweeper and of the replica differ, and the
//! replica's clock may be set back.

use stateright::{Model, Property};

/// The time at which the token expires.
const EXPIRY: u8 = 2;
/// The time at which clocks stop, which bounds the model.
const END: u8 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A replica that joins reads the purge watermark before it reads the entries.
    RecordReadBeforeEntries,
    /// Validate checks the time before it looks up the index.
    JudgedBeforeLookUp,
    /// A replica deletes an entry from its index by its own clock, and not by the purge watermark.
    PurgesByOwnClock,
}

/// The rule that keeps a token inactive after its entry was swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// In the transaction that deletes entries, the sweeper records the latest expiry among them:
    /// the purge watermark. A renewal reads the watermark together with the entries. A token that
    /// expires no later than the watermark counts as expired.
    Record,
    /// Entries are kept for longer than the clocks may differ.
    Retention,
}

pub struct Purging {
    pub guard: Guard,
    /// The time for which an entry is kept after its token has expired.
    pub kept: u8,
    /// The largest difference between the clocks. `None` means that there is no limit, and that the
    /// replica's clock may be set back.
    pub skew: Option<u8>,
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    sweeper_clock: u8,
    replica_clock: u8,
    swept: bool,
    is_in_index: bool,
    /// True if the replica knows by the purge watermark that the entry may have been swept.
    knows: bool,
    has_lease: bool,
    /// True if a call to Validate is between its two steps.
    call: bool,
    active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    SweeperClock,
    ReplicaClock,
    SetBack,
    Sweep,
    Restart,
    ReadRecord,
    Load,
    Renew,
    Purge,
    FirstStep,
    SecondStep,
}

impl Purging {
    /// Returns whether the replica considers the token unexpired.
    fn is_alive(&self, state: &State) -> bool {
        state.replica_clock < EXPIRY && !(self.guard == Guard::Record && state.knows)
    }

    fn is_within_skew(&self, state: &State) -> bool {
        self.skew.is_none_or(|skew| state.sweeper_clock.abs_diff(state.replica_clock) <= skew)
    }
}

impl Model for Purging {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            sweeper_clock: 0,
            replica_clock: 0,
            swept: false,
            is_in_index: true,
            knows: false,
            has_lease: true,
            call: false,
            active: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend([
            Action::SweeperClock,
            Action::ReplicaClock,
            Action::SetBack,
            Action::Sweep,
            Action::Restart,
            Action::ReadRecord,
            Action::Load,
            Action::Renew,
            Action::Purge,
            Action::FirstStep,
            Action::SecondStep,
        ]);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        let can = match action {
            Action::SweeperClock => {
                next.sweeper_clock += 1;
                next.sweeper_clock <= END && self.is_within_skew(&next)
            }
            Action::ReplicaClock => {
                next.replica_clock += 1;
                next.replica_clock <= END && self.is_within_skew(&next)
            }
            Action::SetBack => {
                next.replica_clock = state.replica_clock.saturating_sub(1);
                self.skew.is_none()
            }
            Action::Sweep => {
                next.swept = true;
                state.sweeper_clock >= EXPIRY + self.kept
            }
            Action::Restart => {
                next = State {
                    is_in_index: false,
                    knows: false,
                    has_lease: false,
                    call: false,
                    ..*state
                };
                true
            }
            Action::ReadRecord => {
                next.knows |= state.swept;
                self.broken == Some(Broken::RecordReadBeforeEntries) && !state.has_lease
            }
            Action::Load => {
                next.is_in_index = !state.swept;
                next.has_lease = true;
                if self.broken != Some(Broken::RecordReadBeforeEntries) {
                    next.knows = state.swept;
                }
                !state.has_lease
            }
            Action::Renew => {
                next.knows |= state.swept;
                state.has_lease
            }
            Action::Purge => {
                next.is_in_index = false;
                if self.guard == Guard::Retention || self.broken == Some(Broken::PurgesByOwnClock) {
                    state.replica_clock >= EXPIRY + self.kept
                } else {
                    state.knows
                }
            }
            Action::FirstStep => {
                next.call = true;
                let goes_on = if self.broken == Some(Broken::JudgedBeforeLookUp) {
                    self.is_alive(state)
                } else {
                    !state.is_in_index
                };
                // Validate reads the lease before the look-up.
                state.has_lease && goes_on
            }
            Action::SecondStep => {
                next.call = false;
                let passes = if self.broken == Some(Broken::JudgedBeforeLookUp) {
                    !state.is_in_index
                } else {
                    self.is_alive(state)
                };
                next.active = passes && state.has_lease;
                state.call
            }
        };
        (can && !state.active).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no revoked token comes back", |_, state: &State| !state.active),
            Property::sometimes("the entry is purged everywhere", |_, state: &State| {
                state.swept && !state.is_in_index && state.has_lease
            }),
            Property::sometimes("a clock is behind while the entry is gone", |_, state: &State| {
                state.swept && state.replica_clock < state.sweeper_clock
            }),
        ]
    }
}
