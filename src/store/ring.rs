//! All sealed keys: they are read together, and only one process at a time changes them.

use crate::domain::{
    key::{RingVersion, SealedKey},
    revocation::FeedPosition,
};

/// All keys at one instant.
#[derive(Clone, Debug)]
pub struct SealedRing {
    /// The number of changes so far; zero if there have never been any keys.
    pub version: RingVersion,
    /// The keys.
    pub keys: Vec<SealedKey>,
    /// The names of the rows that do not contain a valid key.
    pub damaged: Vec<String>,
    /// The head of the feed: a replica that has applied the feed up to here knows these keys.
    pub position: FeedPosition,
}

impl SealedRing {
    /// Creates the ring from rows, each of which is given with the name of its key.
    pub fn of_rows<Row>(
        version: RingVersion,
        position: FeedPosition,
        rows: impl IntoIterator<Item = (String, Row)>,
    ) -> Self
    where
        Row: TryInto<SealedKey>,
    {
        let mut ring = Self { version, keys: vec![], damaged: vec![], position };
        for (kid, row) in rows {
            match row.try_into() {
                Ok(key) => ring.keys.push(key),
                Err(_) => ring.damaged.push(kid),
            }
        }
        ring
    }
}

/// A change of the keys.
#[derive(Clone, Debug)]
pub struct RingChange {
    /// The version of the ring for which the change was made.
    pub version: RingVersion,
    /// The keys to be written, in this order.
    pub put: Vec<SealedKey>,
    /// The names of the keys to be deleted.
    pub drop: Vec<String>,
}
