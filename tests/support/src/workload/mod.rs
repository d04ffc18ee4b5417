//! A load of all kinds of calls that are recorded, and a checker that decides whether everything
//! that was acknowledged held.

pub mod asking;
pub mod callers;
pub mod checker;
pub mod finishing;
pub mod history;
pub mod recorder;

use crate::ledger::Client;

/// The replicas that a load calls. Each has a place, in which no process may run for some time.
pub trait Replicas: Send + Sync {
    /// Returns the number of places.
    fn places(&self) -> usize;

    /// Returns the number of places whose replicas run from the beginning to the end, except while
    /// a fault has stopped them. They are the first places.
    fn permanent(&self) -> usize;

    /// Returns a client of the process in a place, if there is one.
    fn client(&self, place: usize) -> Option<Client>;

    /// Learns that a revocation is sent to this place.
    fn notify_revocation(&self, _place: usize) {}
}
