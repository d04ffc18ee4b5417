//! Writes down what happens, as it happens.

use std::sync::{Mutex, MutexGuard};

use tokio::time::Instant;

use crate::history::{
    Answer, Ask, Call, Fault, Healed, History, Moment, Outage, Session, SessionNumber, SetBack,
    TokenNumber,
};

/// A history in the making, and the tokens as they are sent.
pub struct Recorder {
    start: Instant,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    history: History,
    texts: Vec<String>,
}

impl Recorder {
    /// With what is known before: the rules of the profile.
    pub fn new(history: History) -> Self {
        Self { start: Instant::now(), made: Mutex::new(Made { history, texts: vec![] }) }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap()
    }

    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }

    pub fn call(&self, call: Call) {
        self.made().history.calls.push(call);
    }

    /// What has been done since then.
    pub fn fault(&self, from: Moment, what: String) {
        let to = self.now();
        self.made().history.faults.push(Fault { what, from, to });
    }

    /// Since `from` the database has been set back to what it was at `kept`.
    pub fn set_back(&self, kept: Moment, from: Moment) {
        let to = self.now();
        self.made().history.set_backs.push(SetBack { kept, from, to });
    }

    pub fn session(&self, session: Session) -> SessionNumber {
        let sessions = &mut self.made().history.sessions;
        sessions.push(session);
        SessionNumber(sessions.len() - 1)
    }

    pub fn token(&self, session: SessionNumber, text: String) -> TokenNumber {
        let mut made = self.made();
        made.history.tokens.push(session);
        made.texts.push(text);
        TokenNumber(made.texts.len() - 1)
    }

    /// The instant at which a session was first created by a replica that was asked since then.
    #[allow(dead_code)] // Not every binary of tests waits for it.
    pub fn created_since(&self, replica: usize, since: Moment) -> Option<Moment> {
        let made = self.made();
        let mut calls = made.history.calls.iter();
        let is_created = |call: &&Call| (&call.ask, &call.answer) == (&Ask::Create, &Answer::Done);
        calls
            .find(|call| call.replica == replica && call.begin >= since && is_created(call))
            .map(|call| call.end)
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.made().texts.len()
    }

    pub fn text(&self, token: TokenNumber) -> String {
        self.made().texts[token.0].clone()
    }

    /// All tokens of these sessions.
    pub fn tokens_of(&self, sessions: &[SessionNumber]) -> Vec<TokenNumber> {
        let made = self.made();
        let tokens = made.history.tokens.iter().enumerate();
        tokens
            .filter(|(_, session)| sessions.contains(session))
            .map(|(token, _)| TokenNumber(token))
            .collect()
    }

    /// From now on a process may be gone.
    pub fn goes(&self, replica: usize) {
        let from = self.now();
        self.made().history.outages.push(Outage { replica, from, to: None });
    }

    /// It is there again.
    pub fn returns(&self, replica: usize) {
        let now = self.now();
        let outages = &mut self.made().history.outages;
        for outage in outages.iter_mut().filter(|outage| outage.replica == replica) {
            outage.to.get_or_insert(now);
        }
    }

    /// From now on everything works, and these are there, but for those that have fallen.
    pub fn heals(&self, replicas: Vec<usize>, fallen: Vec<usize>) {
        let at = self.now();
        let mut made = self.made();
        made.history.healed = Some(Healed { at, replicas, tokens: made.texts.len() });
        made.history.fallen = fallen;
    }

    /// All of it.
    pub fn finish(&self) -> History {
        std::mem::take(&mut self.made().history)
    }
}
