//! The state that the decisions of a batch are based on, and the changes that they make. Decisions
//! are made one after the other, and each sees the changes of those before it.

use std::{collections::HashMap, convert::Infallible};

use super::{
    super::{
        connection::{fault::Fault, pool::PooledConnection},
        feed::{
            cut_offs::{self, CutOffs},
            entries,
        },
    },
    lock,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{BlacklistEntry, FeedPosition},
        session::Session,
    },
    store::StoreError,
};

/// The sessions of a batch as they are after the decisions so far, and what is to be written.
pub struct BatchState {
    current: HashMap<SessionId, Session>,
    cut_offs: CutOffs,
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

/// The index of a decision's entry among the entries of the batch.
#[derive(Clone, Copy, Debug)]
pub struct EntryIndex(usize);

impl BatchState {
    /// Takes sessions as they were read, and reads the cut-offs that may cover them.
    pub async fn of(
        connection: &mut PooledConnection<'_>,
        current: HashMap<SessionId, Session>,
    ) -> Result<Self, Fault> {
        let cut_offs = cut_offs::read(connection, current.values()).await?;
        Ok(Self { current, cut_offs, changed: HashMap::new(), entries: vec![] })
    }

    /// Returns a session, if it exists.
    pub fn session(&self, id: SessionId) -> Option<Session> {
        self.current.get(&id).cloned()
    }

    /// Returns whether a cut-off covers a session.
    pub fn is_covered(&self, session: &Session) -> Result<bool, Infallible> {
        Ok(self.cut_offs.covering(session).is_covered())
    }

    /// Takes over the session and the entry of a decision.
    pub fn apply(
        &mut self,
        session: &Session,
        entry: Option<&BlacklistEntry>,
    ) -> Option<EntryIndex> {
        self.current.insert(session.id, session.clone());
        self.changed.insert(session.id, session.clone());
        entry.map(|entry| {
            self.entries.push(entry.clone());
            EntryIndex(self.entries.len() - 1)
        })
    }

    /// Returns whether no decision has changed anything.
    pub fn is_unchanged(&self) -> bool {
        self.changed.is_empty()
    }

    /// Returns the sessions that the decisions have changed.
    pub fn changed(&self) -> Vec<Session> {
        self.changed.values().cloned().collect()
    }

    /// Writes the changed sessions, which must be locked, and then the entries.
    pub async fn write(self, connection: &mut PooledConnection<'_>) -> Result<Positions, Fault> {
        let changed: Vec<Session> = self.changed.into_values().collect();
        lock::save_sessions(connection, &changed).await?;
        Ok(Positions(entries::insert_entries(connection, &self.entries).await?))
    }
}

/// The feed positions of the entries of a batch; none of a batch that changes nothing.
#[derive(Debug, Default)]
pub struct Positions(Vec<FeedPosition>);

impl Positions {
    /// Returns the position of an entry.
    pub fn of(&self, entry: Option<EntryIndex>) -> Option<FeedPosition> {
        entry.and_then(|EntryIndex(index)| self.0.get(index)).copied()
    }

    /// Returns the position of an entry that the decision must have.
    pub fn required(&self, entry: Option<EntryIndex>) -> Result<FeedPosition, StoreError> {
        let missing = || StoreError::Refused("an entry without a position".to_owned());
        self.of(entry).ok_or_else(missing)
    }
}
