//! The protocol by which an acknowledged revocation holds on every replica, as a state machine for
//! the model checker.
//!
//! Time is a relation here, not a number. The protocol may only assume that *a lease that was
//! requested before a wait began has ended when the wait ends* ([`super::clocks`] checks that with
//! numbers). A lease therefore lists the running waits that began after its request, and the end of
//! a wait ends all leases that list it. Otherwise leases and waits may end, processes may pause,
//! and messages may arrive at any moment. A process that makes no step is paused; a message that
//! has not been received is delayed.

use stateright::{Model, Property};

pub const REPLICAS: usize = 3;
const KEYS: usize = 2;
const ALL: u8 = 0b111;

/// A set of running waits, with one bit for each: the waits of revocations 0 and 1, the wait before
/// a removal, and the wait after a failover.
type Waits = u8;
const REMOVAL: Waits = 1 << 2;
const SETTLING: Waits = 1 << 3;

/// A lease, or the lease that a renewal in flight will give to its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    /// The running waits that began after the lease was requested.
    older_than: Waits,
}

const FRESH: Option<Lease> = Some(Lease { older_than: 0 });

/// The result of a renewal's statement, read in one snapshot of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reply {
    head: u8,
    /// The keys whose entries come after the cursor that was sent.
    entries: u8,
    /// The position that every listed member has applied.
    covered: u8,
    /// The members that are listed, or all bits if the list makes no difference.
    listed: u8,
    /// The history of the database. A failover or a set-back begins a new one.
    history: u8,
    /// True if the list of members is known to be complete in this history.
    settled: bool,
    /// True if the statement was executed after the standby last received data from this primary,
    /// which does not wait for the standby.
    unreplicated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Renewal {
    Idle,
    /// The renewal is on its way to the database.
    Sent(Option<Lease>),
    /// The statement has its snapshot, and waits for the lock of its row.
    Reading(Option<Lease>, Reply),
    /// The row is written and committed; the answer is on its way.
    Answered(Option<Lease>, Reply),
    /// No row was found; the answer is on its way.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Process {
    Down,
    /// The process has lost its row, but not its memory, and has to join again.
    Joining,
    Member,
    /// The process stops in good order.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    process: Process,
    /// The revocations in the index.
    index: u8,
    /// The revocations that this process has ever known.
    held: u8,
    cursor: u8,
    history: u8,
    lease: Option<Lease>,
    renewal: Renewal,
    /// True if the replica knows of a commit of its own row that a failover would lose.
    ahead: bool,
    /// Entries that the replica holds and the database has lost, so that the replica has to write
    /// them again. With `Broken::LeaseBeforeApplied`: entries that the replica has received and not
    /// applied.
    set_aside: u8,
    /// True if the replica has joined again after the database was set back, and so knows that the
    /// list of members may be incomplete.
    doubts_members: bool,
    /// The position that every member has applied, according to the replica's last renewal. Zero if
    /// the position makes no difference.
    everywhere: u8,
}

const DOWN: Replica = Replica {
    process: Process::Down,
    index: 0,
    held: 0,
    cursor: 0,
    history: 0,
    lease: None,
    renewal: Renewal::Idle,
    ahead: false,
    set_aside: 0,
    doubts_members: false,
    everywhere: 0,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Database {
    head: u8,
    /// The feed position of each key's entry; zero if there is none.
    position: [u8; KEYS],
    /// The rows of the members, with the position that each has reported as applied.
    rows: [Option<u8>; REPLICAS],
    history: u8,
    settled: bool,
}

impl Database {
    fn write(&mut self, key: usize) {
        self.head += 1;
        self.position[key] = self.head;
    }

    fn entries_after(&self, cursor: u8) -> u8 {
        (0..KEYS).filter(|&key| self.position[key] > cursor).map(|key| 1 << key).sum()
    }
}

/// A call to Revoke that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PendingRevoke {
    /// The replica that was called.
    by: u8,
    /// The feed position of its entry.
    seq: u8,
    /// The history in which `seq` is that position.
    history: u8,
    /// The members whose reports it waits for. All bits, unless a broken rule lists the members too
    /// early.
    asks: u8,
    /// True if no caller made this call: a replica writes a lost revocation again.
    restores: bool,
    /// True if its replica has sent a renewal since the entry was written, or if that makes no
    /// difference.
    asked_since: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Revoke {
    NotCalled,
    /// The call was sent to the database and is not executed yet. This state is used only where it
    /// makes a difference.
    Sent(PendingRevoke),
    /// The entry is committed. The index of the caller's replica has not reached the entry, or the
    /// replica has not noticed that yet.
    Reaching(PendingRevoke),
    /// The caller's replica holds the entry, and the wait is running.
    Waiting(PendingRevoke),
    /// OK was returned.
    Acknowledged,
    /// The caller got an error, and may call again.
    Failed,
    /// OK was returned, and an asynchronous failover lost the entry.
    Lost,
    /// The entry was lost, and a replica that held it has written it again. The revocation holds
    /// again.
    Restored,
}

impl Revoke {
    fn pending(&self) -> Option<PendingRevoke> {
        match *self {
            Self::Sent(pending) | Self::Reaching(pending) | Self::Waiting(pending) => Some(pending),
            _ => None,
        }
    }
}

/// A call to Validate that began after the revocation of `key` was acknowledged. To find a
/// violation it is enough to have one such call at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    at: u8,
    key: u8,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The call has read the deadline of the lease, and looks up the index next.
    HasLease(Option<Lease>),
    /// The call has found nothing in the index, and compares the clock with the deadline next.
    FoundNothing(Option<Lease>),
    /// The call waits for a renewal. True if the renewal under way was sent after the call arrived.
    Parked(bool),
}

/// A member whose counter another replica watches, in order to remove its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suspect {
    row: u8,
    /// True if the member has renewed since its counter was read, so that a compare-and-set fails.
    moved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    replicas: [Replica; REPLICAS],
    database: Database,
    /// The state of the standby, if it is behind.
    standby: Option<Database>,
    /// The primary before the failover. It is cut off from its standby, but some replicas still
    /// reach it.
    old: Option<Database>,
    revokes: [Revoke; KEYS],
    suspect: Option<Suspect>,
    settling: bool,
    call: Option<Call>,
    crashes: u8,
    removals: u8,
    active_after_acknowledged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    None,
    /// Commits wait for the standby. The old primary may keep running, cut off.
    Synchronous,
    /// Commits do not wait for the standby. The old primary is dead.
    Asynchronous,
    /// There is no failover. A dump or a snapshot is restored while replicas run, and the timeline
    /// stays the same, so no replica can see the `history` of a state. `standby` is the dump.
    SetBack,
}

/// A rule of the protocol that is broken. Each variant describes how the broken protocol behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The deadline of a lease counts from the receipt of the reply, not from the request.
    DeadlineFromReply,
    /// A renewal leaves out one of the members.
    AcknowledgementSkipsAMember,
    /// The wait of a revocation ends before the leases that it has to outlast.
    WaitTooShort,
    /// The wait of a revocation begins when it is requested, before it is committed.
    WaitFromRequest,
    /// The wait is as long as the replica's own configuration says, not as long as the members'
    /// rows say.
    WaitByOwnLeaseLength,
    /// The members whose reports are waited for are listed before the revocation is committed.
    MembersListedBeforeCommit,
    /// A newcomer loads the entries before it writes its row.
    SnapshotBeforeRegistering,
    /// A renewal extends the lease before its entries are applied.
    LeaseBeforeApplied,
    /// Validate reads the lease after it has looked up the index.
    LeaseReadAfterLookUp,
    /// Validate does not check the lease again after the look-up.
    LeaseCheckedBeforeLookUp,
    /// A waiting call to Validate is answered after a renewal that was sent before it arrived.
    FreedByEarlierRenewal,
    /// A member's row is removed although the member has renewed meanwhile.
    RemovalWithoutCompare,
    /// The wait before a removal begins before the member's counter is read.
    RemovalWaitFromQuestion,
    /// A renewal that finds no row writes it anew.
    RenewalRevivesRow,
    /// A replica that leaves deletes its row while it still has its lease.
    RowDeletedBeforeLease,
    /// Two replicas write to the same row.
    RowSharedByTwo,
    /// A renewal only reads, so it does not wait for the standby.
    RenewalByRead,
    /// A renewal extends the lease although its wait for the standby was cancelled.
    CancelledRenewalAccepted,
    /// A revocation counts as committed although its wait for the standby was cancelled.
    CancelledCommitAcknowledged,
    /// A retry that reads its entry in the database begins its wait at once.
    RetryAcknowledgedFromRead,
    /// Feed positions are compared without their histories.
    SeqWithoutHistory,
    /// The list of members comes from the old primary.
    MembersOfOldPrimary,
    /// A replica that joins again empties its index, and does not remember what it knew.
    ReloadReplacesMemory,
    /// A renewal does not compare the counter of its row, by which it would notice lost commits.
    CounterNotCompared,
    /// The reports of the members count although the list of members may be incomplete.
    MembersTrustedAfterFailover,
    /// The feed is read by other statements than the renewals.
    FeedReadApart,
    /// A renewal that was sent before a revocation was written counts for its acknowledgement.
    EarlierRenewalCounts,
    /// A replica that has lost its row still acknowledges the revocations that it had begun.
    EpochNotCompared,
}

/// The model: the protocol, the bounds within which it is explored, and possibly a broken rule.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub revocations: usize,
    /// The number of replicas that are members at the beginning, with a lease. The others may join.
    pub members: usize,
    /// The largest number of processes that crash or leave, counted together.
    pub crashes: u8,
    /// The largest number of members that others remove.
    pub removals: u8,
    /// True if leases may end by themselves, and not only because a wait has outlasted them.
    pub leases_end_early: bool,
    /// True if other steps may come between a renewal's snapshot and its write. That matters only
    /// if rows are deleted.
    pub reads_before_it_writes: bool,
    /// True if replicas that are down may join.
    pub joins: bool,
    pub failover: Failover,
    /// True if waits for the standby may be cancelled.
    pub cancels: bool,
    /// True if the standby of an asynchronous primary receives nothing from the beginning on,
    /// instead of from any moment on. With a set-back: true if the dump was made at the beginning.
    pub standby_behind: bool,
    /// True if revocation 0 has been acknowledged and applied by all members at the beginning, but
    /// is not in the dump.
    pub first_to_be_lost: bool,
    /// True if the database may be set back before every member has renewed since the dump.
    pub set_back_unnoticed: bool,
    /// True if processes may start after a set-back while earlier leases may still be valid.
    pub starts_after_set_back: bool,
    /// True if replica 2 is configured with a longer lease than the others.
    pub one_longer_lease: bool,
    /// True if a replica that has to join again empties its index first, which a process with calls
    /// under way should not do.
    pub clears_index: bool,
    /// True if the wait begins when the commit has returned, instead of when the replica's own
    /// index holds the entry.
    pub waits_from_commit: bool,
    /// True if revocations are acknowledged by the reports of the members.
    pub by_members: bool,
    /// True if revocations are acknowledged by the end of the wait.
    pub by_wait: bool,
    pub broken: Option<Broken>,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            revocations: 2,
            members: REPLICAS,
            crashes: 0,
            removals: 0,
            leases_end_early: false,
            reads_before_it_writes: false,
            joins: true,
            failover: Failover::None,
            cancels: true,
            standby_behind: false,
            first_to_be_lost: false,
            set_back_unnoticed: false,
            starts_after_set_back: false,
            one_longer_lease: false,
            clears_index: false,
            waits_from_commit: false,
            by_members: true,
            by_wait: true,
            broken: None,
        }
    }
}

/// The server that executes a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    Primary,
    Old,
}

/// The result of a commit: it waited for the standby, or its wait was cancelled. If the wait was
/// cancelled, the commit is visible and may still be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Commit {
    Waited,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // Revoke.
    Ask {
        key: usize,
        by: usize,
    },
    Write {
        key: usize,
        by: usize,
        server: Server,
        commit: Commit,
    },
    Retry {
        key: usize,
        by: usize,
        server: Server,
    },
    WaitIsOver {
        key: usize,
    },
    CallerGoesAway {
        key: usize,
    },
    // A renewal.
    Send {
        at: usize,
    },
    Read {
        at: usize,
        server: Server,
    },
    Execute {
        at: usize,
        server: Server,
        commit: Commit,
    },
    Receive {
        at: usize,
    },
    /// The answer of a renewal is lost.
    Lose {
        at: usize,
    },
    /// Entries are applied after the lease was extended. This happens only if a rule is broken.
    Apply {
        at: usize,
    },
    /// The feed is read without a renewal. This happens only if a rule is broken.
    ReadFeed {
        at: usize,
        server: Server,
    },
    LeaseEnds {
        at: usize,
    },
    // Membership.
    /// A newcomer loads the entries before it joins. This happens only if a rule is broken.
    Load {
        at: usize,
    },
    Join {
        at: usize,
        commit: Commit,
    },
    Suspect {
        row: usize,
    },
    /// The counter is read after the wait before a removal has begun. This happens only if a rule
    /// is broken.
    SeeCounter,
    Remove,
    Leave {
        at: usize,
    },
    Crash {
        at: usize,
    },
    // Validate.
    Begin {
        at: usize,
        key: usize,
    },
    LookUp,
    Check,
    // Failover.
    /// The standby receives nothing from now on, or the database is dumped.
    StandbyFallsBehind,
    /// The standby takes over, or the dump is restored.
    Promote,
    /// The wait after a failover or a set-back ends, and the list of members is complete again.
    Settle,
    /// A replica writes a revocation again that the database has lost.
    Offer {
        at: usize,
        key: usize,
    },
}

impl State {
    /// Begins a wait, which outlasts every lease of `replicas` that was requested before.
    fn begin_wait(&mut self, wait: Waits, replicas: u8) {
        self.each_lease(|at, lease| {
            if let Some(lease) = lease
                && replicas & (1 << at) != 0
            {
                lease.older_than |= wait;
            }
        });
    }

    /// Ends a wait, and with it the leases that the wait has outlasted.
    fn end_wait(&mut self, wait: Waits) {
        self.each_lease(|_, lease| {
            if lease.is_some_and(|lease| lease.older_than & wait != 0) {
                *lease = None;
            }
        });
    }

    /// Abandons a wait, which then ends no lease.
    fn abandon_wait(&mut self, wait: Waits) {
        self.each_lease(|_, lease| {
            if let Some(lease) = lease {
                lease.older_than &= !wait;
            }
        });
    }

    fn each_lease(&mut self, mut change: impl FnMut(usize, &mut Option<Lease>)) {
        for (at, replica) in self.replicas.iter_mut().enumerate() {
            change(at, &mut replica.lease);
            match &mut replica.renewal {
                Renewal::Sent(lease) | Renewal::Reading(lease, _) | Renewal::Answered(lease, _) => {
                    change(at, lease)
                }
                Renewal::Idle | Renewal::Refused => {}
            }
        }
        if let Some(Call { at, step: Step::HasLease(lease) | Step::FoundNothing(lease), .. }) =
            &mut self.call
        {
            change(usize::from(*at), lease);
        }
    }

    /// Returns the database on a server, or `None` if the server does not exist.
    fn server(&self, server: Server) -> Option<&Database> {
        match server {
            Server::Primary => Some(&self.database),
            Server::Old => self.old.as_ref(),
        }
    }

    /// Fails the calls to Revoke at a replica.
    fn fail_revokes_of(&mut self, at: usize) {
        for key in 0..KEYS {
            if self.revokes[key].pending().is_some_and(|pending| usize::from(pending.by) == at) {
                self.abandon_wait(1 << key);
                self.revokes[key] = Revoke::Failed;
            }
        }
    }

    /// Returns OK to a call to Revoke. If its entry was lost before, the guarantee begins only once
    /// a replica that holds the entry has restored it.
    fn acknowledge(&mut self, key: usize, may_be_lost: bool) {
        self.abandon_wait(1 << key);
        let Some(pending) = self.revokes[key].pending() else { return };
        let is_held = self.replicas[usize::from(pending.by)].held & (1 << key) != 0;
        self.revokes[key] = match pending.restores {
            _ if may_be_lost && is_held && pending.history != self.database.history => Revoke::Lost,
            true => Revoke::Restored,
            false => Revoke::Acknowledged,
        };
    }

    fn drop_suspicion(&mut self, row: usize) {
        if self.suspect.is_some_and(|suspect| usize::from(suspect.row) == row) {
            self.suspect = None;
            self.abandon_wait(REMOVAL);
        }
    }
}

impl Protocol {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// Returns the row that a replica writes to.
    fn row(&self, at: usize) -> usize {
        if self.breaks(Broken::RowSharedByTwo) && at == 2 { 1 } else { at }
    }

    fn loses_commits(&self) -> bool {
        matches!(self.failover, Failover::Asynchronous | Failover::SetBack)
    }

    fn sets_back(&self) -> bool {
        self.failover == Failover::SetBack
    }

    /// Returns whether a replica notices that a feed position is of another history.
    fn compares_histories(&self) -> bool {
        !self.sets_back() && !self.breaks(Broken::SeqWithoutHistory)
    }

    /// Returns a call to Revoke that has just written or found its entry.
    fn pending_revoke(
        &self,
        by: usize,
        database: &Database,
        asks: u8,
        restores: bool,
    ) -> PendingRevoke {
        let (seq, history) = (database.head, database.history);
        let asked_since = !self.sets_back() || self.breaks(Broken::EarlierRenewalCounts);
        PendingRevoke { by: by as u8, seq, history, asks, restores, asked_since }
    }

    /// Lets a call wait until its replica's index reaches the entry. With
    /// `Broken::EarlierRenewalCounts`, the index, and even all members, may have reached the entry
    /// already.
    fn begin_to_reach(&self, state: &mut State, key: usize, pending: PendingRevoke) {
        state.revokes[key] = Revoke::Reaching(pending);
        let replica = state.replicas[usize::from(pending.by)];
        if self.breaks(Broken::EarlierRenewalCounts) && replica.cursor >= pending.seq {
            state.revokes[key] = Revoke::Waiting(pending);
            self.start_wait(state, key, ALL);
            if self.by_members && replica.everywhere >= pending.seq {
                state.acknowledge(key, self.loses_commits());
            }
        }
    }

    /// Updates the state of the standby before a commit changes the primary.
    fn commit(&self, state: &mut State, commit: Commit) {
        match (self.failover, commit) {
            (Failover::Synchronous, Commit::Waited) => {
                // The standby has received this commit, and so all commits before it.
                state.standby = None;
                for replica in &mut state.replicas {
                    replica.ahead = false;
                }
            }
            (Failover::Synchronous, Commit::Cancelled) => {
                state.standby.get_or_insert(state.database);
            }
            (Failover::None | Failover::Asynchronous | Failover::SetBack, _) => {}
        }
    }

    /// Returns the replicas whose leases the wait of a Revoke is known to outlast, if its replica
    /// knows of the members `listed`.
    fn outlasted(&self, listed: u8) -> u8 {
        match self.one_longer_lease {
            true if self.breaks(Broken::WaitByOwnLeaseLength) => ALL & !(1 << 2),
            true => ALL & !(1 << 2) | listed,
            false => ALL,
        }
    }

    fn start_wait(&self, state: &mut State, key: usize, listed: u8) {
        if !self.breaks(Broken::WaitTooShort) {
            state.begin_wait(1 << key, self.outlasted(listed));
        }
    }

    /// Returns the snapshot of a renewal's statement.
    fn read(&self, state: &State, at: usize, server: Server) -> Option<Reply> {
        let database = state.server(server)?;
        let mut others: Vec<usize> = (0..REPLICAS)
            .filter(|&row| row != self.row(at) && self.members(state, database).rows[row].is_some())
            .collect();
        if self.breaks(Broken::AcknowledgementSkipsAMember) {
            others.pop();
        }
        let rows = self.members(state, database).rows;
        let covered =
            others.iter().filter_map(|&row| rows[row]).fold(state.replicas[at].cursor, u8::min);
        // The position is left out if no call at this replica waits for it. This keeps the number
        // of states small.
        let asks = self.waits_from_commit
            || self.breaks(Broken::EarlierRenewalCounts)
            || state.revokes.iter().any(
                |revoke| matches!(revoke, Revoke::Waiting(call) if usize::from(call.by) == at),
            );
        let covered = if asks { covered } else { 0 };
        let listed =
            if self.one_longer_lease { others.iter().map(|row| 1 << row).sum() } else { ALL };
        Some(Reply {
            head: database.head,
            entries: database.entries_after(state.replicas[at].cursor),
            covered,
            listed,
            history: database.history,
            settled: database.settled,
            unreplicated: self.loses_commits() && state.standby.is_some(),
        })
    }

    fn members<'a>(&self, state: &'a State, database: &'a Database) -> &'a Database {
        match &state.old {
            Some(old) if self.breaks(Broken::MembersOfOldPrimary) => old,
            _ => database,
        }
    }

    /// Carries out the receipt of a renewal's answer by its replica.
    fn receive(&self, state: &mut State, at: usize, lease: Option<Lease>, reply: Reply) {
        let mut lease = lease;
        if self.breaks(Broken::DeadlineFromReply) {
            lease = FRESH;
        }
        let loads = state.replicas[at].cursor == 0;
        let replica = &mut state.replicas[at];
        replica.renewal = Renewal::Idle;
        if self.loses_commits() && loads {
            replica.set_aside = replica.index & !reply.entries;
        }
        if self.breaks(Broken::LeaseBeforeApplied) {
            // The entries are applied later, by `Action::Apply`.
            replica.set_aside |= reply.entries;
        } else {
            replica.index |= reply.entries;
            replica.held |= reply.entries;
            replica.cursor = reply.head;
        }
        replica.ahead |= reply.unreplicated;
        if self.breaks(Broken::EarlierRenewalCounts) {
            replica.everywhere = reply.covered;
        }
        let trusts_members = !(replica.doubts_members && state.settling);
        let began_again = replica.history != reply.history;
        replica.history = reply.history;
        if lease.is_some() {
            replica.lease = lease;
        }
        let (index, cursor) = (replica.index, replica.cursor);

        // A `seq` has a meaning only within its history.
        for key in 0..KEYS {
            let Some(pending) =
                state.revokes[key].pending().filter(|pending| usize::from(pending.by) == at)
            else {
                continue;
            };
            if began_again && pending.history != reply.history && self.compares_histories() {
                if !(self.waits_from_commit && matches!(state.revokes[key], Revoke::Waiting(_))) {
                    state.abandon_wait(1 << key);
                    state.revokes[key] = Revoke::Failed;
                }
                continue;
            }
            match state.revokes[key] {
                Revoke::Reaching(pending)
                    if cursor >= pending.seq
                        && pending.asked_since
                        && (pending.history == reply.history || !self.compares_histories()) =>
                {
                    state.revokes[key] = Revoke::Waiting(pending);
                    if !self.breaks(Broken::WaitFromRequest) && !self.waits_from_commit {
                        self.start_wait(state, key, reply.listed);
                    }
                }
                Revoke::Waiting(pending) if self.by_members => {
                    let have_reported = if pending.asks == ALL {
                        reply.covered >= pending.seq && cursor >= pending.seq
                    } else {
                        (0..REPLICAS).filter(|row| pending.asks & (1 << row) != 0).all(|row| {
                            state.database.rows[row].is_none_or(|applied| applied >= pending.seq)
                        })
                    };
                    let is_complete = reply.settled && trusts_members;
                    if have_reported
                        && (is_complete || self.breaks(Broken::MembersTrustedAfterFailover))
                    {
                        state.acknowledge(key, self.loses_commits());
                    }
                }
                _ => {}
            }
        }

        // A renewal that was sent after a waiting call arrived lets the replica answer the call,
        // whatever the time is now.
        if let Some(Call { at: call_at, key, step: Step::Parked(sent_after) }) = state.call
            && usize::from(call_at) == at
            && (sent_after || self.breaks(Broken::FreedByEarlierRenewal))
        {
            state.call = None;
            state.active_after_acknowledged |= index & (1 << key) == 0;
        }
    }

    /// Carries out a step. Returns `None` if the step is not possible in this state.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        fn when(condition: bool) -> Option<()> {
            condition.then_some(())
        }
        match action {
            Action::Ask { key, by } => {
                when(matches!(state.revokes[key], Revoke::NotCalled))?;
                when(state.replicas[by].process == Process::Member)?;
                let mut pending = PendingRevoke {
                    seq: 0,
                    history: 0,
                    ..self.pending_revoke(by, &state.database, ALL, false)
                };
                if self.breaks(Broken::MembersListedBeforeCommit) {
                    pending.asks = (0..REPLICAS)
                        .filter(|&row| state.database.rows[row].is_some())
                        .map(|row| 1 << row)
                        .sum();
                }
                if self.breaks(Broken::WaitFromRequest) {
                    self.start_wait(state, key, ALL);
                }
                state.revokes[key] = Revoke::Sent(pending);
            }
            Action::Write { key, by, server, commit } => {
                let asks = match state.revokes[key] {
                    Revoke::NotCalled if !self.asks_first() => ALL,
                    Revoke::Sent(pending) => {
                        when(usize::from(pending.by) == by)?;
                        pending.asks
                    }
                    Revoke::Failed if !self.breaks(Broken::RetryAcknowledgedFromRead) => ALL,
                    _ => return None,
                };
                when(state.replicas[by].process == Process::Member)?;
                // The revocation that is committed first is called 0.
                when(key == 0 || state.revokes[0] != Revoke::NotCalled)?;
                // An entry that exists is not written again, because `Retry` waits for it. The
                // exception is the form of the protocol in which the commit's answer alone counts.
                let target = state.server(server)?;
                when(target.position[key] == 0 || self.waits_from_commit && target.head < 2)?;
                // A commit at the old primary, which has no standby, waits until it is cancelled.
                when(server == Server::Primary || commit == Commit::Cancelled)?;
                let database = match server {
                    Server::Primary => {
                        self.commit(state, commit);
                        &mut state.database
                    }
                    Server::Old => state.old.as_mut()?,
                };
                database.write(key);
                let pending = self.pending_revoke(by, &database.clone(), asks, false);
                self.begin_to_reach(state, key, pending);
                if self.breaks(Broken::CancelledCommitAcknowledged)
                    || self.waits_from_commit && commit == Commit::Waited
                {
                    // The commit's answer alone counts.
                    state.revokes[key] = Revoke::Waiting(pending);
                    self.start_wait(state, key, ALL);
                } else if self.waits_from_commit {
                    state.revokes[key] = Revoke::Failed;
                }
            }
            Action::Retry { key, by, server } => {
                when(state.revokes[key] == Revoke::Failed && !self.waits_from_commit)?;
                when(state.replicas[by].process == Process::Member)?;
                let database = state.server(server)?;
                when(database.position[key] != 0)?;
                let pending = self.pending_revoke(by, database, ALL, false);
                self.begin_to_reach(state, key, pending);
                if self.breaks(Broken::RetryAcknowledgedFromRead) {
                    state.revokes[key] = Revoke::Waiting(pending);
                    self.start_wait(state, key, ALL);
                }
            }
            Action::WaitIsOver { key } => {
                when(matches!(state.revokes[key], Revoke::Waiting(_)))?;
                state.end_wait(1 << key);
                state.acknowledge(key, self.loses_commits());
            }
            Action::CallerGoesAway { key } => {
                when(matches!(state.revokes[key], Revoke::Reaching(_) | Revoke::Waiting(_)))?;
                state.abandon_wait(1 << key);
                state.revokes[key] = Revoke::Failed;
            }

            Action::Send { at } => {
                let replica = &mut state.replicas[at];
                when(replica.process == Process::Member && replica.renewal == Renewal::Idle)?;
                replica.renewal = Renewal::Sent(FRESH);
                for revoke in &mut state.revokes {
                    if let Revoke::Reaching(pending) = revoke
                        && usize::from(pending.by) == at
                    {
                        pending.asked_since = true;
                    }
                }
                if let Some(Call { at: call_at, step: Step::Parked(sent_after), .. }) =
                    &mut state.call
                    && usize::from(*call_at) == at
                {
                    *sent_after = true;
                }
            }
            Action::Read { at, server } => {
                let Renewal::Sent(lease) = state.replicas[at].renewal else { return None };
                let reply = self.read(state, at, server)?;
                if self.breaks(Broken::RenewalByRead) {
                    state.replicas[at].renewal = Renewal::Answered(lease, reply);
                    if server == Server::Primary {
                        state.database.rows[at] =
                            state.database.rows[at].map(|_| state.replicas[at].cursor);
                    }
                    return Some(());
                }
                state.replicas[at].renewal = Renewal::Reading(lease, reply);
                if !self.reads_before_it_writes {
                    let commit =
                        if server == Server::Old { Commit::Cancelled } else { Commit::Waited };
                    self.step(state, Action::Execute { at, server, commit })?;
                }
            }
            Action::Execute { at, server, commit } => {
                let Renewal::Reading(lease, reply) = state.replicas[at].renewal else {
                    return None;
                };
                let row = self.row(at);
                when(state.server(server)?.history == reply.history)?;
                when(server == Server::Primary || commit == Commit::Cancelled)?;
                let is_behind = state.database.history > 0 && state.replicas[at].ahead;
                let found = state.server(server)?.rows[row].is_some()
                    && (!is_behind
                        || self.breaks(Broken::CounterNotCompared)
                        || server == Server::Old);
                if !found && !self.breaks(Broken::RenewalRevivesRow) {
                    state.replicas[at].renewal = Renewal::Refused;
                    return Some(());
                }
                let applied = state.replicas[at].cursor;
                match server {
                    Server::Primary => {
                        self.commit(state, commit);
                        state.database.rows[row] = Some(applied);
                        if let Some(suspect) = &mut state.suspect
                            && usize::from(suspect.row) == row
                        {
                            suspect.moved = true;
                        }
                    }
                    Server::Old => state.old.as_mut()?.rows[row] = Some(applied),
                }
                state.replicas[at].renewal = Renewal::Answered(lease, reply);
            }
            Action::Receive { at } => match state.replicas[at].renewal {
                Renewal::Answered(lease, reply) => {
                    when(state.replicas[at].process != Process::Down)?;
                    self.receive(state, at, lease, reply);
                }
                Renewal::Refused => {
                    // From here on the replica is a newcomer. But it keeps its memory, and writes
                    // those entries again that the database has lost.
                    if !self.breaks(Broken::EpochNotCompared) {
                        state.fail_revokes_of(at);
                    }
                    let replica = &mut state.replicas[at];
                    let index = replica.index;
                    let held = replica.held;
                    let doubts_members = self.sets_back();
                    *replica =
                        Replica { process: Process::Joining, index, held, doubts_members, ..DOWN };
                    if self.clears_index || self.breaks(Broken::ReloadReplacesMemory) {
                        replica.index = 0;
                    }
                }
                _ => return None,
            },
            Action::Lose { at } => {
                let replica = &mut state.replicas[at];
                when(match replica.renewal {
                    Renewal::Answered(..) => true,
                    // The statement waits at a primary that was replaced meanwhile.
                    Renewal::Reading(_, reply) => reply.history != state.database.history,
                    // A request that is lost on its way has the same effect as no request.
                    Renewal::Idle | Renewal::Sent(_) | Renewal::Refused => false,
                })?;
                replica.renewal = Renewal::Idle;
                if let Some(Call { at: call_at, step: Step::Parked(sent_after), .. }) =
                    &mut state.call
                    && usize::from(*call_at) == at
                {
                    *sent_after = false;
                }
            }
            Action::Apply { at } => {
                let replica = &mut state.replicas[at];
                when(self.breaks(Broken::LeaseBeforeApplied) && replica.set_aside != 0)?;
                replica.index |= replica.set_aside;
                replica.held |= replica.set_aside;
                replica.cursor = (replica.index.count_ones()) as u8;
                replica.set_aside = 0;
            }
            Action::ReadFeed { at, server } => {
                when(
                    self.breaks(Broken::FeedReadApart)
                        && state.replicas[at].process == Process::Member,
                )?;
                let database = state.server(server)?;
                let (head, entries) =
                    (database.head, database.entries_after(state.replicas[at].cursor));
                let replica = &mut state.replicas[at];
                when(replica.renewal == Renewal::Idle && head > replica.cursor)?;
                replica.index |= entries;
                replica.held |= entries;
                replica.cursor = head;
            }
            Action::LeaseEnds { at } => {
                when(self.leases_end_early && state.replicas[at].lease.is_some())?;
                state.replicas[at].lease = None;
            }

            Action::Load { at } => {
                when(self.breaks(Broken::SnapshotBeforeRegistering))?;
                when(
                    state.replicas[at].process == Process::Down
                        && state.replicas[at].renewal == Renewal::Idle,
                )?;
                let reply = self.read(state, at, Server::Primary)?;
                state.replicas[at].renewal = Renewal::Answered(FRESH, reply);
            }
            Action::Join { at, commit } => {
                when(match state.replicas[at].process {
                    Process::Down => {
                        self.joins
                            && (self.starts_after_set_back || !state.settling || !self.sets_back())
                    }
                    Process::Joining => true,
                    Process::Member | Process::Leaving => false,
                })?;
                when(
                    self.breaks(Broken::SnapshotBeforeRegistering)
                        == matches!(state.replicas[at].renewal, Renewal::Answered(..)),
                )?;
                self.commit(state, commit);
                // The replica may register the head as applied, because it validates nothing before
                // it has read the feed up to the head.
                state.database.rows[self.row(at)] = Some(state.database.head);
                state.replicas[at].process = Process::Member;
                state.replicas[at].history = state.database.history;
                state.replicas[at].ahead = state.standby.is_some();
                state.drop_suspicion(at);
            }
            Action::Suspect { row } => {
                when(
                    state.suspect.is_none()
                        && state.removals < self.removals
                        && state.database.rows[row].is_some(),
                )?;
                let moved = self.breaks(Broken::RemovalWaitFromQuestion);
                state.suspect = Some(Suspect { row: row as u8, moved });
                state.begin_wait(REMOVAL, 1 << row);
            }
            Action::SeeCounter => {
                when(self.breaks(Broken::RemovalWaitFromQuestion))?;
                let suspect = state.suspect.as_mut().filter(|suspect| suspect.moved)?;
                suspect.moved = false;
            }
            Action::Remove => {
                let suspect = state.suspect?;
                state.end_wait(REMOVAL);
                state.suspect = None;
                if !suspect.moved || self.breaks(Broken::RemovalWithoutCompare) {
                    state.database.rows[usize::from(suspect.row)] = None;
                    state.removals += 1;
                }
            }
            Action::Leave { at } => {
                when(
                    state.replicas[at].process == Process::Member && state.crashes < self.crashes,
                )?;
                state.crashes += 1;
                state.fail_revokes_of(at);
                let replica = &mut state.replicas[at];
                replica.process = Process::Leaving;
                if !self.breaks(Broken::RowDeletedBeforeLease) {
                    replica.lease = None;
                    replica.renewal = Renewal::Idle;
                }
                self.commit(state, Commit::Waited);
                state.database.rows[self.row(at)] = None;
                state.drop_suspicion(at);
            }
            Action::Crash { at } => {
                let left = state.replicas[at].process == Process::Leaving;
                when(
                    state.replicas[at].process != Process::Down
                        && (left || state.crashes < self.crashes),
                )?;
                state.crashes += u8::from(!left);
                state.fail_revokes_of(at);
                // A renewal under way may still be executed, but that makes no difference, because
                // it writes to a row that no process uses any more.
                state.replicas[at] = DOWN;
                if state.call.is_some_and(|call| usize::from(call.at) == at) {
                    state.call = None;
                }
            }

            Action::Begin { at, key } => {
                when(state.call.is_none() && state.replicas[at].process != Process::Down)?;
                let replica = state.replicas[at];
                let misses = replica.index & (1 << key) == 0;
                match state.revokes[key] {
                    Revoke::Acknowledged | Revoke::Restored => {}
                    // The guarantee no longer covers a lost revocation, but a replica that has
                    // known the revocation must still respect it.
                    Revoke::Lost if replica.held & (1 << key) != 0 => {}
                    _ => return None,
                }
                // An entry in the index stays there, unless the index is emptied.
                when(misses || self.clears_index)?;
                let step = if self.breaks(Broken::LeaseReadAfterLookUp) {
                    Step::FoundNothing(None)
                } else if replica.lease.is_some() {
                    Step::HasLease(replica.lease)
                } else {
                    when(misses)?;
                    Step::Parked(false)
                };
                state.call = Some(Call { at: at as u8, key: key as u8, step });
            }
            Action::LookUp => {
                let call = state.call?;
                let Step::HasLease(lease) = call.step else { return None };
                let found = state.replicas[usize::from(call.at)].index & (1 << call.key) != 0;
                state.call = (!found).then_some(Call { step: Step::FoundNothing(lease), ..call });
                if !found && self.breaks(Broken::LeaseCheckedBeforeLookUp) {
                    state.active_after_acknowledged = true;
                }
            }
            Action::Check => {
                let call = state.call?;
                let Step::FoundNothing(read_before) = call.step else { return None };
                let lease = if self.breaks(Broken::LeaseReadAfterLookUp) {
                    state.replicas[usize::from(call.at)].lease
                } else {
                    read_before
                };
                state.call = None;
                state.active_after_acknowledged = lease.is_some();
            }

            Action::StandbyFallsBehind => {
                when(
                    self.loses_commits() && state.standby.is_none() && state.database.history == 0,
                )?;
                state.standby = Some(state.database);
            }
            Action::Promote => {
                when(self.failover != Failover::None && state.database.history == 0)?;
                when(state.standby.is_some() || !self.loses_commits())?;
                if self.failover == Failover::Synchronous {
                    state.old = Some(state.database);
                }
                let is_noticed = |replica: &Replica| {
                    replica.ahead || matches!(replica.process, Process::Down | Process::Joining)
                };
                when(
                    !self.sets_back()
                        || self.set_back_unnoticed
                        || state.replicas.iter().all(is_noticed),
                )?;
                let before = state.standby.take().unwrap_or(state.database);
                // A database that was set back does not show that its list of members may be
                // incomplete.
                state.database = Database { history: 1, settled: self.sets_back(), ..before };
                for key in 0..KEYS {
                    if let Revoke::Reaching(pending) | Revoke::Waiting(pending) =
                        &mut state.revokes[key]
                        && self.sets_back()
                        && before.position[key] != 0
                    {
                        // The entry is in the dump that was restored.
                        pending.history = 1;
                    }
                    let acknowledged =
                        matches!(state.revokes[key], Revoke::Acknowledged | Revoke::Restored);
                    if acknowledged && state.database.position[key] == 0 && self.loses_commits() {
                        state.revokes[key] = Revoke::Lost;
                        // A lost revocation must be respected only by replicas that have known it.
                        state.call = state.call.filter(|call| {
                            usize::from(call.key) != key
                                || state.replicas[usize::from(call.at)].held & (1 << key) != 0
                        });
                    }
                }
                state.settling = true;
                state.begin_wait(SETTLING, ALL);
            }
            Action::Settle => {
                when(state.settling)?;
                state.settling = false;
                state.end_wait(SETTLING);
                state.database.settled = true;
            }
            Action::Offer { at, key } => {
                let replica = &mut state.replicas[at];
                when(self.loses_commits() && replica.set_aside & (1 << key) != 0)?;
                when(replica.process == Process::Member)?;
                replica.set_aside &= !(1 << key);
                if state.database.position[key] == 0 {
                    state.database.write(key);
                }
                if state.revokes[key] == Revoke::Lost {
                    let pending = self.pending_revoke(at, &state.database, ALL, true);
                    self.begin_to_reach(state, key, pending);
                }
            }
        }
        Some(())
    }

    fn asks_first(&self) -> bool {
        matches!(self.broken, Some(Broken::WaitFromRequest | Broken::MembersListedBeforeCommit))
    }

    /// Returns the state with its replicas sorted. States that differ only in the numbers of the
    /// replicas are equivalent, so this reduces the number of states.
    fn in_order(&self, state: &State) -> State {
        let sorted = match self.broken {
            Some(Broken::RowSharedByTwo | Broken::AcknowledgementSkipsAMember) => return *state,
            _ if self.one_longer_lease => REPLICAS - 1,
            _ => REPLICAS,
        };
        let mut permutation = [0, 1, 2];
        permutation[..sorted].sort_by_cached_key(|&at| {
            let called_by = (0..KEYS)
                .filter(|&key| {
                    state.revokes[key]
                        .pending()
                        .is_some_and(|pending| usize::from(pending.by) == at)
                })
                .map(|key| 1_u8 << key)
                .sum::<u8>();
            let asked = (0..KEYS)
                .filter(|&key| {
                    state.revokes[key]
                        .pending()
                        .is_some_and(|pending| pending.asks & (1 << at) != 0)
                })
                .map(|key| 1_u8 << key)
                .sum::<u8>();
            let suspect = state.suspect.is_some_and(|suspect| usize::from(suspect.row) == at);
            let call = state.call.is_some_and(|call| usize::from(call.at) == at);
            (
                state.replicas[at],
                state.database.rows[at],
                state.standby.map(|standby| standby.rows[at]),
                state.old.map(|old| old.rows[at]),
                (called_by, asked, suspect, call),
            )
        });
        if permutation == [0, 1, 2] {
            return *state;
        }
        let mut new_index = [0; REPLICAS];
        for (new, &old) in permutation.iter().enumerate() {
            new_index[old] = new as u8;
        }
        let mut sorted = *state;
        sorted.replicas = permutation.map(|at| state.replicas[at]);
        let with_rows = |database: Database| Database {
            rows: permutation.map(|at| database.rows[at]),
            ..database
        };
        sorted.database.rows = permutation.map(|at| state.database.rows[at]);
        sorted.standby = state.standby.map(with_rows);
        sorted.old = state.old.map(with_rows);
        let moved = |pending: PendingRevoke| PendingRevoke {
            by: new_index[usize::from(pending.by)],
            asks: (0..REPLICAS)
                .filter(|&at| pending.asks & (1 << at) != 0)
                .map(|at| 1 << new_index[at])
                .sum(),
            ..pending
        };
        sorted.revokes = state.revokes.map(|revoke| match revoke {
            Revoke::Sent(pending) => Revoke::Sent(moved(pending)),
            Revoke::Reaching(pending) => Revoke::Reaching(moved(pending)),
            Revoke::Waiting(pending) => Revoke::Waiting(moved(pending)),
            other => other,
        });
        sorted.suspect = state
            .suspect
            .map(|suspect| Suspect { row: new_index[usize::from(suspect.row)], ..suspect });
        sorted.call = state.call.map(|call| Call { at: new_index[usize::from(call.at)], ..call });
        sorted
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut replicas = [DOWN; REPLICAS];
        let mut rows = [None; REPLICAS];
        for at in 0..self.members {
            replicas[at] = Replica { process: Process::Member, lease: FRESH, ..DOWN };
            rows[at] = Some(0);
        }
        if self.breaks(Broken::RowSharedByTwo) {
            rows[2] = None;
        }
        let empty = Database { head: 0, position: [0; KEYS], rows, history: 0, settled: true };
        let mut database = empty;
        let mut revokes = [Revoke::NotCalled; KEYS];
        if self.first_to_be_lost {
            database.write(0);
            revokes[0] = Revoke::Acknowledged;
            for (replica, row) in replicas.iter_mut().zip(&mut database.rows).take(self.members) {
                *row = Some(database.head);
                *replica =
                    Replica { index: 1, held: 1, cursor: database.head, ahead: true, ..*replica };
            }
        }
        let state = State {
            replicas,
            database,
            standby: (self.standby_behind || self.first_to_be_lost).then_some(empty),
            old: None,
            revokes,
            suspect: None,
            settling: false,
            call: None,
            crashes: 0,
            removals: 0,
            active_after_acknowledged: false,
        };
        vec![self.in_order(&state)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let fails_over = self.failover != Failover::None;
        let cancels = self.failover == Failover::Synchronous && self.cancels;
        for key in 0..self.revocations {
            match state.revokes[key] {
                Revoke::NotCalled | Revoke::Sent(_) | Revoke::Failed => {
                    for by in 0..REPLICAS {
                        if self.asks_first() {
                            actions.push(Action::Ask { key, by });
                        }
                        let write = |server, commit| Action::Write { key, by, server, commit };
                        actions.push(write(Server::Primary, Commit::Waited));
                        actions.push(Action::Retry { key, by, server: Server::Primary });
                        if cancels {
                            actions.push(write(Server::Primary, Commit::Cancelled));
                            actions.push(write(Server::Old, Commit::Cancelled));
                            actions.push(Action::Retry { key, by, server: Server::Old });
                        }
                    }
                }
                Revoke::Reaching(_) | Revoke::Waiting(_) => {
                    if self.by_wait {
                        actions.push(Action::WaitIsOver { key });
                    }
                    if cancels {
                        actions.push(Action::CallerGoesAway { key });
                    }
                }
                Revoke::Acknowledged | Revoke::Lost | Revoke::Restored => {
                    actions.extend((0..REPLICAS).map(|at| Action::Begin { at, key }));
                }
            }
        }
        for at in 0..REPLICAS {
            actions.extend([Action::Send { at }, Action::Read { at, server: Server::Primary }]);
            actions.push(Action::Execute { at, server: Server::Primary, commit: Commit::Waited });
            actions.extend([Action::Receive { at }, Action::Lose { at }, Action::LeaseEnds { at }]);
            actions.push(Action::Join { at, commit: Commit::Waited });
            if cancels {
                actions.push(Action::Join { at, commit: Commit::Cancelled });
            }
            if self.breaks(Broken::RenewalByRead) {
                actions.push(Action::Read { at, server: Server::Old });
            }
            if self.breaks(Broken::CancelledRenewalAccepted) {
                actions.push(Action::Read { at, server: Server::Old });
                actions.push(Action::Execute {
                    at,
                    server: Server::Old,
                    commit: Commit::Cancelled,
                });
            }
            actions.extend([Action::Load { at }, Action::Apply { at }]);
            actions.extend(
                [Server::Primary, Server::Old].map(|server| Action::ReadFeed { at, server }),
            );
            if self.removals > 0 {
                actions.push(Action::Suspect { row: at });
            }
            if self.crashes > 0 {
                actions.extend([Action::Leave { at }, Action::Crash { at }]);
            }
            actions.extend((0..self.revocations).map(|key| Action::Offer { at, key }));
        }
        actions.extend([Action::SeeCounter, Action::Remove, Action::LookUp, Action::Check]);
        if fails_over {
            actions.extend([Action::StandbyFallsBehind, Action::Promote, Action::Settle]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        // The property is violated, so the steps that follow do not matter.
        if state.active_after_acknowledged {
            return None;
        }
        let mut next = *state;
        self.step(&mut next, action)?;
        Some(self.in_order(&next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no active after an acknowledged revocation", |_, state: &State| {
                !state.active_after_acknowledged
            }),
            Property::sometimes("a revocation is acknowledged", |_, state: &State| {
                state.revokes[0] == Revoke::Acknowledged
            }),
            Property::sometimes("a replica serves after an acknowledgement", |_, state: &State| {
                state.revokes[0] == Revoke::Acknowledged
                    && state.replicas.iter().any(|replica| replica.lease.is_some())
            }),
            Property::sometimes(
                "a lapsed replica parks a call, and a renewal sent later is on its way back",
                |_, state: &State| {
                    state.call.is_some_and(|call| {
                        call.step == Step::Parked(true)
                            && matches!(
                                state.replicas[usize::from(call.at)].renewal,
                                Renewal::Answered(..)
                            )
                    })
                },
            ),
        ];
        if self.loses_commits() {
            properties.push(Property::sometimes(
                "a revocation that was lost is restored",
                |_, state: &State| state.revokes[0] == Revoke::Restored,
            ));
        }
        if self.failover == Failover::Synchronous {
            properties.push(Property::sometimes(
                "a revocation is acknowledged by the new primary",
                |_, state: &State| {
                    state.revokes[0] == Revoke::Acknowledged
                        && state.old.is_some_and(|old| old.position[0] == 0)
                },
            ));
        }
        if self.removals > 0 {
            properties.push(Property::sometimes(
                "a member that was removed serves again",
                |model: &Self, state: &State| {
                    let serving =
                        state.replicas.iter().filter(|replica| replica.lease.is_some()).count();
                    state.removals > 0 && serving >= model.members
                },
            ));
        }
        properties
    }
}
