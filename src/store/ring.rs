//! The sealed keys as a whole: they are read together, and changed by one process at a time.

use crate::domain::{
    key::{RingVersion, SealedKey},
    revocation::FeedPosition,
};

/// All keys at one instant.
#[derive(Clone, Debug)]
pub struct SealedRing {
    /// Counts the changes so far; zero if there have never been keys.
    pub version: RingVersion,
    /// The keys.
    pub keys: Vec<SealedKey>,
    /// Names of rows that hold something else.
    pub damaged: Vec<String>,
    /// Where the feed had come to: whoever has applied it up to here knows these keys.
    pub position: FeedPosition,
}

impl SealedRing {
    /// What rows hold, each given with the name of its key.
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
    /// It was made for the ring as it stood then.
    pub version: RingVersion,
    /// Keys as they are to be, in the order in which they are written.
    pub put: Vec<SealedKey>,
    /// Names of keys that are to go.
    pub drop: Vec<String>,
}
