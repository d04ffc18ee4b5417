//! The log of the entries that were published to watchers most recently.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{domain::revocation::Seq, store::FeedEntry};

/// The number of entries that the log keeps, unless the last batch alone has more.
const KEPT: usize = 65_536;

/// Entries that were published together.
#[derive(Debug)]
pub struct Batch {
    /// The position before the entries.
    before: Seq,
    /// The entries, in the order of the feed; none if only the keys have changed.
    pub entries: Vec<FeedEntry>,
    /// The entries as they are sent, once a watcher has been sent them.
    encoded: OnceLock<Bytes>,
}

impl Batch {
    /// Returns the entries as they are sent to every watcher that gets all of them. Only the first
    /// call encodes them, with `encode`.
    pub fn encoded(&self, encode: impl FnOnce(&[FeedEntry]) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(&self.entries)).clone()
    }
}

/// The last batches, each of which begins where the one before it ends.
#[derive(Debug, Default)]
pub struct Log {
    batches: VecDeque<Arc<Batch>>,
    entries: usize,
    head: Seq,
}

impl Log {
    /// Creates an empty log that begins at a position.
    pub fn beginning_at(head: Seq) -> Self {
        Self { head, ..Self::default() }
    }

    /// Returns the position up to which entries were published.
    pub fn head(&self) -> Seq {
        self.head
    }

    /// Adds entries up to `head`. Returns false if nothing is new.
    pub fn append(&mut self, entries: Vec<FeedEntry>, head: Seq) -> bool {
        if head == self.head {
            return false;
        }
        self.entries += size(&entries);
        self.batches.push_back(Arc::new(Batch {
            before: self.head,
            entries,
            encoded: OnceLock::new(),
        }));
        self.head = head;
        while self.entries > KEPT
            && self.batches.len() > 1
            && let Some(oldest) = self.batches.pop_front()
        {
            self.entries -= size(&oldest.entries);
        }
        true
    }

    /// Returns all batches after a position, if the log still has the first of them.
    pub fn after(&self, position: Seq) -> Option<Vec<Arc<Batch>>> {
        let index = self.batches.partition_point(|batch| batch.before < position);
        self.batches.get(index).filter(|batch| batch.before == position)?;
        Some(self.batches.range(index..).cloned().collect())
    }

    /// Returns whether the log has all entries after a position.
    pub fn reaches(&self, position: Seq) -> bool {
        let index = self.batches.partition_point(|batch| batch.before < position);
        position == self.head
            || self.batches.get(index).is_some_and(|batch| batch.before == position)
    }
}

/// Returns the size of a batch. A batch without entries counts, too, so that the number of batches
/// is bounded.
fn size(entries: &[FeedEntry]) -> usize {
    entries.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ids::TokenId, revocation::Revoked, time::Timestamp};

    fn entries(count: usize) -> Vec<FeedEntry> {
        let revoked = Revoked::Token(TokenId::new([1; 16]));
        let entry = FeedEntry {
            seq: Seq(1),
            revoked,
            tenant: None,
            expires_at: Timestamp::from_seconds(1),
        };
        vec![entry; count]
    }

    #[test]
    fn batches_follow_each_other_without_a_gap() {
        let mut log = Log::beginning_at(Seq(5));
        assert!(log.reaches(Seq(5)) && !log.reaches(Seq(4)));
        assert!(!log.append(vec![], Seq(5)), "nothing is new");
        assert!(log.append(entries(2), Seq(7)));
        assert!(log.append(vec![], Seq(8)), "the keys have changed");
        let sizes = |position| -> Option<Vec<usize>> {
            Some(log.after(Seq(position))?.iter().map(|batch| batch.entries.len()).collect())
        };
        assert_eq!(sizes(5), Some(vec![2, 0]));
        assert_eq!(sizes(6), None, "a batch is sent as a whole");
        assert_eq!(sizes(7), Some(vec![0]));
        assert_eq!(sizes(8), None);
        assert!(log.reaches(Seq(8)) && !log.reaches(Seq(9)));
    }

    #[test]
    fn the_log_is_bounded() {
        let mut log = Log::default();
        for batch in 1..=10 {
            assert!(log.append(entries(KEPT / 4), Seq(batch)));
        }
        assert!(log.reaches(Seq(6)) && !log.reaches(Seq(5)));
        assert!(log.append(entries(2 * KEPT), Seq(11)));
        assert!(log.reaches(Seq(10)) && !log.reaches(Seq(9)));
    }
}
