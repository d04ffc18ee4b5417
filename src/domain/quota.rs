//! The quota: how many live sessions a subject may have, and which of them are evicted for a new
//! one.

use std::{collections::VecDeque, time::Duration};

use super::{ids::SessionId, policy::OnQuota, time::Timestamp};

/// The greatest limit that is enforced by reading the subject's live sessions. For a greater limit,
/// the number of live sessions is stored, so that the cost of a creation does not grow with the
/// limit. The stored number includes an expired session until the sweeper has recorded its expiry.
pub const MOST_READ: u32 = 256;

/// The largest number of sessions that one creation evicts. If a lowered limit leaves a subject
/// with more surplus sessions than that, the next creations evict the others.
pub const MOST_EVICTED: usize = 16;

/// The time for which a stored count that leaves no room for a new session may be used. The count
/// may be too high, because it still includes sessions that have ended since they were counted.
const FULL_FOR: Duration = Duration::from_secs(1);

/// The time for which a stored count that leaves room for a new session may be used. The count may
/// be too low, because it lacks sessions that were created without a limit since the others were
/// counted.
const ROOM_FOR: Duration = Duration::from_secs(60);

/// The live sessions of a subject, kept up to date while several creations are decided one after
/// the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveSessions {
    /// The number of live sessions. It may be too high. It is too low only if the subject has more
    /// live sessions than were read ([`LiveSessions::to_read`]).
    pub count: u64,
    /// The oldest live sessions in the order of creation, each with its idle expiry.
    pub oldest: VecDeque<(SessionId, Timestamp)>,
    /// True if `oldest` holds all live sessions. Otherwise there may be other sessions, created
    /// after those in `oldest` and before a session that is added.
    pub is_complete: bool,
}

/// The subject has no room for a new session, and its policy does not evict old sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaExceeded;

impl LiveSessions {
    /// Creates the value from the oldest live sessions of a subject, the oldest first. There must
    /// be as many as [`LiveSessions::to_read`] returns for this limit, or all live sessions if the
    /// subject has fewer.
    pub fn read(oldest: VecDeque<(SessionId, Timestamp)>, max: u32) -> Self {
        let count = u64::try_from(oldest.len()).unwrap_or(u64::MAX);
        Self { count, is_complete: oldest.len() < Self::to_read(max), oldest }
    }

    /// Creates the value from the number of live sessions and the oldest of them.
    pub fn counted(count: u64, oldest: VecDeque<(SessionId, Timestamp)>) -> Self {
        Self { count, oldest, is_complete: false }
    }

    /// Returns how many of the oldest sessions must be read to enforce a limit that is not above
    /// [`MOST_READ`].
    pub fn to_read(max: u32) -> usize {
        usize::try_from(max.min(MOST_READ)).unwrap_or(usize::MAX) + MOST_EVICTED
    }

    /// Returns how many of the oldest sessions must be read to enforce a limit above [`MOST_READ`],
    /// if there are `count` live sessions before this many creations.
    pub fn to_read_of(count: u64, max: u32, creations: usize) -> usize {
        let after = count.saturating_add(u64::try_from(creations).unwrap_or(u64::MAX));
        if after <= max.into() { 0 } else { MOST_EVICTED + creations }
    }

    /// Makes room for a session that is created at `now`. Returns the sessions to be evicted for
    /// it, the oldest first.
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

    /// Adds a session that was created. The session is counted in any case, but it is listed in
    /// `oldest` only if `oldest` holds all live sessions.
    pub fn add(&mut self, id: SessionId, idle_expires_at: Timestamp) {
        self.count += 1;
        if self.is_complete {
            let index = self.oldest.partition_point(|(other, _)| *other < id);
            self.oldest.insert(index, (id, idle_expires_at));
        }
    }
}

/// The stored number of live sessions of a subject whose limit is above [`MOST_READ`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The number of live sessions. It may be too high. It is too low only by the sessions that
    /// were created without a limit since the last count.
    pub sessions: u64,
    /// The instant of the last count.
    pub counted_at: Timestamp,
}

impl Tally {
    /// Returns whether the stored number may be used for this many creations without counting
    /// again.
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
        LiveSessions::read((0..count).map(|n| (id(n), LATER)).collect(), MOST_READ)
    }

    #[test]
    fn the_oldest_sessions_above_the_limit_are_evicted_up_to_a_bounded_number_at_once() {
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
        let existing = [(id(0), LATER), (id(1), NOW), (id(2), LATER)];
        let mut sessions = LiveSessions::read(existing.into(), 3);
        assert_eq!(sessions.make_room(NOW, 3, OnQuota::Refuse), Ok(vec![]));
        assert_eq!(sessions.make_room(NOW, 2, OnQuota::EvictOldest), Ok(vec![id(0)]));
    }

    #[test]
    fn a_created_session_is_counted_and_sorted_by_creation() {
        let mut sessions = live(2);
        sessions.add(SessionId::new(NOW.minus(Duration::from_secs(1)), [0; 10]), LATER);
        assert_eq!(sessions.count, 3);
        let evicted = sessions.make_room(NOW, 3, OnQuota::EvictOldest).unwrap();
        assert!(evicted < vec![id(0)], "a clock that was behind created it, so it sorts first");
    }

    #[test]
    fn a_new_session_is_not_evicted_while_there_may_be_older_sessions_that_were_not_read() {
        let mut sessions = LiveSessions::counted(300, [(id(0), LATER)].into());
        sessions.add(id(999), LATER);
        assert_eq!(sessions.count, 301);
        assert_eq!(sessions.make_room(NOW, 300, OnQuota::EvictOldest), Ok(vec![id(0)]));
        assert_eq!(sessions.make_room(NOW, 300, OnQuota::EvictOldest), Ok(vec![]));

        let oldest = (0..).take(LiveSessions::to_read(1)).map(|n| (id(n), LATER)).collect();
        let mut sessions = LiveSessions::read(oldest, 1);
        for _ in 0..3 {
            let evicted = sessions.make_room(NOW, 1, OnQuota::EvictOldest).unwrap();
            assert!(!evicted.contains(&id(999)), "{evicted:?}");
            sessions.add(id(999), LATER);
        }
    }

    #[test]
    fn a_tally_is_trusted_for_less_time_at_the_limit_and_not_after_a_clock_jump() {
        let tally = Tally { sessions: 1000, counted_at: NOW };
        let tick = Duration::from_micros(1);
        for (max, age) in [(1001, Duration::from_secs(60)), (1000, Duration::from_secs(1))] {
            assert!(tally.is_trusted(NOW.plus(age), max, 1));
            assert!(!tally.is_trusted(NOW.plus(Duration::from_secs(2)), max, 2), "two exceed it");
            assert!(!tally.is_trusted(NOW.plus(age).plus(tick), max, 1));
            assert!(!tally.is_trusted(NOW.minus(age).minus(tick), max, 1));
        }
    }
}
