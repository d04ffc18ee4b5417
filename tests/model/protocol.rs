//! The protocol by which an acknowledged revocation holds on every replica, as a machine whose
//! every step is explored.
//!
//! Time is a relation here, not a number. All that the protocol may rely on is: *a lease that was
//! asked for before a wait began is over when the wait ends* ([`super::clocks`] proves it of the
//! numbers). So a lease carries the waits that it is older than, a wait that ends takes those
//! leases with it, and otherwise leases end, waits end, processes pause and messages travel when
//! they like. A process that makes no step is paused; a message that is not taken yet is delayed or
//! held.

use stateright::{Model, Property};

pub const REPLICAS: usize = 3;
const KEYS: usize = 2;
const ALL: u8 = 0b111;

/// Bits, one a wait that is running: that of revocation 0 and 1, of a removal, and of the time
/// after a failover.
type Waits = u8;
const REMOVAL: Waits = 1 << 2;
const SETTLING: Waits = 1 << 3;

/// A lease, or the right to one that travels with a renewal: the running waits that began after it
/// was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    older_than: Waits,
}

const FRESH: Option<Lease> = Some(Lease { older_than: 0 });

/// What a renewal's statement read, all in one snapshot of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reply {
    head: u8,
    /// Keys whose entries come after the cursor that was sent.
    entries: u8,
    /// What every listed member has applied, at least.
    covered: u8,
    /// The members listed; all, if it makes no difference.
    listed: u8,
    /// Of which history of the database this is: a failover begins another.
    history: u8,
    /// Whether the list of members is known to be complete in this history.
    settled: bool,
    /// Executed after the standby last heard of this primary, which does not wait for it.
    unreplicated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Renewal {
    Idle,
    /// On its way to the database.
    Sent(Option<Lease>),
    /// The statement has its snapshot, and waits for the lock of its row.
    Reading(Option<Lease>, Reply),
    /// The row is written and the commit is through; the answer is on its way.
    Answered(Option<Lease>, Reply),
    /// No row was found; the answer is on its way.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Process {
    Down,
    /// Its row is gone, its memory is not: a newcomer that remembers.
    Joining,
    Member,
    /// Stopping in order.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    process: Process,
    /// The revocations that Validate finds.
    index: u8,
    /// Those that this process has ever known.
    held: u8,
    cursor: u8,
    history: u8,
    lease: Option<Lease>,
    renewal: Renewal,
    /// It knows of a commit of its own row that a failover would lose.
    ahead: bool,
    /// Entries that it holds and the database has lost: to be offered again.
    set_aside: u8,
    /// It has joined again after the database was set back, and knows that the list of members may
    /// lack somebody.
    doubts_members: bool,
    /// The position that every member has applied, as its renewals have shown. Only where it makes
    /// a difference.
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
    /// Where in the feed a key's entry stands; zero for nowhere.
    place: [u8; KEYS],
    /// What each member said it has applied.
    rows: [Option<u8>; REPLICAS],
    history: u8,
    settled: bool,
}

impl Database {
    fn write(&mut self, key: usize) {
        self.head += 1;
        self.place[key] = self.head;
    }

    fn entries_after(&self, cursor: u8) -> u8 {
        (0..KEYS).filter(|&key| self.place[key] > cursor).map(|key| 1 << key).sum()
    }
}

/// A call to Revoke, at the replica `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order {
    by: u8,
    /// Its entry's place in the feed, and of which history.
    seq: u8,
    history: u8,
    /// Whose word it waits for; all, unless the list was made too early.
    asks: u8,
    /// Not a caller's, but of a replica that offers what was lost.
    restores: bool,
    /// Its replica has sent a renewal since the entry was written. Always, where it makes no
    /// difference.
    asked_since: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Revoke {
    NotCalled,
    /// Sent to the database, and not executed. Only where it makes a difference.
    Sent(Order),
    /// Committed. Its replica's own index has not come so far, or the replica has not noticed.
    Reaching(Order),
    /// Its replica holds the entry; the wait runs.
    Waiting(Order),
    /// OK was returned.
    Acknowledged,
    /// The caller got an error, and may call again.
    Failed,
    /// OK was returned, and an asynchronous failover lost the entry.
    Lost,
    /// It was lost, offered again by a replica that held it, and holds again.
    Restored,
}

impl Revoke {
    fn order(&self) -> Option<Order> {
        match *self {
            Self::Sent(order) | Self::Reaching(order) | Self::Waiting(order) => Some(order),
            _ => None,
        }
    }
}

/// A call to Validate that began after the revocation of `key` was acknowledged. One at a time is
/// enough to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    at: u8,
    key: u8,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Has read the lease's deadline, and is to look up.
    HasLease(Option<Lease>),
    /// Has looked up and found nothing, and is to compare the clock with the deadline that it read.
    FoundNothing(Option<Lease>),
    /// Waits for a renewal; true if the one that is under way was sent after the call arrived.
    Parked(bool),
}

/// A member whose counter stands still, as somebody else sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suspect {
    row: u8,
    /// It has renewed since its counter was read, so that a compare-and-set will miss.
    moved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    replicas: [Replica; REPLICAS],
    database: Database,
    /// What the standby has, where that is less.
    standby: Option<Database>,
    /// The primary before the failover. It is cut off from its standby; some replicas still reach
    /// it.
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
    /// Commits wait for the standby. The old primary may live on, cut off.
    Synchronous,
    /// They do not. The old primary is dead.
    Asynchronous,
    /// No failover: a dump or a snapshot is put back under running replicas, and the timeline stays
    /// what it was. Here a state's history is known to nobody; `standby` is what was dumped.
    SetBack,
}

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    DeadlineFromReply,
    AcknowledgementSkipsAMember,
    WaitTooShort,
    WaitFromRequest,
    WaitByOwnLeaseLength,
    MembersListedBeforeCommit,
    SnapshotBeforeRegistering,
    LeaseBeforeApplied,
    LeaseReadAfterLookUp,
    LeaseCheckedBeforeLookUp,
    FreedByEarlierRenewal,
    RemovalWithoutCompare,
    RemovalWaitFromQuestion,
    RenewalRevivesRow,
    RowDeletedBeforeLease,
    RowSharedByTwo,
    RenewalByRead,
    CancelledRenewalAccepted,
    CancelledCommitAcknowledged,
    RetryAcknowledgedFromRead,
    SeqWithoutHistory,
    MembersOfOldPrimary,
    ReloadReplacesMemory,
    CounterNotCompared,
    MembersTrustedAfterFailover,
    FeedReadApart,
    EarlierRenewalCounts,
    EpochNotCompared,
}

/// What is explored: the protocol with its rules, a bounded part of the world, and perhaps a broken
/// rule.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub revocations: usize,
    /// How many replicas are members at the beginning, with a lease. The others may join.
    pub members: usize,
    /// How many processes may crash or leave, counted together.
    pub crashes: u8,
    /// How many members may be removed by others.
    pub removals: u8,
    /// Leases end before they must: by themselves, and not only when a wait has outlasted them.
    pub leases_end_early: bool,
    /// Something may happen between a renewal's snapshot and its write. It matters if rows are
    /// deleted.
    pub reads_before_it_writes: bool,
    /// Replicas that are down may join.
    pub joins: bool,
    pub failover: Failover,
    /// Somebody cancels waits for the standby.
    pub cancels: bool,
    /// The standby of an asynchronous primary has heard nothing from the beginning on, and not only
    /// from some moment on; what is put back was dumped at the beginning.
    pub standby_behind: bool,
    /// At the beginning revocation 0 has been acknowledged and read by all members, and it is not
    /// in what is put back.
    pub first_to_be_lost: bool,
    /// The database may be set back before every member has renewed since it was dumped.
    pub set_back_unnoticed: bool,
    /// Processes may start after the database was set back, while leases from before may still be
    /// in force.
    pub starts_after_set_back: bool,
    /// Replica 2 is configured with a longer lease than the others.
    pub one_longer_lease: bool,
    /// A replica that has to join again empties its index first, which a process with calls under
    /// way should not do.
    pub clears_index: bool,
    /// The wait begins when the commit has returned, and not when the replica's own index holds the
    /// entry.
    pub waits_from_commit: bool,
    /// Acknowledgements by the members' word, and by the wait.
    pub by_members: bool,
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

/// Where a statement is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    Primary,
    Old,
}

/// Whether a commit waited for the standby, or somebody cancelled its wait: then it is visible, and
/// may yet be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Commit {
    Waited,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // Revoke.
    Ask { key: usize, by: usize },
    Write { key: usize, by: usize, server: Server, commit: Commit },
    Retry { key: usize, by: usize, server: Server },
    WaitIsOver { key: usize },
    CallerGoesAway { key: usize },
    // A renewal.
    Send { at: usize },
    Read { at: usize, server: Server },
    Execute { at: usize, server: Server, commit: Commit },
    Receive { at: usize },
    Lose { at: usize },
    Apply { at: usize },
    ReadFeed { at: usize, server: Server },
    LeaseEnds { at: usize },
    // Membership.
    Load { at: usize },
    Join { at: usize, commit: Commit },
    Suspect { row: usize },
    SeeCounter,
    Remove,
    Leave { at: usize },
    Crash { at: usize },
    // Validate.
    Begin { at: usize, key: usize },
    LookUp,
    Check,
    // Failover.
    StandbyFallsBehind,
    Promote,
    Settle,
    Offer { at: usize, key: usize },
}

impl State {
    /// A wait begins: no lease of `replicas` that was asked for before outlives it.
    fn start(&mut self, wait: Waits, replicas: u8) {
        self.each_lease(|at, lease| {
            if let Some(lease) = lease
                && replicas & (1 << at) != 0
            {
                lease.older_than |= wait;
            }
        });
    }

    /// A wait ends. What it outlasted is over.
    fn fire(&mut self, wait: Waits) {
        self.each_lease(|_, lease| {
            if lease.is_some_and(|lease| lease.older_than & wait != 0) {
                *lease = None;
            }
        });
    }

    /// A wait is given up.
    fn stop(&mut self, wait: Waits) {
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

    /// Where a statement runs.
    fn server(&self, server: Server) -> Option<&Database> {
        match server {
            Server::Primary => Some(&self.database),
            Server::Old => self.old.as_ref(),
        }
    }

    /// Calls to Revoke at a replica fail.
    fn fail_orders_of(&mut self, at: usize) {
        for key in 0..KEYS {
            if self.revokes[key].order().is_some_and(|order| usize::from(order.by) == at) {
                self.stop(1 << key);
                self.revokes[key] = Revoke::Failed;
            }
        }
    }

    /// OK is returned. If the entry was lost before, that promises nothing until it is restored,
    /// which only those can do who hold it.
    fn acknowledge(&mut self, key: usize, may_be_lost: bool) {
        self.stop(1 << key);
        let Some(order) = self.revokes[key].order() else { return };
        let is_held = self.replicas[usize::from(order.by)].held & (1 << key) != 0;
        self.revokes[key] = match order.restores {
            _ if may_be_lost && is_held && order.history != self.database.history => Revoke::Lost,
            true => Revoke::Restored,
            false => Revoke::Acknowledged,
        };
    }

    fn drop_suspicion(&mut self, row: usize) {
        if self.suspect.is_some_and(|suspect| usize::from(suspect.row) == row) {
            self.suspect = None;
            self.stop(REMOVAL);
        }
    }
}

impl Protocol {
    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// The row that a replica writes to.
    fn row(&self, at: usize) -> usize {
        if self.breaks(Broken::RowSharedByTwo) && at == 2 { 1 } else { at }
    }

    fn loses_commits(&self) -> bool {
        matches!(self.failover, Failover::Asynchronous | Failover::SetBack)
    }

    fn sets_back(&self) -> bool {
        self.failover == Failover::SetBack
    }

    /// Returns whether a replica sees that a place is of another history.
    fn compares_histories(&self) -> bool {
        !self.sets_back() && !self.breaks(Broken::SeqWithoutHistory)
    }

    /// A call to Revoke that has just written or found its entry.
    fn order(&self, by: usize, database: &Database, asks: u8, restores: bool) -> Order {
        let (seq, history) = (database.head, database.history);
        let asked_since = !self.sets_back() || self.breaks(Broken::EarlierRenewalCounts);
        Order { by: by as u8, seq, history, asks, restores, asked_since }
    }

    /// The call begins to wait. With a rule broken, it may find at once that the index has come so
    /// far, or even that all have.
    fn begin_to_reach(&self, state: &mut State, key: usize, order: Order) {
        state.revokes[key] = Revoke::Reaching(order);
        let replica = state.replicas[usize::from(order.by)];
        if self.breaks(Broken::EarlierRenewalCounts) && replica.cursor >= order.seq {
            state.revokes[key] = Revoke::Waiting(order);
            self.start_wait(state, key, ALL);
            if self.by_members && replica.everywhere >= order.seq {
                state.acknowledge(key, self.loses_commits());
            }
        }
    }

    /// The database is about to change by a commit.
    fn commit(&self, state: &mut State, commit: Commit) {
        match (self.failover, commit) {
            (Failover::Synchronous, Commit::Waited) => {
                // The standby has this commit, and with it all before it.
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

    /// The replicas whose leases are known to be shorter than the wait of a Revoke that was told of
    /// these members.
    fn outlasted(&self, listed: u8) -> u8 {
        match self.one_longer_lease {
            true if self.breaks(Broken::WaitByOwnLeaseLength) => ALL & !(1 << 2),
            true => ALL & !(1 << 2) | listed,
            false => ALL,
        }
    }

    fn start_wait(&self, state: &mut State, key: usize, listed: u8) {
        if !self.breaks(Broken::WaitTooShort) {
            state.start(1 << key, self.outlasted(listed));
        }
    }

    /// The snapshot of a renewal's statement.
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
        // Left out where no call here waits for it, which keeps the number of states down.
        let asks = self.waits_from_commit
            || self.breaks(Broken::EarlierRenewalCounts)
            || state.revokes.iter().any(
                |revoke| matches!(revoke, Revoke::Waiting(order) if usize::from(order.by) == at),
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

    /// An answered renewal reaches its replica.
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
            // The entries come later, by a step of their own.
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

        // A seq means something within its history only.
        for key in 0..KEYS {
            let Some(order) =
                state.revokes[key].order().filter(|order| usize::from(order.by) == at)
            else {
                continue;
            };
            if began_again && order.history != reply.history && self.compares_histories() {
                if !(self.waits_from_commit && matches!(state.revokes[key], Revoke::Waiting(_))) {
                    state.stop(1 << key);
                    state.revokes[key] = Revoke::Failed;
                }
                continue;
            }
            match state.revokes[key] {
                Revoke::Reaching(order)
                    if cursor >= order.seq
                        && order.asked_since
                        && (order.history == reply.history || !self.compares_histories()) =>
                {
                    state.revokes[key] = Revoke::Waiting(order);
                    if !self.breaks(Broken::WaitFromRequest) && !self.waits_from_commit {
                        self.start_wait(state, key, reply.listed);
                    }
                }
                Revoke::Waiting(order) if self.by_members => {
                    let told = if order.asks == ALL {
                        reply.covered >= order.seq && cursor >= order.seq
                    } else {
                        (0..REPLICAS).filter(|row| order.asks & (1 << row) != 0).all(|row| {
                            state.database.rows[row].is_none_or(|applied| applied >= order.seq)
                        })
                    };
                    let is_complete = reply.settled && trusts_members;
                    if told && (is_complete || self.breaks(Broken::MembersTrustedAfterFailover)) {
                        state.acknowledge(key, self.loses_commits());
                    }
                }
                _ => {}
            }
        }

        // A call that waits is freed by a renewal that was sent after it arrived, whatever the time
        // is now.
        if let Some(Call { at: place, key, step: Step::Parked(sent_after) }) = state.call
            && usize::from(place) == at
            && (sent_after || self.breaks(Broken::FreedByEarlierRenewal))
        {
            state.call = None;
            state.active_after_acknowledged |= index & (1 << key) == 0;
        }
    }

    /// Carries out a step, if it can be made.
    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        fn when(condition: bool) -> Option<()> {
            condition.then_some(())
        }
        match action {
            Action::Ask { key, by } => {
                when(matches!(state.revokes[key], Revoke::NotCalled))?;
                when(state.replicas[by].process == Process::Member)?;
                let mut order =
                    Order { seq: 0, history: 0, ..self.order(by, &state.database, ALL, false) };
                if self.breaks(Broken::MembersListedBeforeCommit) {
                    order.asks = (0..REPLICAS)
                        .filter(|&row| state.database.rows[row].is_some())
                        .map(|row| 1 << row)
                        .sum();
                }
                if self.breaks(Broken::WaitFromRequest) {
                    self.start_wait(state, key, ALL);
                }
                state.revokes[key] = Revoke::Sent(order);
            }
            Action::Write { key, by, server, commit } => {
                let asks = match state.revokes[key] {
                    Revoke::NotCalled if !self.asks_first() => ALL,
                    Revoke::Sent(order) => {
                        when(usize::from(order.by) == by)?;
                        order.asks
                    }
                    Revoke::Failed if !self.breaks(Broken::RetryAcknowledgedFromRead) => ALL,
                    _ => return None,
                };
                when(state.replicas[by].process == Process::Member)?;
                // The revocation that is committed first is called 0.
                when(key == 0 || state.revokes[0] != Revoke::NotCalled)?;
                // An entry that is there is not written again: Retry waits for it. Unless the
                // commit's answer is what counts.
                let target = state.server(server)?;
                when(target.place[key] == 0 || self.waits_from_commit && target.head < 2)?;
                // A commit at a primary without its standby waits until it is cancelled.
                when(server == Server::Primary || commit == Commit::Cancelled)?;
                let database = match server {
                    Server::Primary => {
                        self.commit(state, commit);
                        &mut state.database
                    }
                    Server::Old => state.old.as_mut()?,
                };
                database.write(key);
                let order = self.order(by, &database.clone(), asks, false);
                self.begin_to_reach(state, key, order);
                if self.breaks(Broken::CancelledCommitAcknowledged)
                    || self.waits_from_commit && commit == Commit::Waited
                {
                    // The commit's answer alone counts.
                    state.revokes[key] = Revoke::Waiting(order);
                    self.start_wait(state, key, ALL);
                } else if self.waits_from_commit {
                    state.revokes[key] = Revoke::Failed;
                }
            }
            Action::Retry { key, by, server } => {
                when(state.revokes[key] == Revoke::Failed && !self.waits_from_commit)?;
                when(state.replicas[by].process == Process::Member)?;
                let database = state.server(server)?;
                when(database.place[key] != 0)?;
                let order = self.order(by, database, ALL, false);
                self.begin_to_reach(state, key, order);
                if self.breaks(Broken::RetryAcknowledgedFromRead) {
                    state.revokes[key] = Revoke::Waiting(order);
                    self.start_wait(state, key, ALL);
                }
            }
            Action::WaitIsOver { key } => {
                when(matches!(state.revokes[key], Revoke::Waiting(_)))?;
                state.fire(1 << key);
                state.acknowledge(key, self.loses_commits());
            }
            Action::CallerGoesAway { key } => {
                when(matches!(state.revokes[key], Revoke::Reaching(_) | Revoke::Waiting(_)))?;
                state.stop(1 << key);
                state.revokes[key] = Revoke::Failed;
            }

            Action::Send { at } => {
                let replica = &mut state.replicas[at];
                when(replica.process == Process::Member && replica.renewal == Renewal::Idle)?;
                replica.renewal = Renewal::Sent(FRESH);
                for revoke in &mut state.revokes {
                    if let Revoke::Reaching(order) = revoke
                        && usize::from(order.by) == at
                    {
                        order.asked_since = true;
                    }
                }
                if let Some(Call { at: place, step: Step::Parked(sent_after), .. }) =
                    &mut state.call
                    && usize::from(*place) == at
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
                    // A newcomer from here on. Its memory stays, and what the database lacks of it
                    // is written again.
                    if !self.breaks(Broken::EpochNotCompared) {
                        state.fail_orders_of(at);
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
                    // At a primary that was replaced meanwhile.
                    Renewal::Reading(_, reply) => reply.history != state.database.history,
                    // One that is lost on its way to the database might as well not have been sent.
                    Renewal::Idle | Renewal::Sent(_) | Renewal::Refused => false,
                })?;
                replica.renewal = Renewal::Idle;
                if let Some(Call { at: place, step: Step::Parked(sent_after), .. }) =
                    &mut state.call
                    && usize::from(*place) == at
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
                // It answers nothing before it has come as far as this.
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
                state.start(REMOVAL, 1 << row);
            }
            Action::SeeCounter => {
                when(self.breaks(Broken::RemovalWaitFromQuestion))?;
                let suspect = state.suspect.as_mut().filter(|suspect| suspect.moved)?;
                suspect.moved = false;
            }
            Action::Remove => {
                let suspect = state.suspect?;
                state.fire(REMOVAL);
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
                state.fail_orders_of(at);
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
                state.fail_orders_of(at);
                // A renewal under way may be executed; it writes to a row that no process will ask
                // for again.
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
                    // Not promised any more, but who has known it does not forget it.
                    Revoke::Lost if replica.held & (1 << key) != 0 => {}
                    _ => return None,
                }
                // What the index finds now it finds later, unless it is emptied.
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
                // Nothing tells a database that was set back that its list of members may lack
                // somebody.
                state.database = Database { history: 1, settled: self.sets_back(), ..before };
                for key in 0..KEYS {
                    if let Revoke::Reaching(order) | Revoke::Waiting(order) =
                        &mut state.revokes[key]
                        && self.sets_back()
                        && before.place[key] != 0
                    {
                        // It is in what was put back.
                        order.history = 1;
                    }
                    let acknowledged =
                        matches!(state.revokes[key], Revoke::Acknowledged | Revoke::Restored);
                    if acknowledged && state.database.place[key] == 0 && self.loses_commits() {
                        state.revokes[key] = Revoke::Lost;
                        // What is lost is promised only by those who have known it.
                        state.call = state.call.filter(|call| {
                            usize::from(call.key) != key
                                || state.replicas[usize::from(call.at)].held & (1 << key) != 0
                        });
                    }
                }
                state.settling = true;
                state.start(SETTLING, ALL);
            }
            Action::Settle => {
                when(state.settling)?;
                state.settling = false;
                state.fire(SETTLING);
                state.database.settled = true;
            }
            Action::Offer { at, key } => {
                let replica = &mut state.replicas[at];
                when(self.loses_commits() && replica.set_aside & (1 << key) != 0)?;
                when(replica.process == Process::Member)?;
                replica.set_aside &= !(1 << key);
                if state.database.place[key] == 0 {
                    state.database.write(key);
                }
                if state.revokes[key] == Revoke::Lost {
                    let order = self.order(at, &state.database, ALL, true);
                    self.begin_to_reach(state, key, order);
                }
            }
        }
        Some(())
    }

    fn asks_first(&self) -> bool {
        matches!(self.broken, Some(Broken::WaitFromRequest | Broken::MembersListedBeforeCommit))
    }

    /// The same state with the replicas in a fixed order: which one is which makes no difference.
    fn in_order(&self, state: &State) -> State {
        let sorted = match self.broken {
            Some(Broken::RowSharedByTwo | Broken::AcknowledgementSkipsAMember) => return *state,
            _ if self.one_longer_lease => REPLICAS - 1,
            _ => REPLICAS,
        };
        let mut order = [0, 1, 2];
        order[..sorted].sort_by_cached_key(|&at| {
            let orders = (0..KEYS)
                .filter(|&key| {
                    state.revokes[key].order().is_some_and(|order| usize::from(order.by) == at)
                })
                .map(|key| 1_u8 << key)
                .sum::<u8>();
            let asked = (0..KEYS)
                .filter(|&key| {
                    state.revokes[key].order().is_some_and(|order| order.asks & (1 << at) != 0)
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
                (orders, asked, suspect, call),
            )
        });
        if order == [0, 1, 2] {
            return *state;
        }
        let mut place = [0; REPLICAS];
        for (new, &old) in order.iter().enumerate() {
            place[old] = new as u8;
        }
        let mut sorted = *state;
        sorted.replicas = order.map(|at| state.replicas[at]);
        let with_rows =
            |database: Database| Database { rows: order.map(|at| database.rows[at]), ..database };
        sorted.database.rows = order.map(|at| state.database.rows[at]);
        sorted.standby = state.standby.map(with_rows);
        sorted.old = state.old.map(with_rows);
        let moved = |order: Order| Order {
            by: place[usize::from(order.by)],
            asks: (0..REPLICAS)
                .filter(|&at| order.asks & (1 << at) != 0)
                .map(|at| 1 << place[at])
                .sum(),
            ..order
        };
        sorted.revokes = state.revokes.map(|revoke| match revoke {
            Revoke::Sent(order) => Revoke::Sent(moved(order)),
            Revoke::Reaching(order) => Revoke::Reaching(moved(order)),
            Revoke::Waiting(order) => Revoke::Waiting(moved(order)),
            other => other,
        });
        sorted.suspect = state
            .suspect
            .map(|suspect| Suspect { row: place[usize::from(suspect.row)], ..suspect });
        sorted.call = state.call.map(|call| Call { at: place[usize::from(call.at)], ..call });
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
        let empty = Database { head: 0, place: [0; KEYS], rows, history: 0, settled: true };
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
        // Nothing that follows matters.
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
                        && state.old.is_some_and(|old| old.place[0] == 0)
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
