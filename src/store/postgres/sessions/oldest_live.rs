//! Remembers the oldest live session of each subject that is at its limit, so that the next read
//! need not step over the index entries of all sessions that were evicted before.
//!
//! An evicted session leaves an entry in the index `sessions_of_subject`. The server cannot remove
//! this entry while a long transaction may still see the session. The oldest sessions are evicted
//! first, so these entries come before those of live sessions, and a read from the beginning passes
//! all of them. Without a remembered start, the sign-ins of a subject that signs in again and again
//! would become slower and slower.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::domain::{ids::SessionId, time::Timestamp};

/// The largest number of subjects that are remembered. A cache entry contains the names of a tenant
/// and a subject, at most 384 bytes, so all entries together take less than 3 MB.
const MOST_SUBJECTS: usize = 4096;

/// The time for which a start may be used after the last read from the beginning. This time is
/// limited, because reads from a start miss any session before it.
const TRUSTED_FOR: Duration = Duration::from_secs(30);

/// The point at which a read of a subject's live sessions begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first identifier that is read.
    pub id: SessionId,
    /// The instant of the last read from the beginning.
    from_beginning_at: Timestamp,
}

impl Start {
    /// Returns a start that is before all sessions.
    pub fn beginning(now: Timestamp) -> Self {
        Self { id: SessionId::from_bytes([0; 16]), from_beginning_at: now }
    }

    /// Returns whether this start is before all sessions.
    pub fn is_beginning(&self) -> bool {
        *self.id.bytes() == [0; 16]
    }
}

/// The remembered starts. Each process has its own.
#[derive(Debug)]
pub struct OldestLive {
    starts: Cache<String, Start>,
    /// The margin between the oldest session that was found and the start of later reads. A session
    /// that is created later may have an identifier that is this much earlier: twice the skew of
    /// the clocks, because one replica's clock may be ahead and another's behind.
    margin: Duration,
}

impl OldestLive {
    /// Creates an empty cache. `max_clock_skew` is the largest error of a replica's clock.
    pub fn new(max_clock_skew: Duration) -> Self {
        Self { starts: Cache::new(MOST_SUBJECTS), margin: max_clock_skew.saturating_mul(2) }
    }

    /// Returns the point at which a read at `now` may begin. This is the beginning if no start is
    /// remembered, if the remembered start is too old, or if it is from the future because the
    /// clock was set back.
    ///
    /// There may be sessions before a remembered start: if clocks are further apart than allowed,
    /// if a creation took longer than the margin, or if the database was set back. So a caller that
    /// finds fewer sessions than expected must read again from the beginning.
    pub fn start(&self, tenant: &str, subject: &str, now: Timestamp) -> Start {
        let is_trusted = |start: &Start| {
            let age = now.since(start.from_beginning_at).max(start.from_beginning_at.since(now));
            age <= TRUSTED_FOR
        };
        self.starts
            .get(&key(tenant, subject))
            .filter(is_trusted)
            .unwrap_or_else(|| Start::beginning(now))
    }

    /// Remembers the oldest live session that a read from `start` has found.
    pub fn remember(&self, tenant: &str, subject: &str, start: Start, oldest: SessionId) {
        let earliest =
            Timestamp::from_micros(oldest.created_millis().saturating_mul(1000)).minus(self.margin);
        self.starts
            .insert(key(tenant, subject), Start { id: SessionId::new(earliest, [0; 10]), ..start });
    }
}

/// Returns the key of a subject in the cache. The names are separated by a zero byte, which they
/// cannot contain.
fn key(tenant: &str, subject: &str) -> String {
    format!("{tenant}\0{subject}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const SKEW: Duration = Duration::from_secs(5);
    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_read_begins_twice_the_clock_skew_before_the_oldest_known_session() {
        let oldest_live = OldestLive::new(SKEW);
        assert!(oldest_live.start("acme", "alice", NOW).is_beginning());
        oldest_live.remember(
            "acme",
            "alice",
            Start::beginning(NOW),
            SessionId::last_of_millisecond(NOW),
        );
        let start = oldest_live.start("acme", "alice", NOW);
        let earliest = NOW.minus(SKEW * 2);
        assert!(
            start.id <= SessionId::new(earliest, [0; 10]),
            "a replica whose clock is behind may have created the session"
        );
        assert!(
            start.id > SessionId::last_of_millisecond(earliest.minus(MILLISECOND)),
            "and no earlier one"
        );
        assert!(!start.is_beginning());
        for (tenant, subject) in [("acme", "bob"), ("", "alice"), ("acm", "ealice")] {
            assert!(oldest_live.start(tenant, subject, NOW).is_beginning(), "{tenant} {subject}");
        }
    }

    /// If a read from a start prolonged the trust in it, a wrong start could be passed on from read
    /// to read for ever.
    #[test]
    fn a_partial_read_does_not_prolong_the_trust_in_a_remembered_start() {
        let oldest_live = OldestLive::new(SKEW);
        let remember =
            |start| oldest_live.remember("", "alice", start, SessionId::new(NOW, [0; 10]));
        remember(Start::beginning(NOW));
        let last = NOW.plus(TRUSTED_FOR);
        remember(oldest_live.start("", "alice", last));
        assert!(!oldest_live.start("", "alice", last).is_beginning());
        assert!(oldest_live.start("", "alice", last.plus(MILLISECOND)).is_beginning());
        assert!(
            oldest_live.start("", "alice", NOW.minus(TRUSTED_FOR + MILLISECOND)).is_beginning(),
            "set back"
        );
        remember(Start::beginning(last));
        assert!(!oldest_live.start("", "alice", last.plus(MILLISECOND)).is_beginning());
    }

    #[test]
    fn the_number_of_remembered_subjects_is_limited() {
        let oldest_live = OldestLive::new(SKEW);
        for n in 0..3 * MOST_SUBJECTS {
            oldest_live.remember(
                "",
                &n.to_string(),
                Start::beginning(NOW),
                SessionId::new(NOW, [0; 10]),
            );
        }
        assert!(oldest_live.starts.len() <= MOST_SUBJECTS);
    }
}
