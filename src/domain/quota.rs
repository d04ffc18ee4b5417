//! The most live sessions that a subject may have, and which of them are evicted for a new one.

use std::{collections::VecDeque, time::Duration};

use super::{ids::SessionId, policy::OnQuota, time::Timestamp};

/// Limits up to this one are kept by reading the subject's live sessions. For a greater one their
/// number is kept, so that a creation costs the same however many there are; sessions that have
/// expired count until the sweeper has recorded it.
pub const MOST_READ: u32 = 256;

/// Most sessions that one creation evicts, however far a limit was lowered.
pub const MOST_EVICTED: usize = 16;

/// For how long a number that was counted decides that there is no room: sessions that ended since
/// then are still in it.
const FULL_FOR: Duration = Duration::from_secs(1);

/// For how long a number that was counted decides that there is room: sessions that were created
/// without a limit since then are not in it.
const ROOM_FOR: Duration = Duration::from_secs(60);

/// Live sessions of a subject, as they are while creations are decided one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveSessions {
    /// Their number: never too low, but it may be too high.
    pub count: u64,
    /// The oldest, the first of all in front, each with its idle expiry.
    pub oldest: VecDeque<(SessionId, Timestamp)>,
    /// True if the oldest are all that the limit needs, which is no greater than [`MOST_READ`].
    /// Otherwise some may lie between them and a session that is added.
    pub is_complete: bool,
}

/// There is no room, and nobody is to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaExceeded;

impl LiveSessions {
    /// Those of a subject whose sessions have all been read, the oldest first.
    pub fn all(oldest: VecDeque<(SessionId, Timestamp)>) -> Self {
        let count = u64::try_from(oldest.len()).unwrap_or(u64::MAX);
        Self { count, oldest, is_complete: true }
    }

    /// This many, of which the oldest have been read.
    pub fn counted(count: u64, oldest: VecDeque<(SessionId, Timestamp)>) -> Self {
        Self { count, oldest, is_complete: false }
    }

    /// The number of the oldest that must be read for a limit that is no greater than
    /// [`MOST_READ`].
    pub fn to_read(max: u32) -> usize {
        usize::try_from(max.min(MOST_READ)).unwrap_or(usize::MAX) + MOST_EVICTED
    }

    /// The number of the oldest that must be read for a greater limit, of `count` live sessions and
    /// before this many creations.
    pub fn to_read_of(count: u64, max: u32, creations: usize) -> usize {
        let after = count.saturating_add(u64::try_from(creations).unwrap_or(u64::MAX));
        if after <= max.into() { 0 } else { MOST_EVICTED + creations }
    }

    /// Makes room for a session that is created at `now`. Returns those that are evicted for it,
    /// the oldest first.
    pub fn make_room(
        &mut self,
        now: Timestamp,
        max: u32,
        on_quota: OnQuota,
    ) -> Result<Vec<SessionId>, QuotaExceeded> {
        let before = self.oldest.len();
        self.oldest.retain(|(_, idle_expires_at)| *idle_expires_at > now);
        self.count = self
            .count
            .saturating_sub(u64::try_from(before - self.oldest.len()).unwrap_or(u64::MAX));
        let surplus = (self.count + 1).saturating_sub(max.into());
        if surplus > 0 && on_quota == OnQuota::Refuse {
            return Err(QuotaExceeded);
        }
        let surplus =
            usize::try_from(surplus).unwrap_or(usize::MAX).min(MOST_EVICTED).min(self.oldest.len());
        let evicted: Vec<_> = self.oldest.drain(..surplus).map(|(id, _)| id).collect();
        self.count = self.count.saturating_sub(u64::try_from(surplus).unwrap_or(u64::MAX));
        Ok(evicted)
    }

    /// Adds a session that was created. If it cannot be told whether it is among the oldest, it is
    /// left to be read the next time.
    pub fn add(&mut self, id: SessionId, idle_expires_at: Timestamp) {
        self.count += 1;
        if self.is_complete {
            let place = self.oldest.partition_point(|(other, _)| *other < id);
            self.oldest.insert(place, (id, idle_expires_at));
        }
    }
}

/// The kept number of the live sessions of a subject that has very many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// At least as many as there are, but for sessions that were created without a limit since they
    /// were counted.
    pub sessions: u64,
    /// The instant at which they were counted last.
    pub counted_at: Timestamp,
}

impl Tally {
    /// Returns whether it decides about so many more sessions without another count.
    pub fn is_trusted(&self, now: Timestamp, max: u32, creations: usize) -> bool {
        let age = now.since(self.counted_at).max(self.counted_at.since(now));
        let after = self.sessions.saturating_add(u64::try_from(creations).unwrap_or(u64::MAX));
        age <= if after <= max.into() { ROOM_FOR } else { FULL_FOR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const LATER: Timestamp = Timestamp::from_seconds(1_700_001_000);

    fn id(n: u64) -> SessionId {
        SessionId::new(NOW.plus(Duration::from_secs(n)), [0; 10])
    }

    fn live(count: u64) -> LiveSessions {
        LiveSessions::all((0..count).map(|n| (id(n), LATER)).collect())
    }

    #[test]
    fn as_many_of_the_oldest_go_as_are_too_many_and_a_bounded_number_at_once() {
        for (count, max, evicted) in
            [(0, 1, 0), (1, 1, 1), (2, 3, 0), (3, 3, 1), (5, 3, 3), (100, 3, MOST_EVICTED)]
        {
            let mut sessions = live(count);
            let expected: Vec<_> = (0..).take(evicted).map(id).collect();
            assert_eq!(
                sessions.make_room(NOW, max, OnQuota::EvictOldest),
                Ok(expected),
                "{count} of {max}"
            );
            assert_eq!(sessions.count, count - u64::try_from(evicted).unwrap());
            let refused = live(count).make_room(NOW, max, OnQuota::Refuse).is_err();
            assert_eq!(refused, evicted > 0, "{count} of {max}");
        }
    }

    #[test]
    fn an_expired_session_makes_room() {
        let mut sessions = LiveSessions::all([(id(0), LATER), (id(1), NOW), (id(2), LATER)].into());
        assert_eq!(sessions.make_room(NOW, 3, OnQuota::Refuse), Ok(vec![]));
        assert_eq!(sessions.make_room(NOW, 2, OnQuota::EvictOldest), Ok(vec![id(0)]));
    }

    #[test]
    fn a_session_that_was_created_counts_and_takes_its_place_in_the_order() {
        let mut sessions = live(2);
        sessions.add(SessionId::new(NOW.minus(Duration::from_secs(1)), [0; 10]), LATER);
        assert_eq!(sessions.count, 3);
        let evicted = sessions.make_room(NOW, 3, OnQuota::EvictOldest).unwrap();
        assert!(evicted < vec![id(0)], "its clock was behind, so it is the oldest");
    }

    #[test]
    fn a_session_is_not_evicted_while_older_ones_that_were_not_read_may_live() {
        let mut sessions = LiveSessions::counted(300, [(id(0), LATER)].into());
        sessions.add(id(999), LATER);
        assert_eq!(sessions.count, 301);
        assert_eq!(sessions.make_room(NOW, 300, OnQuota::EvictOldest), Ok(vec![id(0)]));
        assert_eq!(sessions.make_room(NOW, 300, OnQuota::EvictOldest), Ok(vec![]));
    }

    #[test]
    fn a_tally_is_counted_anew_sooner_if_it_leaves_no_room_and_after_a_jump_of_the_clock() {
        let tally = Tally { sessions: 1000, counted_at: NOW };
        let tick = Duration::from_micros(1);
        for (max, age) in [(1001, Duration::from_secs(60)), (1000, Duration::from_secs(1))] {
            assert!(tally.is_trusted(NOW.plus(age), max, 1));
            assert!(!tally.is_trusted(NOW.plus(Duration::from_secs(2)), max, 2), "not for two");
            assert!(!tally.is_trusted(NOW.plus(age).plus(tick), max, 1));
            assert!(!tally.is_trusted(NOW.minus(age).minus(tick), max, 1));
        }
    }
}
