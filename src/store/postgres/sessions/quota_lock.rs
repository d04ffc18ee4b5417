//! The locks of subjects with a quota. Only one transaction at a time, of all replicas, holds the
//! lock of a subject. So a transaction that holds it counts the subject's sessions after all
//! earlier holders have committed.

use super::super::connection::pool::{BEGIN, PooledConnection};
use crate::{
    domain::{session::Session, time::Timestamp},
    store::Creation,
};

/// The lock of one subject, and the sessions that are created under it.
pub struct SubjectLock<'a> {
    /// The key of the advisory lock; none where the database has no such locks.
    pub key: Option<i64>,
    pub tenant: &'a str,
    pub subject: &'a str,
    /// The instant at which the first of the new sessions was created.
    pub at: Timestamp,
    /// The largest number of live sessions that may exist beside a new one, by the greatest limit
    /// among the creations.
    pub others: i64,
    /// The number of new sessions of the subject.
    pub added: i64,
}

/// Returns the locks that creations need, in the order in which every transaction takes them.
pub fn subject_locks<'a>(
    connection: &PooledConnection<'_>,
    creations: &[&'a Creation],
) -> Vec<SubjectLock<'a>> {
    let limited = creations.iter().filter(|creation| creation.max_sessions > 0);
    let mut subject_locks: Vec<_> = limited
        .map(|Creation { session, max_sessions, .. }| SubjectLock {
            key: connection.has_locks().then(|| lock_key(session)),
            tenant: &session.tenant,
            subject: &session.subject,
            at: session.created_at,
            others: i64::from(*max_sessions) - 1,
            added: 1,
        })
        .collect();
    subject_locks.sort_unstable_by_key(|lock| (lock.key, lock.tenant, lock.subject, lock.at));
    subject_locks.dedup_by(|next, lock| {
        let is_same = (next.tenant, next.subject) == (lock.tenant, lock.subject);
        if is_same {
            lock.others = lock.others.max(next.others);
            lock.added += next.added;
        }
        is_same
    });
    subject_locks
}

/// Returns the statements that begin a transaction and take these locks. The next statement sees
/// what the earlier holders have committed.
pub fn begin(subject_locks: &[SubjectLock<'_>]) -> String {
    let keys: Vec<String> =
        subject_locks.iter().filter_map(|lock| lock.key).map(|key| key.to_string()).collect();
    if keys.is_empty() {
        return BEGIN.to_owned();
    }
    let keys = keys.join(",");
    format!("{BEGIN}; SELECT pg_advisory_xact_lock(key) FROM unnest('{{{keys}}}'::bigint[]) AS key")
}

/// Returns the FNV-1a hash of tenant and subject. All versions of the service must compute the same
/// hash. A collision only makes a transaction wait for another one.
fn lock_key(session: &Session) -> i64 {
    let text = b"countersign/"
        .iter()
        .chain(session.tenant.as_bytes())
        .chain(&[0])
        .chain(session.subject.as_bytes());
    let hash = text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}
