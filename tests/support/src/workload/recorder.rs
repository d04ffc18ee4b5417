//! Records the calls and faults of a run.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::workload::history::{
    Answer, Ask, Call, Fault, Healed, History, Moment, Outage, Session, SessionNumber, SetBack,
    TokenNumber,
};

/// Collects a history, and keeps the text of each token.
pub struct Recorder {
    start: Instant,
    /// The system's monotonic clock just before and just after `start`.
    monotonic: (Duration, Duration),
    recorded: Mutex<Recorded>,
}

#[derive(Default)]
struct Recorded {
    history: History,
    texts: Vec<String>,
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap()
}

impl Recorder {
    /// Starts a recording. `history` holds what is known of the run in advance.
    pub fn new(history: History) -> Self {
        let before = monotonic();
        let start = Instant::now();
        Self {
            start,
            monotonic: (before, monotonic()),
            recorded: Mutex::new(Recorded { history, texts: vec![] }),
        }
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap()
    }

    /// Returns the time since the run began.
    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }

    /// Converts instants of the system's monotonic clock, by which another process has measured the
    /// beginning and the end of a call. The results are not later than the beginning, and not
    /// earlier than the end.
    pub fn span(&self, begin: Duration, end: Duration) -> (Moment, Moment) {
        let (before, after) = self.monotonic;
        (begin.saturating_sub(after), end.saturating_sub(before))
    }

    /// Records a call.
    pub fn call(&self, call: Call) {
        self.recorded().history.calls.push(call);
    }

    /// Records a fault that began at `from` and has just ended.
    pub fn fault(&self, from: Moment, what: String) {
        let to = self.now();
        self.recorded().history.faults.push(Fault { what, from, to });
    }

    /// Records that the database was set back, between `from` and now, to its state at `kept`.
    pub fn set_back(&self, kept: Moment, from: Moment) {
        let to = self.now();
        self.recorded().history.set_backs.push(SetBack { kept, from, to });
    }

    /// Records a session, and returns its number.
    pub fn session(&self, session: Session) -> SessionNumber {
        let sessions = &mut self.recorded().history.sessions;
        sessions.push(session);
        SessionNumber(sessions.len() - 1)
    }

    /// Records a token and its text, and returns its number.
    pub fn token(&self, session: SessionNumber, text: String) -> TokenNumber {
        let mut recorded = self.recorded();
        recorded.history.tokens.push(session);
        recorded.texts.push(text);
        TokenNumber(recorded.texts.len() - 1)
    }

    /// Returns the time at which a replica first answered a call that created a session. Only calls
    /// that began at `since` or later count.
    pub fn created_since(&self, replica: usize, since: Moment) -> Option<Moment> {
        let recorded = self.recorded();
        let mut calls = recorded.history.calls.iter();
        let is_created = |call: &&Call| (&call.ask, &call.answer) == (&Ask::Create, &Answer::Done);
        calls
            .find(|call| call.replica == replica && call.begin >= since && is_created(call))
            .map(|call| call.end)
    }

    /// Returns the number of tokens that were issued.
    pub fn tokens(&self) -> usize {
        self.recorded().texts.len()
    }

    /// Returns the text of a token.
    pub fn text(&self, token: TokenNumber) -> String {
        self.recorded().texts[token.0].clone()
    }

    /// Returns all tokens of these sessions.
    pub fn tokens_of(&self, sessions: &[SessionNumber]) -> Vec<TokenNumber> {
        let recorded = self.recorded();
        let tokens = recorded.history.tokens.iter().enumerate();
        tokens
            .filter(|(_, session)| sessions.contains(session))
            .map(|(token, _)| TokenNumber(token))
            .collect()
    }

    /// Records that from now on the process of a replica may be down.
    pub fn begin_outage(&self, replica: usize) {
        let from = self.now();
        self.recorded().history.outages.push(Outage { replica, from, to: None });
    }

    /// Records that the process of a replica runs again.
    pub fn end_outage(&self, replica: usize) {
        let now = self.now();
        let outages = &mut self.recorded().history.outages;
        for outage in outages.iter_mut().filter(|outage| outage.replica == replica) {
            outage.to.get_or_insert(now);
        }
    }

    /// Records that no fault is in effect from now on, that `replicas` and `watchers` must answer,
    /// and that the processes of `fallen` have ended although the test did not end them.
    pub fn set_healed(&self, replicas: Vec<usize>, watchers: Vec<usize>, fallen: Vec<usize>) {
        let at = self.now();
        let mut recorded = self.recorded();
        let tokens = recorded.texts.len();
        recorded.history.healed = Some(Healed { at, replicas, watchers, tokens });
        recorded.history.fallen = fallen;
    }

    /// Ends the recording and returns the history.
    pub fn finish(&self) -> History {
        std::mem::take(&mut self.recorded().history)
    }
}
