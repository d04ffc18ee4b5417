//! The watcher: its end of the streams, and local validation.

use super::{
    Broken, State, Watching,
    state::{Message, STREAMS, Stream, Validation},
    when,
};

impl Watching {
    /// Sends a renewal, with the position up to which the watcher has applied the entries.
    pub(super) fn ask(&self, state: &mut State) -> Option<()> {
        let stream = usize::from(state.watcher.stream?);
        let it = state.streams[stream].as_mut()?;
        // One renewal at a time is on its way, which keeps the model small.
        when(it.asked.is_none() && it.answer == super::state::Answer::Idle)?;
        it.asked = Some(state.watcher.cursor);
        Some(())
    }

    /// Handles the next message of the stream.
    pub(super) fn handle(&self, state: &mut State) -> Option<()> {
        let stream = usize::from(state.watcher.stream?);
        if state.watcher.is_resetting {
            state.watcher.is_resetting = false;
            state.watcher.lease = None;
            state.validation = None;
            return Some(());
        }
        let message = state.streams[stream].as_mut()?.pop()?;
        self.take(state, message);
        Some(())
    }

    fn take(&self, state: &mut State, message: Message) {
        let watcher = &mut state.watcher;
        match message {
            Message::Reset => {
                watcher.copy = 0;
                watcher.cursor = None;
                watcher.is_resetting = self.breaks(Broken::DroppedBeforeLeaseEnds);
                if !watcher.is_resetting {
                    watcher.lease = None;
                }
                // A check notices that its lease was ended.
                let checks_deadline_only = matches!(
                    self.broken,
                    Some(Broken::ResetUnnoticed | Broken::LeaseCheckedBeforeLookUp)
                ) || watcher.is_resetting;
                if !checks_deadline_only {
                    state.validation = None;
                }
            }
            Message::Page(entries, cursor) | Message::Entries(entries, cursor) => {
                watcher.copy |= entries;
                watcher.cursor = Some(cursor);
            }
            Message::Lease(lease) => watcher.lease = Some(lease),
        }
    }

    pub(super) fn handle_lease(&self, state: &mut State) -> Option<()> {
        when(self.breaks(Broken::LeaseTakenBeforeEntries))?;
        let stream = usize::from(state.watcher.stream?);
        let it = state.streams[stream].as_mut()?;
        let is_lease = |message: &Option<Message>| matches!(message, Some(Message::Lease(_)));
        let index = it.queue.iter().position(is_lease)?;
        let message = it.queue[index]?;
        it.remove(index);
        self.take(state, message);
        Some(())
    }

    pub(super) fn handle_replaced(&self, state: &mut State, stream: usize) -> Option<()> {
        when(self.breaks(Broken::EarlierStreamHandled) && !state.is_connected(stream))?;
        let message = state.streams[stream].as_mut()?.pop()?;
        self.take(state, message);
        Some(())
    }

    /// Connects to a replica, with the cursor. The stream before is not read any more.
    pub(super) fn reconnect(&self, state: &mut State, to: u8, resumes: bool) -> Option<()> {
        when(state.reconnects < self.reconnects)?;
        let at = usize::from(to);
        let replica = state.replicas[at];
        when(replica.process == super::Process::Member)?;
        let new = (0..STREAMS).find(|&stream| state.streams[stream].is_none())?;
        if let Some(old) = state.watcher.stream
            && let Some(old) = &mut state.streams[usize::from(old)]
            && !self.breaks(Broken::EarlierStreamHandled)
        {
            old.queue = Default::default();
        }
        let own = self.incarnation(state, at);
        let may_resume = |cursor: &super::state::Cursor| {
            let has_entries =
                cursor.position >= replica.log_begin || self.breaks(Broken::ResumesAcrossGap);
            let is_own = cursor.of == own || self.breaks(Broken::CursorOfAnotherMembership);
            is_own && has_entries && replica.published.is_some()
        };
        let stream = match state.watcher.cursor.filter(may_resume) {
            Some(cursor) if resumes => self.resumed(state, at, cursor.position),
            None if resumes => return None,
            _ => Stream { membership: None, ..self.resumed(state, at, 0) },
        };
        state.streams[new] = Some(stream);
        state.watcher.stream = Some(new as u8);
        state.watcher.is_resetting = false;
        state.reconnects += 1;
        Some(())
    }

    // Local validation.

    pub(super) fn begin(&self, state: &mut State, key: usize) -> Option<()> {
        when(state.is_acknowledged(key) && state.validation.is_none())?;
        let lease = state.watcher.lease;
        let checks_now = self.breaks(Broken::LeaseCheckedBeforeLookUp);
        when(lease.is_some() || (self.answers_anyway() && !checks_now))?;
        state.validation = Some(Validation { key: key as u8, lease, found_nothing: false });
        Some(())
    }

    /// Returns whether a validation may give an answer although it has loaded no lease.
    pub(super) fn answers_anyway(&self) -> bool {
        matches!(
            self.broken,
            Some(
                Broken::AnswersWithoutLease
                    | Broken::LeaseLoadedAfterLookUp
                    | Broken::LeaseCheckedBeforeLookUp
            )
        )
    }

    pub(super) fn look_up(&self, state: &mut State) -> Option<()> {
        let validation = state.validation.filter(|it| !it.found_nothing)?;
        let found = state.watcher.copy & (1 << validation.key) != 0;
        state.validation = (!found).then_some(Validation { found_nothing: true, ..validation });
        if !found && self.breaks(Broken::LeaseCheckedBeforeLookUp) {
            state.is_violated = true;
        }
        Some(())
    }

    pub(super) fn check(&self, state: &mut State) -> Option<()> {
        let validation = state.validation.filter(|it| it.found_nothing)?;
        let lease = match self.broken {
            Some(Broken::LeaseLoadedAfterLookUp) => state.watcher.lease,
            _ => validation.lease,
        };
        state.validation = None;
        state.is_violated = lease.is_some() || self.breaks(Broken::AnswersWithoutLease);
        Some(())
    }
}
