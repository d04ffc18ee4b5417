//! A model of watchers, which verify tokens locally under watch leases (decision 34).
//!
//! Replica 0 revokes, and acknowledges by the reports of all members or by W. There is one watcher,
//! connected to one of the replicas, and the streams that it had before. As in [`super::protocol`],
//! time is a relation. A watch lease ends for one of two reasons: a wait has outlasted the
//! replica's lease from which the watch lease was made, or the replica that gave it has counted its
//! time. [`super::lengths`] checks with numbers that both are safe. Otherwise processes pause
//! anywhere, and messages take any time.

mod replica;
mod state;
mod stream;
mod tests;
mod watcher;

use state::{
    Database, FRESH, Incarnation, KEYS, PendingRevoke, Process, QUEUE, REMOVAL, REPLICAS, Renewal,
    Replica, Revoke, SETTLING, STREAMS, State, Watcher,
};
use stateright::{Model, Property};

/// A rule that is broken. Each variant describes how the broken protocol behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A replica takes its lease before it publishes the entries that came with it.
    LeaseBeforePublished,
    /// Entries are published before the index has them.
    PublishedBeforeIndex,
    /// A replica reads its own lease only after it has sent the entries.
    LeaseReadAfterEntries,
    /// The lease is sent before the entries up to its position.
    LeaseSentBeforeEntries,
    /// A watch lease may outlive the replica's lease.
    OutlivesReplica,
    /// The next lease is given although the watcher has not confirmed the position of the last one.
    NextLeaseUnconfirmed,
    /// Only the end of the last lease is kept.
    EarlierLeaseForgotten,
    /// Once its last lease is over, a watcher counts as safe, whatever leases were given before.
    OnlyLastLeaseCounts,
    /// A watcher counts as safe for the position of its last lease while earlier leases run.
    LastPositionSafeAtOnce,
    /// A replica reports what it has applied, whatever its watchers have.
    ReportsWithoutAsking,
    /// The replica that revokes asks the other members, and not its own watchers.
    OwnWatchersSkipped,
    /// A lease is recorded although a later position was vouched for.
    LeaseBehindVouched,
    /// A lease is sent before it is recorded.
    SentBeforeRecorded,
    /// The leases of a stream that has ended are forgotten.
    EndedStreamForgotten,
    /// A replica that leaves deletes its row while its watch leases run.
    RowDeletedWhileLeasesRun,
    /// A lease is recorded although the replica has begun to leave since it read its own lease.
    LeaseGivenWhileLeaving,
    /// A lease is recorded although the replica has lost the membership in which it read its own.
    LeaseOfEarlierMembership,
    /// A process that starts on SQLite does not wait for the watch leases of the process before.
    RestartForgetsLeases,
    /// On SQLite, W alone acknowledges, although a watch lease may be longer.
    WaitOnSqlite,
    /// A replica that has joined again goes on with its streams.
    NoResetAfterJoining,
    /// What was confirmed before a reset counts after it.
    ResetKeepsConfirmation,
    /// A confirmation counts although its cursor names another membership.
    ConfirmationOfAnotherMembership,
    /// After a reset, the position of the last lease still counts as the position of a lease.
    ResetKeepsLastPosition,
    /// After a reset, the leases that were given before it do not count.
    ResetForgetsLeases,
    /// A stream resumes from a cursor of another membership.
    CursorOfAnotherMembership,
    /// A stream resumes although the log lacks entries after the cursor.
    ResumesAcrossGap,
    /// The position of a snapshot is read after its entries.
    SnapshotBeforePosition,
    /// The watcher takes a lease before it has applied the entries that came before it.
    LeaseTakenBeforeEntries,
    /// The watcher takes a lease that arrives on a stream that it has replaced.
    EarlierStreamHandled,
    /// The lease is loaded after the look-up.
    LeaseLoadedAfterLookUp,
    /// The lease is checked before the look-up only.
    LeaseCheckedBeforeLookUp,
    /// The check does not notice that a reset has ended the lease since it was loaded.
    ResetUnnoticed,
    /// A reset drops the entries before it ends the lease.
    DroppedBeforeLeaseEnds,
    /// The watcher answers without a lease.
    AnswersWithoutLease,
}

/// The moments at which other steps may come between those of a renewal. [`super::protocol`]
/// has them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewals {
    /// While the renewal and its answer are on their way, and between the steps of the receipt.
    InSteps,
    /// While the answer is on its way, and between the steps of the receipt.
    ExecutedAtOnce,
    /// Never.
    AtOnce,
}

/// The model: the protocol, the bounds within which it is explored, and possibly a broken rule.
#[derive(Clone, Debug)]
pub struct Watching {
    pub revocations: usize,
    /// The number of members. Replica 0 revokes.
    pub replicas: usize,
    /// The replica to which the watcher is connected at the beginning, or was connected before.
    pub watched: u8,
    pub is_connected: bool,
    /// The largest number of times that the watcher connects again, to either replica.
    pub reconnects: u8,
    /// True if logs may lose their first entries.
    pub trims: bool,
    /// The largest number of times that replica 1 is removed. It then joins again.
    pub removals: u8,
    /// The largest number of processes that end without notice. They start again.
    pub restarts: u8,
    /// True if replica 1 may leave.
    pub leaves: bool,
    /// True if the database is set back once, to before the first revocation, which has been
    /// acknowledged and applied everywhere at the beginning.
    pub sets_back: bool,
    pub is_sqlite: bool,
    /// True if revocations are acknowledged by the reports of the members.
    pub by_members: bool,
    /// True if revocations are acknowledged by W.
    pub by_wait: bool,
    pub renewals: Renewals,
    pub broken: Option<Broken>,
}

impl Default for Watching {
    fn default() -> Self {
        Self {
            revocations: 1,
            replicas: REPLICAS,
            watched: 1,
            is_connected: true,
            reconnects: 0,
            trims: false,
            removals: 0,
            restarts: 0,
            leaves: false,
            sets_back: false,
            is_sqlite: false,
            by_members: true,
            by_wait: true,
            renewals: Renewals::InSteps,
            broken: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // Replicas and the database.
    Write {
        key: usize,
    },
    WaitIsOver {
        key: usize,
    },
    Send {
        at: usize,
    },
    Execute {
        at: usize,
    },
    Receive {
        at: usize,
    },
    Trim {
        at: usize,
    },
    Join {
        at: usize,
    },
    Suspect,
    Remove,
    Leave,
    DeleteRow,
    Crash {
        at: usize,
    },
    Start {
        at: usize,
    },
    UnknownLeasesAreOver,
    SetBack,
    Settle,
    // The replica's end of a stream.
    Answer {
        stream: usize,
    },
    SendEntries {
        stream: usize,
    },
    Record {
        stream: usize,
    },
    Reset {
        stream: usize,
    },
    ReadPage {
        stream: usize,
    },
    NoticeEnd {
        stream: usize,
    },
    LastIsOver {
        stream: usize,
    },
    EarlierAreOver {
        stream: usize,
    },
    // The watcher.
    Ask,
    Handle,
    /// A lease is handled before the messages that came before it. A broken rule.
    HandleLease,
    /// A message of a replaced stream is handled. A broken rule.
    HandleReplaced {
        stream: usize,
    },
    /// The stream resumes if it can, or it begins with a snapshot in any case.
    Reconnect {
        to: u8,
        resumes: bool,
    },
    Begin {
        key: usize,
    },
    LookUp,
    Check,
}

/// Returns `None` if a step is not possible.
fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

impl Watching {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// Returns whether nothing can go wrong any more, so that the steps that follow do not matter:
    /// all revocations are acknowledged, the watcher has them, and nothing makes it drop them.
    fn is_over(&self, state: &State) -> bool {
        let may_be_reset = self.removals > 0 || self.restarts > 0 || self.sets_back;
        let is_current = state
            .watcher
            .stream
            .and_then(|stream| state.streams[usize::from(stream)])
            .is_some_and(|stream| stream.membership.is_some());
        !may_be_reset
            && is_current
            && !state.watcher.is_resetting
            && state.reconnects == self.reconnects
            && state.validation.is_none()
            && (0..self.revocations)
                .all(|key| state.is_acknowledged(key) && state.watcher.copy & (1 << key) != 0)
            && state.streams.iter().flatten().all(|stream| stream.queue == [None; QUEUE])
    }

    fn incarnation(&self, state: &State, at: usize) -> Incarnation {
        Incarnation { at: at as u8, membership: state.replicas[at].membership }
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Write { key } => self.write(state, key),
            Action::WaitIsOver { key } => self.wait_is_over(state, key),
            Action::Send { at } => self.send(state, at),
            Action::Execute { at } => self.execute(state, at),
            Action::Receive { at } => self.receive(state, at),
            Action::Trim { at } => self.trim(state, at),
            Action::Join { at } => self.join(state, at),
            Action::Suspect => self.suspect(state),
            Action::Remove => self.remove(state),
            Action::Leave => self.leave(state),
            Action::DeleteRow => self.delete_row(state),
            Action::Crash { at } => self.crash(state, at),
            Action::Start { at } => self.start(state, at),
            Action::UnknownLeasesAreOver => self.unknown_leases_are_over(state),
            Action::SetBack => self.set_back(state),
            Action::Settle => self.settle(state),
            Action::Answer { stream } => self.answer(state, stream),
            Action::SendEntries { stream } => self.send_entries(state, stream),
            Action::Record { stream } => self.record(state, stream),
            Action::Reset { stream } => self.reset(state, stream),
            Action::ReadPage { stream } => self.read_page(state, stream),
            Action::NoticeEnd { stream } => self.notice_end(state, stream),
            Action::LastIsOver { stream } => self.last_is_over(state, stream),
            Action::EarlierAreOver { stream } => self.earlier_are_over(state, stream),
            Action::Ask => self.ask(state),
            Action::Handle => self.handle(state),
            Action::HandleLease => self.handle_lease(state),
            Action::HandleReplaced { stream } => self.handle_replaced(state, stream),
            Action::Reconnect { to, resumes } => self.reconnect(state, to, resumes),
            Action::Begin { key } => self.begin(state, key),
            Action::LookUp => self.look_up(state),
            Action::Check => self.check(state),
        }
    }
}

impl Model for Watching {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let member = Replica {
            process: Process::Member,
            membership: 0,
            index: 0,
            log: [0; KEYS],
            log_begin: 0,
            published: Some(0),
            lease: FRESH,
            renewal: Renewal::Idle,
            vouched: 0,
            doubts_register: false,
            has_unknown_leases: false,
        };
        let down = Replica { process: Process::Down, lease: None, ..member };
        let mut state = State {
            replicas: [member, if self.replicas > 1 { member } else { down }],
            database: Database {
                head: 0,
                positions: [0; KEYS],
                rows: [Some(0), (self.replicas > 1).then_some(0)],
                history: 0,
            },
            revokes: [Revoke::NotCalled; KEYS],
            streams: [None; STREAMS],
            watcher: Watcher {
                stream: None,
                copy: 0,
                cursor: None,
                lease: None,
                is_resetting: false,
            },
            validation: None,
            is_suspected: false,
            is_settling: false,
            removals: 0,
            restarts: 0,
            reconnects: 0,
            is_violated: false,
        };
        if self.sets_back {
            self.begin_with_a_revocation(&mut state);
        }
        let at = usize::from(self.watched);
        let position = state.database.head;
        state.watcher.cursor = Some(state::Cursor { of: self.incarnation(&state, at), position });
        if self.is_connected {
            state.watcher.stream = Some(0);
            state.streams[0] = Some(self.resumed(&state, at, position));
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for key in 0..self.revocations {
            actions.extend([Action::Write { key }, Action::WaitIsOver { key }]);
            actions.push(Action::Begin { key });
        }
        for at in 0..self.replicas {
            actions.extend([Action::Send { at }, Action::Execute { at }, Action::Receive { at }]);
            actions.push(Action::Join { at });
            if self.trims {
                actions.push(Action::Trim { at });
            }
            if self.restarts > 0 {
                actions.extend([Action::Crash { at }, Action::Start { at }]);
            }
            if state.reconnects < self.reconnects {
                let to = at as u8;
                actions.extend([true, false].map(|resumes| Action::Reconnect { to, resumes }));
            }
        }
        if self.removals > 0 {
            actions.extend([Action::Suspect, Action::Remove]);
        }
        if self.leaves {
            actions.extend([Action::Leave, Action::DeleteRow]);
        }
        if self.restarts > 0 {
            actions.push(Action::UnknownLeasesAreOver);
        }
        if self.sets_back {
            actions.extend([Action::SetBack, Action::Settle]);
        }
        for stream in (0..STREAMS).filter(|&stream| state.streams[stream].is_some()) {
            actions.extend([Action::Answer { stream }, Action::SendEntries { stream }]);
            actions.extend([Action::Record { stream }, Action::Reset { stream }]);
            actions.extend([Action::ReadPage { stream }, Action::NoticeEnd { stream }]);
            actions.extend([Action::LastIsOver { stream }, Action::EarlierAreOver { stream }]);
            if self.breaks(Broken::EarlierStreamHandled) {
                actions.push(Action::HandleReplaced { stream });
            }
        }
        actions.extend([Action::Ask, Action::Handle]);
        if self.breaks(Broken::LeaseTakenBeforeEntries) {
            actions.push(Action::HandleLease);
        }
        if let Some(validation) = state.validation {
            actions.push(if validation.found_nothing { Action::Check } else { Action::LookUp });
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        // The property is violated, so the steps that follow do not matter.
        when(!state.is_violated && !self.is_over(state))?;
        let mut next = *state;
        self.step(&mut next, action)?;
        if !self.answers_anyway() {
            // Without its lease, a validation gives no answer.
            next.validation = next.validation.filter(|it| it.lease.is_some());
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no active after an acknowledged revocation", |_, state: &State| {
                !state.is_violated
            }),
            Property::sometimes(
                "a watcher holds a lease and the revocation that is acknowledged",
                |model: &Self, state: &State| {
                    let key = model.revocations - 1;
                    state.is_acknowledged(key)
                        && state.watcher.copy & (1 << key) != 0
                        && state.watcher.lease.is_some()
                },
            ),
            Property::sometimes(
                "a revocation is acknowledged once the lease of a silent watcher is over",
                |model: &Self, state: &State| {
                    let key = model.revocations - 1;
                    state.is_acknowledged(key)
                        && state.watcher.copy & (1 << key) == 0
                        && state.streams.iter().flatten().any(|stream| {
                            stream.last.is_some()
                                && !stream.has_running_leases()
                                && stream.queue == [None; QUEUE]
                        })
                },
            ),
            Property::sometimes(
                "a watcher answers active while a revocation waits for it",
                |model: &Self, state: &State| {
                    let key = model.revocations - 1;
                    matches!(state.revokes[key], Revoke::Waiting(_))
                        && state.watcher.copy & (1 << key) == 0
                        && state.watcher.lease.is_some()
                },
            ),
        ];
        properties.extend(self.further_properties());
        properties
    }
}

impl Watching {
    /// Returns the properties of the worlds in which more happens.
    fn further_properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![];
        if self.reconnects > 0 && self.is_connected {
            properties.push(Property::sometimes(
                "a stream resumes while a lease of the one before is in force",
                |_, state: &State| {
                    state.watcher.lease.is_some_and(|lease| {
                        !state.is_connected(usize::from(lease.stream))
                            && state.watcher.cursor.is_some_and(|cursor| cursor.position > 0)
                    })
                },
            ));
        }
        if self.reconnects > 0 && self.replicas > 1 {
            properties.push(Property::sometimes(
                "a watcher has a lease of another replica than at first",
                |model: &Self, state: &State| {
                    state.watcher.lease.is_some_and(|lease| lease.at != model.watched)
                },
            ));
        }
        if self.removals > 0 || self.sets_back {
            properties.push(Property::sometimes(
                "a watcher has a lease of a replica that has joined again",
                |_, state: &State| {
                    let of = state.watcher.cursor.map(|cursor| cursor.of);
                    state.watcher.lease.is_some() && of.is_some_and(|of| of.membership > 0)
                },
            ));
        }
        if self.leaves {
            properties.push(Property::sometimes(
                "a replica has left, and the others acknowledge",
                |_, state: &State| {
                    state.is_acknowledged(0) && state.replicas[1].process == Process::Down
                },
            ));
        }
        if self.restarts > 0 {
            properties.push(Property::sometimes(
                "a process that has started again acknowledges",
                |_, state: &State| {
                    state.is_acknowledged(0)
                        && state.replicas.iter().any(|replica| replica.membership > 0)
                },
            ));
        }
        properties
    }
}
