//! The replicas: revoking, renewing, vouching, and membership. [`super::super::protocol`] has more
//! of this.

use super::{
    Broken, FRESH, KEYS, PendingRevoke, Process, REMOVAL, REPLICAS, Renewal, Renewals, Revoke,
    SETTLING, State, Watching,
    state::{Count, Lease, Reply},
    when,
};

const ALL: u8 = 0b11;

impl Watching {
    // Revoke.

    pub(super) fn write(&self, state: &mut State, key: usize) -> Option<()> {
        when(matches!(state.revokes[key], Revoke::NotCalled | Revoke::Failed))?;
        when(state.replicas[0].process == Process::Member)?;
        when(!self.sets_back || key > 0)?;
        state.database.head += 1;
        state.database.positions[key] = state.database.head;
        state.revokes[key] = Revoke::Reaching(PendingRevoke {
            seq: state.database.head,
            membership: state.replicas[0].membership,
            history: state.database.history,
            asked_since: !self.sets_back,
        });
        Some(())
    }

    pub(super) fn wait_is_over(&self, state: &mut State, key: usize) -> Option<()> {
        let Revoke::Waiting(pending) = state.revokes[key] else { return None };
        when(self.by_wait)?;
        state.end_wait(1 << key);
        self.acknowledge(state, key, pending);
        Some(())
    }

    fn acknowledge(&self, state: &mut State, key: usize, pending: PendingRevoke) {
        state.abandon_wait(1 << key);
        let is_kept = pending.history == state.database.history || self.is_known(state, key);
        state.revokes[key] = if is_kept { Revoke::Acknowledged } else { Revoke::Lost };
    }

    /// Returns whether every replica knows a revocation that the database has lost.
    fn is_known(&self, state: &State, key: usize) -> bool {
        state.replicas[..self.replicas].iter().all(|replica| replica.index & (1 << key) != 0)
    }

    fn fail_revokes(&self, state: &mut State) {
        for key in 0..KEYS {
            if matches!(state.revokes[key], Revoke::Reaching(_) | Revoke::Waiting(_)) {
                state.abandon_wait(1 << key);
                state.revokes[key] = Revoke::Failed;
            }
        }
    }

    // Vouching.

    /// Vouches for a position, and returns it. This and [`Self::record`] are under one lock.
    fn vouch(&self, state: &mut State, at: usize) -> u8 {
        let replica = &state.replicas[at];
        let published = replica.published.unwrap_or(0);
        if self.breaks(Broken::ReportsWithoutAsking) {
            return published;
        }
        let mut safe = if replica.has_unknown_leases { 0 } else { published };
        for stream in state.streams.iter().flatten().filter(|it| usize::from(it.at) == at) {
            safe = safe.min(self.safe(stream));
        }
        let replica = &mut state.replicas[at];
        replica.vouched = replica.vouched.max(safe);
        replica.vouched
    }

    // Renewals.

    pub(super) fn send(&self, state: &mut State, at: usize) -> Option<()> {
        let replica = state.replicas[at];
        when(replica.process == Process::Member && replica.renewal == Renewal::Idle)?;
        // Until it has read the feed, the replica reports the head at its joining.
        let reports = match replica.published {
            Some(_) => self.vouch(state, at),
            None => replica.vouched,
        };
        state.replicas[at].renewal = Renewal::Sent(FRESH, reports);
        if at == 0 {
            for revoke in &mut state.revokes {
                if let Revoke::Reaching(pending) = revoke {
                    pending.asked_since = true;
                }
            }
        }
        if self.renewals != Renewals::InSteps {
            self.execute(state, at)?;
        }
        while self.renewals == Renewals::AtOnce && state.replicas[at].renewal != Renewal::Idle {
            self.receive(state, at)?;
        }
        Some(())
    }

    pub(super) fn execute(&self, state: &mut State, at: usize) -> Option<()> {
        let Renewal::Sent(lease, reports) = state.replicas[at].renewal else { return None };
        if state.database.rows[at].is_none() {
            state.replicas[at].renewal = Renewal::Refused;
            return Some(());
        }
        state.database.rows[at] = Some(reports);
        if at == 1 && state.is_suspected {
            state.is_suspected = false;
            state.abandon_wait(REMOVAL);
        }
        let asks = at == 0 && state.revokes.iter().any(|it| matches!(it, Revoke::Waiting(_)));
        let skipped = self.breaks(Broken::OwnWatchersSkipped).then_some(at);
        let rows = (0..REPLICAS).filter(|&row| Some(row) != skipped);
        let everywhere =
            rows.filter_map(|row| state.database.rows[row]).min().unwrap_or(state.database.head);
        let reply = Reply {
            head: state.database.head,
            positions: state.database.positions,
            everywhere: if asks { everywhere } else { 0 },
        };
        state.replicas[at].renewal = Renewal::Answered(lease, reply);
        Some(())
    }

    /// Carries out one step of the receipt of an answer.
    pub(super) fn receive(&self, state: &mut State, at: usize) -> Option<()> {
        let (lease, reply, done) = match state.replicas[at].renewal {
            Renewal::Refused => {
                self.end_membership(state, at);
                return Some(());
            }
            Renewal::Answered(lease, reply) => (lease, reply, 0),
            Renewal::Received(lease, reply, done) => (lease, reply, done),
            Renewal::Idle | Renewal::Sent(..) => return None,
        };
        type Step = fn(&Watching, &mut State, usize, Option<Lease>, Reply);
        let steps: [Step; 3] = match self.broken {
            Some(Broken::LeaseBeforePublished) => [Self::apply, Self::finish, Self::publish],
            Some(Broken::PublishedBeforeIndex) => [Self::publish, Self::apply, Self::finish],
            _ => [Self::apply, Self::publish, Self::finish],
        };
        if state.replicas[at].published == Some(reply.head) && done == 0 {
            // There is nothing new, so the other steps would change nothing.
            state.replicas[at].renewal = Renewal::Idle;
            self.finish(state, at, lease, reply);
            return Some(());
        }
        steps[usize::from(done)](self, state, at, lease, reply);
        state.replicas[at].renewal =
            if done == 2 { Renewal::Idle } else { Renewal::Received(lease, reply, done + 1) };
        Some(())
    }

    fn apply(&self, state: &mut State, at: usize, _: Option<Lease>, reply: Reply) {
        for key in (0..KEYS).filter(|&key| reply.positions[key] > 0) {
            state.replicas[at].index |= 1 << key;
        }
    }

    fn publish(&self, state: &mut State, at: usize, _: Option<Lease>, reply: Reply) {
        let replica = &mut state.replicas[at];
        for key in 0..KEYS {
            replica.log[key] = replica.log[key].max(reply.positions[key]);
        }
        if replica.published.is_none() {
            // What the index has is in the snapshot of each stream.
            replica.log_begin = reply.head;
        }
        replica.published = Some(reply.head);
    }

    /// Takes the lease, and then answers the calls to Revoke that the renewal allows to answer.
    fn finish(&self, state: &mut State, at: usize, lease: Option<Lease>, reply: Reply) {
        if lease.is_some() {
            state.replicas[at].lease = lease;
        }
        if at != 0 {
            return;
        }
        let everywhere = match self.is_sqlite {
            true => self.vouch(state, 0),
            false if state.replicas[0].doubts_register => 0,
            false => reply.everywhere,
        };
        for key in 0..KEYS {
            match state.revokes[key] {
                Revoke::Reaching(pending) if reply.head >= pending.seq && pending.asked_since => {
                    state.revokes[key] = Revoke::Waiting(pending);
                    self.begin_to_wait(state, key);
                    if self.is_sqlite && everywhere >= pending.seq {
                        self.acknowledge(state, key, pending);
                    }
                }
                Revoke::Waiting(pending) if self.by_members && everywhere >= pending.seq => {
                    self.acknowledge(state, key, pending);
                }
                _ => {}
            }
        }
    }

    fn begin_to_wait(&self, state: &mut State, key: usize) {
        if self.breaks(Broken::WaitOnSqlite) || !self.by_wait {
            return;
        }
        state.begin_wait(1 << key, ALL);
        if self.breaks(Broken::OutlivesReplica) {
            state.keep_watch_leases(|lease| {
                lease.older_than = 0;
                true
            });
        }
    }

    // Membership.

    fn end_membership(&self, state: &mut State, at: usize) {
        let replica = &mut state.replicas[at];
        replica.renewal = Renewal::Idle;
        replica.lease = None;
        replica.process = Process::Removed;
        replica.published = None;
        if at == 0 {
            self.fail_revokes(state);
        }
    }

    pub(super) fn join(&self, state: &mut State, at: usize) -> Option<()> {
        when(state.replicas[at].process == Process::Removed)?;
        when(state.database.rows[at].is_none())?;
        state.database.rows[at] = Some(state.database.head);
        let replica = &mut state.replicas[at];
        replica.process = Process::Member;
        replica.membership += 1;
        replica.vouched = state.database.head;
        replica.log = [0; KEYS];
        replica.log_begin = 0;
        replica.doubts_register = state.is_settling;
        Some(())
    }

    pub(super) fn suspect(&self, state: &mut State) -> Option<()> {
        when(state.removals < self.removals && !state.is_suspected)?;
        when(state.database.rows[1].is_some())?;
        state.is_suspected = true;
        state.begin_wait(REMOVAL, 1 << 1);
        Some(())
    }

    pub(super) fn remove(&self, state: &mut State) -> Option<()> {
        when(state.is_suspected)?;
        state.is_suspected = false;
        state.removals += 1;
        state.end_wait(REMOVAL);
        state.database.rows[1] = None;
        Some(())
    }

    pub(super) fn leave(&self, state: &mut State) -> Option<()> {
        let replica = &mut state.replicas[1];
        when(self.leaves && replica.process == Process::Member)?;
        replica.process = Process::Leaving;
        replica.lease = None;
        replica.renewal = Renewal::Idle;
        Some(())
    }

    pub(super) fn delete_row(&self, state: &mut State) -> Option<()> {
        when(state.replicas[1].process == Process::Leaving)?;
        let mut own = state.streams.iter().flatten().filter(|stream| stream.at == 1);
        when(
            self.breaks(Broken::RowDeletedWhileLeasesRun)
                || own.all(|stream| !stream.has_running_leases()),
        )?;
        state.replicas[1].process = Process::Down;
        state.database.rows[1] = None;
        Some(())
    }

    pub(super) fn crash(&self, state: &mut State, at: usize) -> Option<()> {
        when(state.restarts < self.restarts && state.replicas[at].process == Process::Member)?;
        state.restarts += 1;
        let replica = &mut state.replicas[at];
        replica.process = Process::Down;
        replica.lease = None;
        replica.renewal = Renewal::Idle;
        replica.index = 0;
        replica.log = [0; KEYS];
        replica.published = None;
        replica.vouched = 0;
        for stream in 0..state.streams.len() {
            if state.streams[stream].is_some_and(|it| usize::from(it.at) == at) {
                state.count_as(stream, &[Count::Last, Count::Earlier], Count::Lost);
                self.break_off(state, stream);
            }
        }
        if at == 0 {
            self.fail_revokes(state);
        }
        Some(())
    }

    /// Starts a process again. On PostgreSQL, the row of the process before has been removed. A
    /// process may start earlier, but until then that row holds up acknowledgements.
    pub(super) fn start(&self, state: &mut State, at: usize) -> Option<()> {
        when(state.restarts > 0 && state.replicas[at].process == Process::Down)?;
        if self.is_sqlite {
            state.replicas[at].membership += 1;
            state.replicas[at].process = Process::Member;
            state.replicas[at].has_unknown_leases = !self.breaks(Broken::RestartForgetsLeases);
            return Some(());
        }
        state.replicas[at].process = Process::Removed;
        self.join(state, at)
    }

    pub(super) fn unknown_leases_are_over(&self, state: &mut State) -> Option<()> {
        let replica = state.replicas.iter_mut().find(|replica| replica.has_unknown_leases)?;
        replica.has_unknown_leases = false;
        state.keep_watch_leases(|lease| lease.count != Count::Lost);
        Some(())
    }

    // A set-back.

    pub(super) fn begin_with_a_revocation(&self, state: &mut State) {
        state.database.head = 1;
        state.database.positions[0] = 1;
        state.revokes[0] = Revoke::Acknowledged;
        state.watcher.copy = 1;
        for at in 0..self.replicas {
            state.database.rows[at] = Some(1);
            let replica = &mut state.replicas[at];
            replica.index = 1;
            replica.log[0] = 1;
            replica.published = Some(1);
            replica.vouched = 1;
        }
    }

    pub(super) fn set_back(&self, state: &mut State) -> Option<()> {
        when(self.sets_back && state.database.history == 0)?;
        state.database =
            super::Database { head: 0, positions: [0; KEYS], rows: [None; REPLICAS], history: 1 };
        for key in 0..KEYS {
            if state.is_acknowledged(key) && !self.is_known(state, key) {
                state.revokes[key] = Revoke::Lost;
                state.validation = state.validation.filter(|it| usize::from(it.key) != key);
            }
        }
        state.is_settling = true;
        state.begin_wait(SETTLING, ALL);
        Some(())
    }

    /// Ends W after a set-back, so that the register is complete again.
    pub(super) fn settle(&self, state: &mut State) -> Option<()> {
        when(state.is_settling)?;
        state.is_settling = false;
        state.end_wait(SETTLING);
        for replica in &mut state.replicas {
            replica.doubts_register = false;
        }
        Some(())
    }
}
