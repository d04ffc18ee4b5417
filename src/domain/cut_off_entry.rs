//! The blacklist entry of a cut-off, with the progress of the job that ends the sessions.

use std::time::Duration;

use super::{
    cut_off::{Basis, CutOff, CutOffKey},
    revocation::{BlacklistEntry, Seq},
    session::Ended,
    time::Timestamp,
};

/// The blacklist entry of a cut-off, and the progress of the job that marks the sessions which it
/// covers as ended in their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOffEntry {
    /// The position of the entry in the feed. It changes if the same sessions are revoked again.
    pub seq: Seq,
    /// The sessions among which the cut-off chooses.
    pub key: CutOffKey,
    /// The sessions that are to be ended.
    pub cut_off: CutOff,
    /// The time, reason and note with which the sessions end.
    pub ended: Ended,
    /// The instant from which the entry may be deleted.
    pub expires_at: Timestamp,
    /// The number of sessions that the job has ended so far.
    pub ended_sessions: i64,
    /// True if sessions may be left that are to be ended.
    pub unfinished: bool,
}

impl CutOffEntry {
    /// Returns the first instant that the cut-off does not cover: a whole millisecond if it compares
    /// creations, because identifiers have milliseconds.
    pub fn before(&self) -> Timestamp {
        let up_to = self.cut_off.up_to;
        match self.key.basis() {
            Basis::Creation => {
                Timestamp::from_micros(up_to.millis().saturating_add(1).saturating_mul(1000))
            }
            Basis::Authentication => up_to.plus(Duration::from_micros(1)),
        }
    }

    /// Returns the entry with a later expiry.
    pub fn until(&self, expires_at: Timestamp) -> BlacklistEntry {
        BlacklistEntry {
            expires_at,
            ..BlacklistEntry::for_all(&self.key, self.cut_off, &self.ended, Duration::ZERO)
        }
    }
}
