//! The log of the entries that were published to watchers most recently.

use std::{collections::VecDeque, sync::Arc};

use crate::{domain::revocation::Seq, store::FeedEntry};

/// The number of entries that the log keeps, unless the last batch alone has more.
const KEPT: usize = 65_536;

/// Entries that were published together.
#[derive(Debug)]
pub struct Batch {
    /// The position before the entries.
    before: Seq,
    /// The position after the entries. It is also a later position if the keys have changed.
    pub head: Seq,
    /// The entries, in the order of the feed.
    pub entries: Vec<FeedEntry>,
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
        self.batches.push_back(Arc::new(Batch { before: self.head, head, entries }));
        self.head = head;
        while self.entries > KEPT
            && self.batches.len() > 1
            && let Some(oldest) = self.batches.pop_front()
        {
            self.entries -= size(&oldest.entries);
        }
        true
    }

    /// Returns the batch that begins at a position, if the log still has it.
    pub fn after(&self, position: Seq) -> Option<Arc<Batch>> {
        let index = self.batches.partition_point(|batch| batch.before < position);
        self.batches.get(index).filter(|batch| batch.before == position).cloned()
    }

    /// Returns whether the log has all entries after a position.
    pub fn reaches(&self, position: Seq) -> bool {
        position == self.head || self.after(position).is_some()
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
        let heads = |position| log.after(Seq(position)).map(|batch| batch.head);
        assert_eq!(heads(5), Some(Seq(7)));
        assert_eq!(heads(6), None, "a batch is sent as a whole");
        assert_eq!(heads(7), Some(Seq(8)));
        assert_eq!(heads(8), None);
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
