//! The state of the model, and the two ways in which a lease ends: a wait outlasts it, or the
//! replica that gave it has counted its time.

pub const REPLICAS: usize = 2;
pub const KEYS: usize = 2;
pub const STREAMS: usize = 2;
/// The largest number of messages on their way to the watcher.
pub const QUEUE: usize = 2;

/// A set of running waits, with one bit for each: W of revocations 0 and 1, the wait before a
/// removal, and the wait after a set-back.
pub type Waits = u8;
pub const REMOVAL: Waits = 1 << 2;
pub const SETTLING: Waits = 1 << 3;

/// The lease of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The running waits that began after the lease was asked for.
    pub older_than: Waits,
}

pub const FRESH: Option<Lease> = Some(Lease { older_than: 0 });

/// The replica's count of the end of a watch lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Count {
    /// The lease was sent and is not recorded. This occurs only if a rule is broken.
    Unrecorded,
    /// It is the last lease of its stream.
    Last,
    /// It is one of the leases before the last one. They are counted together.
    Earlier,
    /// The process that counted has ended, or has forgotten the lease.
    Lost,
}

/// A watch lease. It ends together with the replica's lease from which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchLease {
    pub at: u8,
    pub stream: u8,
    pub count: Count,
    pub older_than: Waits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    Member,
    /// The process has lost its row, but not its memory, and has to join again.
    Removed,
    /// The process has ended its lease for good, and waits until it may delete its row.
    Leaving,
    /// The process has ended. It may start again, with an empty memory.
    Down,
}

/// What a renewal reads, in one snapshot of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    pub head: u8,
    pub positions: [u8; KEYS],
    /// The position that every member has reported. Zero if the replica has no use for it.
    pub everywhere: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewal {
    Idle,
    /// It is on its way to the database, and reports a position.
    Sent(Option<Lease>, u8),
    /// It is committed, and the answer is on its way.
    Answered(Option<Lease>, Reply),
    /// There was no row; the answer is on its way.
    Refused,
    /// The answer has arrived, and so many of its steps are done.
    Received(Option<Lease>, Reply, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    pub process: Process,
    /// The number of memberships before this one.
    pub membership: u8,
    /// The revocations in the index.
    pub index: u8,
    /// The position at which each revocation was published in this membership; zero if it was not.
    pub log: [u8; KEYS],
    /// The log has no entries up to this position any more.
    pub log_begin: u8,
    /// The published position. `None` until the feed has been read to its end in this membership.
    pub published: Option<u8>,
    pub lease: Option<Lease>,
    pub renewal: Renewal,
    /// The latest position for which the replica has vouched in this membership.
    pub vouched: u8,
    /// True if the database may have been set back, so that the register may be incomplete.
    pub doubts_register: bool,
    /// True if watch leases may run that an earlier process has given. Used on SQLite.
    pub has_unknown_leases: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    pub head: u8,
    /// The position of each revocation; zero if there is none.
    pub positions: [u8; KEYS],
    /// The position that each member has reported.
    pub rows: [Option<u8>; REPLICAS],
    /// The number of set-backs.
    pub history: u8,
}

/// A call to Revoke at replica 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingRevoke {
    pub seq: u8,
    pub membership: u8,
    pub history: u8,
    /// True if a renewal was sent since the entry was written, or if that makes no difference.
    pub asked_since: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revoke {
    NotCalled,
    /// The entry is committed, and the replica has not applied it.
    Reaching(PendingRevoke),
    /// The replica has applied the entry, and W is running.
    Waiting(PendingRevoke),
    Acknowledged,
    Failed,
    /// The revocation was acknowledged, a set-back has lost it, and not every replica knows it.
    Lost,
}

/// A membership of a replica. A cursor names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    pub at: u8,
    pub membership: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub of: Incarnation,
    pub position: u8,
}

/// A message to the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Reset,
    /// The snapshot.
    Page(u8, Cursor),
    /// The entries up to a position.
    Entries(u8, Cursor),
    Lease(WatchLease),
}

/// The replica's work on the answer to a renewal of a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Idle,
    /// The replica has read its own lease.
    HasLease(Option<Lease>),
    /// It has also sent all entries up to this position.
    HasEntries(Option<Lease>, u8),
    /// The lease was sent, and is to be recorded. This occurs only if a rule is broken.
    ToRecord(u8),
}

/// A stream, as its replica knows it, and the messages on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    pub at: u8,
    /// The membership in which the positions of this stream have a meaning. `None` if the stream
    /// has to begin with a reset.
    pub membership: Option<u8>,
    /// False once the replica has noticed that the stream has ended.
    pub is_open: bool,
    /// A renewal on its way to the replica, with the cursor that it confirms.
    pub asked: Option<Option<Cursor>>,
    pub queue: [Option<Message>; QUEUE],
    /// The snapshot is being read: the position that was read first. With
    /// `Broken::SnapshotBeforePosition`: the revocations that were read first.
    pub snapshot: Option<u8>,
    pub sent: u8,
    pub confirmed: u8,
    /// The position of the last lease in this membership.
    pub last: Option<u8>,
    pub is_last_running: bool,
    pub is_earlier_running: bool,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watcher {
    pub stream: Option<u8>,
    pub copy: u8,
    pub cursor: Option<Cursor>,
    pub lease: Option<WatchLease>,
    /// True between the two steps of a reset. Used only if a rule is broken.
    pub is_resetting: bool,
}

/// A local validation that began after the revocation of `key` was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Validation {
    pub key: u8,
    pub lease: Option<WatchLease>,
    pub found_nothing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub replicas: [Replica; REPLICAS],
    pub database: Database,
    pub revokes: [Revoke; KEYS],
    pub streams: [Option<Stream>; STREAMS],
    pub watcher: Watcher,
    pub validation: Option<Validation>,
    /// True while replica 0 waits in order to remove replica 1.
    pub is_suspected: bool,
    /// True while a replica counts W after a set-back.
    pub is_settling: bool,
    pub removals: u8,
    pub restarts: u8,
    pub reconnects: u8,
    pub is_violated: bool,
}

impl Stream {
    /// Appends a message. Returns `None` if the model has no room for it.
    pub fn push(&mut self, message: Message) -> Option<()> {
        *self.queue.iter_mut().find(|place| place.is_none())? = Some(message);
        Some(())
    }

    pub fn pop(&mut self) -> Option<Message> {
        let first = self.queue[0]?;
        self.remove(0);
        Some(first)
    }

    pub fn remove(&mut self, index: usize) {
        self.queue[index..].rotate_left(1);
        self.queue[QUEUE - 1] = None;
    }

    pub fn has_running_leases(&self) -> bool {
        self.is_last_running || self.is_earlier_running
    }
}

impl State {
    /// Calls `change` with every lease and the replica that asked for it, and removes the leases
    /// for which it returns false.
    fn keep_leases(&mut self, mut keep: impl FnMut(usize, &mut Waits) -> bool) {
        for (at, replica) in self.replicas.iter_mut().enumerate() {
            keep_lease(&mut replica.lease, at, &mut keep);
            match &mut replica.renewal {
                Renewal::Sent(lease, _)
                | Renewal::Answered(lease, _)
                | Renewal::Received(lease, ..) => keep_lease(lease, at, &mut keep),
                Renewal::Idle | Renewal::Refused => {}
            }
        }
        for stream in self.streams.iter_mut().flatten() {
            if let Answer::HasLease(lease) | Answer::HasEntries(lease, _) = &mut stream.answer {
                keep_lease(lease, usize::from(stream.at), &mut keep);
            }
        }
        self.keep_watch_leases(|lease| keep(usize::from(lease.at), &mut lease.older_than));
    }

    /// Calls `keep` with every watch lease, wherever it is, and removes the leases for which it
    /// returns false.
    pub fn keep_watch_leases(&mut self, mut keep: impl FnMut(&mut WatchLease) -> bool) {
        for stream in self.streams.iter_mut().flatten() {
            for index in (0..QUEUE).rev() {
                if let Some(Message::Lease(lease)) = &mut stream.queue[index]
                    && !keep(lease)
                {
                    stream.remove(index);
                }
            }
        }
        let held =
            [Some(&mut self.watcher.lease), self.validation.as_mut().map(|it| &mut it.lease)];
        for lease in held.into_iter().flatten() {
            if lease.as_mut().is_some_and(|lease| !keep(lease)) {
                *lease = None;
            }
        }
    }

    /// Begins a wait, which outlasts every lease of `replicas` that was asked for before.
    pub fn begin_wait(&mut self, wait: Waits, replicas: u8) {
        self.keep_leases(|at, older_than| {
            if replicas & (1 << at) != 0 {
                *older_than |= wait;
            }
            true
        });
    }

    /// Ends a wait, and with it the leases that it has outlasted.
    pub fn end_wait(&mut self, wait: Waits) {
        self.keep_leases(|_, older_than| *older_than & wait == 0);
    }

    /// Abandons a wait, which then ends no lease.
    pub fn abandon_wait(&mut self, wait: Waits) {
        self.keep_leases(|_, older_than| {
            *older_than &= !wait;
            true
        });
    }

    /// Lets the leases of a stream be counted in another way.
    pub fn count_as(&mut self, stream: usize, from: &[Count], count: Count) {
        self.keep_watch_leases(|lease| {
            if usize::from(lease.stream) == stream && from.contains(&lease.count) {
                lease.count = count;
            }
            true
        });
    }

    /// Ends the leases of a stream whose time the replica has counted.
    pub fn count_is_over(&mut self, stream: usize, count: Count) {
        self.keep_watch_leases(|lease| usize::from(lease.stream) != stream || lease.count != count);
    }

    /// Forgets an ended stream once all of its leases are over.
    pub fn tidy(&mut self, stream: usize) {
        let is_done = |it: &Stream| !it.is_open && !it.has_running_leases();
        self.streams[stream] = self.streams[stream].filter(|it| !is_done(it));
    }

    pub fn is_connected(&self, stream: usize) -> bool {
        self.watcher.stream.is_some_and(|own| usize::from(own) == stream)
    }

    pub fn is_acknowledged(&self, key: usize) -> bool {
        self.revokes[key] == Revoke::Acknowledged
    }
}

fn keep_lease(
    lease: &mut Option<Lease>,
    at: usize,
    keep: &mut impl FnMut(usize, &mut Waits) -> bool,
) {
    if lease.as_mut().is_some_and(|lease| !keep(at, &mut lease.older_than)) {
        *lease = None;
    }
}
