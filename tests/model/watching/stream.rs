//! The replica's end of a stream.

use super::{
    Broken, Process, State, Watching,
    state::{Answer, Count, Cursor, Incarnation, Message, QUEUE, Stream, WatchLease},
    when,
};

impl Watching {
    /// Returns the position for which a watcher is safe (rule 4).
    pub(super) fn safe(&self, stream: &Stream) -> u8 {
        let is_earlier_running =
            stream.is_earlier_running && !self.breaks(Broken::LastPositionSafeAtOnce);
        let is_over = !stream.has_running_leases()
            || (self.breaks(Broken::OnlyLastLeaseCounts) && !stream.is_last_running);
        match stream.last {
            _ if is_over => u8::MAX,
            Some(last) if !is_earlier_running => last.max(stream.confirmed),
            _ => stream.confirmed,
        }
    }

    /// Returns a stream of the replica `at` that resumes from a position.
    pub(super) fn resumed(&self, state: &State, at: usize, position: u8) -> Stream {
        Stream {
            at: at as u8,
            membership: Some(state.replicas[at].membership),
            is_open: true,
            asked: None,
            queue: [None; QUEUE],
            snapshot: None,
            sent: position,
            confirmed: position,
            last: None,
            is_last_running: false,
            is_earlier_running: false,
            answer: Answer::Idle,
        }
    }

    /// Returns whether the positions of a stream have a meaning for its replica.
    fn is_current(&self, state: &State, stream: &Stream) -> bool {
        let replica = &state.replicas[usize::from(stream.at)];
        stream.membership.is_some()
            && (stream.membership == Some(replica.membership)
                || self.breaks(Broken::NoResetAfterJoining))
            && replica.published.is_some()
            && stream.snapshot.is_none()
    }

    /// Sends a message, unless the watcher is not connected any more.
    fn push(&self, state: &mut State, stream: usize, message: Message) -> Option<()> {
        if !state.is_connected(stream) && !self.breaks(Broken::EarlierStreamHandled) {
            return Some(());
        }
        state.streams[stream].as_mut()?.push(message)
    }

    /// Receives a renewal of the watcher. If a lease may be given, begins with the answer.
    pub(super) fn answer(&self, state: &mut State, stream: usize) -> Option<()> {
        let mut it = state.streams[stream].filter(|it| it.is_open)?;
        let replica = state.replicas[usize::from(it.at)];
        when(it.answer == Answer::Idle)?;
        let asked = it.asked.take()?;
        let own = Incarnation { at: it.at, membership: replica.membership };
        if let Some(cursor) = asked
            && it.membership == Some(replica.membership)
            && (cursor.of == own || self.breaks(Broken::ConfirmationOfAnotherMembership))
        {
            it.confirmed = it.confirmed.max(cursor.position);
        }
        let has_confirmed = it.last.is_none_or(|last| it.confirmed >= last)
            || self.breaks(Broken::NextLeaseUnconfirmed);
        if replica.lease.is_some() && has_confirmed && self.is_current(state, &it) {
            it.answer = Answer::HasLease(replica.lease);
        }
        state.streams[stream] = Some(it);
        Some(())
    }

    /// Sends the entries that are published and not sent yet.
    pub(super) fn send_entries(&self, state: &mut State, stream: usize) -> Option<()> {
        let mut it = state.streams[stream].filter(|it| it.is_open)?;
        let replica = state.replicas[usize::from(it.at)];
        let published = replica.published?;
        when(self.is_current(state, &it))?;
        let answer = match it.answer {
            Answer::HasLease(lease) => Answer::HasEntries(lease, published),
            // Entries are also sent while no renewal is being answered.
            other if it.sent < published => other,
            _ => return None,
        };
        if self.breaks(Broken::LeaseSentBeforeEntries) && answer != it.answer {
            state.streams[stream] = Some(Stream { answer, ..it });
            return Some(());
        }
        let entries = replica
            .log
            .iter()
            .enumerate()
            .filter(|&(_, &position)| {
                position > it.sent.max(replica.log_begin) && position <= published
            })
            .map(|(key, _)| 1 << key)
            .sum();
        let is_new = it.sent < published;
        let of = Incarnation { at: it.at, membership: replica.membership };
        it.answer = answer;
        it.sent = it.sent.max(published);
        state.streams[stream] = Some(it);
        if is_new {
            self.push(
                state,
                stream,
                Message::Entries(entries, Cursor { of, position: published }),
            )?;
        }
        Some(())
    }

    /// Records a lease, and sends it. This and [`Self::vouch`] are under one lock.
    pub(super) fn record(&self, state: &mut State, stream: usize) -> Option<()> {
        let mut it = state.streams[stream].filter(|it| it.is_open)?;
        let replica = state.replicas[usize::from(it.at)];
        let (lease, position) = match it.answer {
            Answer::HasEntries(lease, position) => (lease, position),
            Answer::ToRecord(position) => {
                it.answer = Answer::Idle;
                state.streams[stream] = Some(it);
                self.count_next(state, stream, position);
                state.count_as(stream, &[Count::Unrecorded], Count::Last);
                return Some(());
            }
            _ => return None,
        };
        let read = if self.breaks(Broken::LeaseReadAfterEntries) { replica.lease } else { lease };
        let is_member =
            replica.process == Process::Member || self.breaks(Broken::LeaseGivenWhileLeaving);
        let is_current =
            self.is_current(state, &it) || self.breaks(Broken::LeaseOfEarlierMembership);
        let may_give = is_member && is_current;
        let (Some(read), true) = (read, may_give) else {
            state.streams[stream] = Some(Stream { answer: Answer::Idle, ..it });
            return Some(());
        };
        if position < replica.vouched && !self.breaks(Broken::LeaseBehindVouched) {
            state.streams[stream] = Some(Stream { answer: Answer::HasLease(lease), ..it });
            return Some(());
        }
        let sends_first = self.breaks(Broken::SentBeforeRecorded);
        it.answer = if sends_first { Answer::ToRecord(position) } else { Answer::Idle };
        state.streams[stream] = Some(it);
        if !sends_first {
            self.count_next(state, stream, position);
        }
        let outlives = self.breaks(Broken::OutlivesReplica);
        let watch_lease = WatchLease {
            at: it.at,
            stream: stream as u8,
            count: if sends_first { Count::Unrecorded } else { Count::Last },
            older_than: if outlives { 0 } else { read.older_than },
        };
        self.push(state, stream, Message::Lease(watch_lease))
    }

    /// Counts the end of the next lease. The last one becomes one of the earlier ones.
    fn count_next(&self, state: &mut State, stream: usize, position: u8) {
        let forgets = self.breaks(Broken::EarlierLeaseForgotten);
        let earlier = if forgets { Count::Lost } else { Count::Earlier };
        state.count_as(stream, &[Count::Last], earlier);
        if let Some(it) = &mut state.streams[stream] {
            it.is_earlier_running |= it.is_last_running && !forgets;
            it.is_last_running = true;
            it.last = Some(position);
        }
    }

    /// Begins a snapshot, because the stream is new, or because the replica has joined again.
    pub(super) fn reset(&self, state: &mut State, stream: usize) -> Option<()> {
        let it = state.streams[stream].filter(|it| it.is_open)?;
        let replica = state.replicas[usize::from(it.at)];
        let published = replica.published?;
        when(it.membership != Some(replica.membership))?;
        when(it.membership.is_none() || !self.breaks(Broken::NoResetAfterJoining))?;
        when(!matches!(it.answer, Answer::ToRecord(_)))?;
        let (mut running, mut count) = (it.has_running_leases(), Count::Earlier);
        if self.breaks(Broken::ResetForgetsLeases) {
            (running, count) = (false, Count::Lost);
        }
        let keeps_last = self.breaks(Broken::ResetKeepsLastPosition);
        let keeps_confirmed = self.breaks(Broken::ResetKeepsConfirmation);
        if !keeps_last {
            state.count_as(stream, &[Count::Last, Count::Earlier], count);
        }
        let reads_first = self.breaks(Broken::SnapshotBeforePosition);
        state.streams[stream] = Some(Stream {
            membership: Some(replica.membership),
            snapshot: Some(if reads_first { replica.index } else { published }),
            sent: 0,
            confirmed: if keeps_confirmed { it.confirmed } else { 0 },
            last: it.last.filter(|_| keeps_last),
            is_last_running: keeps_last && it.is_last_running,
            is_earlier_running: if keeps_last { it.is_earlier_running } else { running },
            answer: Answer::Idle,
            ..it
        });
        self.push(state, stream, Message::Reset)
    }

    /// Reads the snapshot.
    pub(super) fn read_page(&self, state: &mut State, stream: usize) -> Option<()> {
        let mut it = state.streams[stream].filter(|it| it.is_open)?;
        let replica = state.replicas[usize::from(it.at)];
        when(it.membership == Some(replica.membership))?;
        let published = replica.published?;
        let first = it.snapshot.take()?;
        let (entries, position) = match self.breaks(Broken::SnapshotBeforePosition) {
            true => (first, published),
            false => (replica.index, first),
        };
        it.sent = position;
        state.streams[stream] = Some(it);
        let of = Incarnation { at: it.at, membership: replica.membership };
        self.push(state, stream, Message::Page(entries, Cursor { of, position }))
    }

    /// Lets the log forget all of its entries.
    pub(super) fn trim(&self, state: &mut State, at: usize) -> Option<()> {
        let replica = &mut state.replicas[at];
        let published = replica.published?;
        when(self.trims && replica.log_begin < published)?;
        // A stream that is being served is cut off instead, which `notice_end` covers.
        let is_behind = |stream: &super::state::Stream| {
            usize::from(stream.at) == at && stream.is_open && stream.sent < published
        };
        when(!state.streams.iter().flatten().any(is_behind))?;
        replica.log_begin = published;
        Some(())
    }

    /// Notices that a stream has ended.
    pub(super) fn notice_end(&self, state: &mut State, stream: usize) -> Option<()> {
        when(state.streams[stream].is_some_and(|it| it.is_open))?;
        when(!state.is_connected(stream))?;
        self.close(state, stream);
        if self.breaks(Broken::EndedStreamForgotten) {
            state.count_as(stream, &[Count::Last, Count::Earlier], Count::Lost);
            state.streams[stream] = None;
        }
        state.tidy(stream);
        Some(())
    }

    fn close(&self, state: &mut State, stream: usize) {
        if let Some(it) = &mut state.streams[stream] {
            it.is_open = false;
            it.asked = None;
            it.answer = Answer::Idle;
            it.snapshot = None;
            it.sent = 0;
        }
    }

    /// Ends a stream because its replica has ended.
    pub(super) fn break_off(&self, state: &mut State, stream: usize) {
        state.streams[stream] = None;
        if state.is_connected(stream) {
            state.watcher.stream = None;
        }
    }

    pub(super) fn last_is_over(&self, state: &mut State, stream: usize) -> Option<()> {
        when(state.streams[stream].is_some_and(|it| it.is_last_running))?;
        state.streams[stream].as_mut()?.is_last_running = false;
        state.count_is_over(stream, Count::Last);
        state.tidy(stream);
        Some(())
    }

    pub(super) fn earlier_are_over(&self, state: &mut State, stream: usize) -> Option<()> {
        when(state.streams[stream].is_some_and(|it| it.is_earlier_running))?;
        state.streams[stream].as_mut()?.is_earlier_running = false;
        state.count_is_over(stream, Count::Earlier);
        state.tidy(stream);
        Some(())
    }
}
