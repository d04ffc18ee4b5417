//! A model of a watcher that drops an entry, because the revoked token has expired (rule 13 of
//! decision 34). The token must not become active again, although the wall clock of the watcher may
//! be wrong, and may be set back. [`super::purging`] has the same for a replica.

use stateright::{Model, Property};

/// The time at which the token expires.
const EXPIRY: u8 = 2;
/// The time at which clocks stop, which bounds the model.
const END: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The watermark of a lease is read before the snapshot that comes before the lease.
    WatermarkReadBeforePage,
    /// The watcher drops an entry by its own clock.
    DropsByOwnClock,
    /// The watcher drops an entry before it raises its watermark.
    DropsBeforeItRaises,
    /// The time of the token is judged before the look-up.
    JudgedBeforeLookUp,
    /// The time of the token is judged by the watermark of the lease that was loaded before the
    /// look-up.
    JudgedByLoadedLease,
}

#[derive(Clone, Copy, Debug)]
pub struct Forgetting {
    pub broken: Option<Broken>,
}

/// The state. A *watermark* is true if it covers the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    replica_clock: u8,
    watcher_clock: u8,
    replica_watermark: bool,
    is_in_index: bool,
    /// The watermark of a lease on its way.
    lease: Option<bool>,
    /// True between a reset and the reading of its snapshot.
    is_reading: bool,
    /// A snapshot on its way, and whether the entry is in it.
    page: Option<bool>,
    /// The watermark that was read before the snapshot. Used only if a rule is broken.
    read_before: bool,
    watermark: bool,
    is_in_copy: bool,
    has_lease: bool,
    /// A new watermark of which the watcher has done the first step.
    is_dropping: bool,
    /// A local validation between its steps, with the watermark that it has loaded.
    call: Option<(bool, Step)>,
    is_active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    HasLease,
    FoundNothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    ReplicaClock,
    WatcherClock,
    SetBack,
    RaiseAtReplica,
    DropAtReplica,
    Reset,
    ReadPage,
    HandlePage,
    SendLease,
    HandleLease,
    Drop,
    Load,
    LookUp,
    Check,
}

impl Forgetting {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    fn is_alive(&self, state: &State, loaded: bool) -> bool {
        let by_loaded = self.breaks(Broken::JudgedByLoadedLease);
        let watermark = if by_loaded { loaded } else { state.watermark };
        state.watcher_clock < EXPIRY && !watermark
    }

    /// Carries out a step of the replica, or returns `None` if it is not possible.
    fn replicate(&self, next: &mut State, action: Action) -> Option<()> {
        match action {
            Action::RaiseAtReplica => {
                (next.replica_clock >= EXPIRY).then_some(())?;
                next.replica_watermark = true;
            }
            Action::DropAtReplica => {
                next.replica_watermark.then_some(())?;
                next.is_in_index = false;
            }
            Action::Reset => {
                next.is_reading = true;
                next.page = None;
                next.read_before = next.replica_watermark;
                // The reset ends the lease, and with it a validation under way.
                next.lease = None;
                next.has_lease = false;
                next.call = None;
                next.is_in_copy = false;
                next.is_dropping = false;
            }
            Action::ReadPage => {
                next.is_reading.then_some(())?;
                next.is_reading = false;
                next.page = Some(next.is_in_index);
            }
            Action::SendLease => {
                (next.lease.is_none() && !next.is_reading).then_some(())?;
                let reads_early = self.breaks(Broken::WatermarkReadBeforePage);
                next.lease =
                    Some(if reads_early { next.read_before } else { next.replica_watermark });
            }
            _ => return None,
        }
        Some(())
    }

    /// Carries out a step of the watcher, or returns `None` if it is not possible.
    fn watch(&self, next: &mut State, action: Action) -> Option<()> {
        match action {
            Action::HandlePage => next.is_in_copy |= next.page.take()?,
            Action::HandleLease => {
                (next.page.is_none() && !next.is_dropping).then_some(())?;
                let watermark = next.lease.take()?;
                next.has_lease = true;
                next.is_dropping = watermark && !next.watermark;
                if !self.breaks(Broken::DropsBeforeItRaises) {
                    next.watermark |= watermark;
                } else if next.is_dropping {
                    next.is_in_copy = false;
                }
            }
            Action::Drop if self.breaks(Broken::DropsByOwnClock) => {
                (next.watcher_clock >= EXPIRY).then_some(())?;
                next.is_in_copy = false;
            }
            Action::Drop => {
                next.is_dropping.then_some(())?;
                next.is_dropping = false;
                next.watermark = true;
                next.is_in_copy = false;
            }
            Action::Load => {
                (next.has_lease && next.call.is_none()).then_some(())?;
                let judges = self.breaks(Broken::JudgedBeforeLookUp);
                (!judges || self.is_alive(next, next.watermark)).then_some(())?;
                next.call = Some((next.watermark, Step::HasLease));
            }
            Action::LookUp => {
                let (loaded, step) = next.call?;
                (step == Step::HasLease).then_some(())?;
                next.call = (!next.is_in_copy).then_some((loaded, Step::FoundNothing));
            }
            Action::Check => {
                let (loaded, step) = next.call.take()?;
                (step == Step::FoundNothing).then_some(())?;
                next.is_active =
                    self.breaks(Broken::JudgedBeforeLookUp) || self.is_alive(next, loaded);
            }
            _ => return None,
        }
        Some(())
    }
}

impl Model for Forgetting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            replica_clock: 0,
            watcher_clock: 0,
            replica_watermark: false,
            is_in_index: true,
            lease: None,
            is_reading: false,
            page: None,
            read_before: false,
            watermark: false,
            is_in_copy: true,
            has_lease: true,
            is_dropping: false,
            call: None,
            is_active: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::ReplicaClock, Action::WatcherClock, Action::SetBack]);
        actions.extend([Action::RaiseAtReplica, Action::DropAtReplica, Action::Reset]);
        actions.extend([Action::ReadPage, Action::SendLease]);
        actions.extend([Action::HandlePage, Action::HandleLease]);
        actions.extend([Action::Drop, Action::Load, Action::LookUp, Action::Check]);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        (!state.is_active).then_some(())?;
        let mut next = *state;
        match action {
            Action::ReplicaClock => next.replica_clock = (state.replica_clock + 1).min(END),
            Action::WatcherClock => next.watcher_clock = (state.watcher_clock + 1).min(END),
            Action::SetBack => next.watcher_clock = state.watcher_clock.saturating_sub(1),
            Action::RaiseAtReplica
            | Action::DropAtReplica
            | Action::Reset
            | Action::ReadPage
            | Action::SendLease => self.replicate(&mut next, action)?,
            _ => self.watch(&mut next, action)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no revoked token comes back", |_, state: &State| !state.is_active),
            Property::sometimes("the entry is dropped everywhere", |_, state: &State| {
                !state.is_in_index && !state.is_in_copy && state.has_lease
            }),
            Property::sometimes("a clock is behind while the entry is gone", |_, state: &State| {
                !state.is_in_copy && state.has_lease && state.watcher_clock < EXPIRY
            }),
        ]
    }
}
