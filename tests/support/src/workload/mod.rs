//! A load that makes and records calls of all kinds, and a checker that decides from the record
//! whether everything that was acknowledged held.

pub mod asking;
pub mod callers;
pub mod checker;
pub mod finishing;
pub mod history;
pub mod recorder;

use crate::{ledger::Client, workload::history::TokenNumber};

/// The replicas that a load calls. A place is the number of a replica, from 0. When the process of
/// a replica has ended, its place is empty until another process is started there.
pub trait Replicas: Send + Sync {
    /// Returns the number of places.
    fn places(&self) -> usize;

    /// Returns the number of places whose replicas run from the beginning to the end, except while
    /// a fault has stopped them. They are the first places.
    fn permanent(&self) -> usize;

    /// Returns a client of the process in a place, if there is one.
    fn client(&self, place: usize) -> Option<Client>;

    /// Is called right before a revocation is sent to the replica in this place.
    fn notify_revocation(&self, _place: usize) {}

    /// Is called when a revocation of these tokens was acknowledged.
    fn notify_acknowledged(&self, _tokens: &[TokenNumber]) {}
}
