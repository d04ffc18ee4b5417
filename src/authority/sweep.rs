//! The sweep, a job that runs in bounded batches. It deletes expired blacklist rows, records
//! expired sessions, deletes old audit records and sessions that ended long ago, and returns free
//! space to the file system.

use super::{Authority, Settings, error::AuthorityError, slow_clock::SlowClock};
use crate::{
    clock::Clock,
    domain::{revocation::RETENTION_MARGIN, time::Timestamp},
};

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of blacklist rows that were deleted.
    pub revocations: usize,
    /// The number of sessions that were deleted.
    pub sessions: usize,
    /// The number of audit records that were deleted.
    pub audit: usize,
    /// The number of sessions that were recorded as expired.
    pub expired: usize,
}

/// The state that is kept between two sweeps.
#[derive(Debug)]
pub struct Sweeper {
    clock: SlowClock,
    /// A slow clock that follows the earlier of our clock and the clock of the database. It is
    /// missing until the first sweep that reads a clock of the database.
    shared: Option<SlowClock>,
    /// Entries that expired up to this instant have been dropped from the index.
    dropped_until: Timestamp,
}

impl Sweeper {
    /// Creates the state before the first sweep.
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            clock: SlowClock::at(clock.now(), clock.uptime()),
            shared: None,
            dropped_until: Timestamp::from_micros(i64::MIN),
        }
    }
}

/// The clocks that a sweep uses.
#[derive(Clone, Copy, Debug)]
enum Clocks {
    Own,
    Both,
}

impl Authority {
    /// Runs a sweep, one batch in each transaction, so that no other write waits long. If the
    /// database has a clock, the sweep uses the earlier of our clock and the clock of the database.
    pub async fn sweep(&self) -> Result<Swept, AuthorityError> {
        self.sweep_by(Clocks::Both).await
    }

    /// Runs a sweep by our clock alone. An operator asserts that our clock is right.
    pub async fn sweep_by_own_clock(&self) -> Result<Swept, AuthorityError> {
        self.sweep_by(Clocks::Own).await
    }

    async fn sweep_by(&self, clocks: Clocks) -> Result<Swept, AuthorityError> {
        // The lock is held throughout, because two concurrent sweeps would do the same work twice.
        let mut sweeper = self.sweeper.lock().await;
        let settings = self.settings();
        let now = self.sweep_time(clocks, &mut sweeper).await?;
        let mut swept = Swept::default();
        let purge_watermark = loop {
            let batch = self.store.delete_expired_revocations(now, settings.sweep_batch).await?;
            swept.revocations += batch.deleted;
            if settings.is_last(batch.deleted) {
                break batch.purge_watermark;
            }
        };
        // Sessions that a cut-off covers are ended before any entry is dropped from the index,
        // because an expired entry may still cover sessions that have not been marked as ended.
        self.end_covered_sessions().await?;
        // The watermark also covers entries that other replicas have deleted.
        if purge_watermark > sweeper.dropped_until {
            self.drop_from_index(purge_watermark).await?;
            sweeper.dropped_until = purge_watermark;
        }
        swept.expired = self.record_expiries(now, &settings).await?;
        let until = now.minus(settings.session_retention);
        loop {
            let deleted = self.store.delete_old_sessions(until, settings.sweep_batch).await?;
            swept.sessions += deleted;
            if settings.is_last(deleted) {
                break;
            }
        }
        self.delete_old_legacy_tokens(now, &settings).await?;
        // Old audit records are deleted even if no new ones are stored, so that they do not stay
        // for ever.
        let until = now.minus(settings.audit_retention);
        loop {
            let deleted = self.store.delete_old_audit(until, settings.sweep_batch).await?;
            swept.audit += deleted;
            if settings.is_last(deleted) {
                break;
            }
        }
        if let Some(members) = self.store.members() {
            members.delete_former_replicas().await?;
        }
        while self.store.release_space().await? {}
        self.counts.sweeps.count(&swept, self.clock.now());
        Ok(swept)
    }

    /// Returns the time that decides what is deleted. By a clock that is ahead, the sweep would
    /// delete rows that other replicas still need, so the earlier clock counts.
    async fn sweep_time(
        &self,
        clocks: Clocks,
        sweeper: &mut Sweeper,
    ) -> Result<Timestamp, AuthorityError> {
        let uptime = self.clock.uptime();
        let shared = match clocks {
            Clocks::Own => None,
            Clocks::Both => self.store.now().await?,
        };
        Ok(match shared {
            None => sweeper.clock.advance(self.clock.now(), uptime),
            Some(now) => {
                let now = now.min(self.clock.now());
                sweeper.shared.get_or_insert(SlowClock::at(now, uptime)).advance(now, uptime)
            }
        })
    }

    /// Records the sessions that have expired and were not ended before. Returns their number.
    ///
    /// A replica whose clock is behind may still refresh a session that has expired by our clock.
    /// So an expiry is recorded only once the retention margin has passed since the session
    /// expired.
    async fn record_expiries(
        &self,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<usize, AuthorityError> {
        let until = now.minus(RETENTION_MARGIN);
        let mut expired = 0;
        loop {
            let batch = self
                .store
                .record_expiries(until, settings.sweep_batch, settings.audit_table)
                .await?;
            batch.entries.iter().for_each(|entry| self.audit.log_stored(entry));
            expired += batch.entries.len();
            if batch.is_last {
                return Ok(expired);
            }
        }
    }

    /// Deletes the refresh tokens of other systems whose sessions' lifetimes have ended, by clocks
    /// that are behind, too.
    async fn delete_old_legacy_tokens(
        &self,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<(), AuthorityError> {
        let until = now.minus(RETENTION_MARGIN);
        loop {
            let deleted = self.store.delete_old_legacy_tokens(until, settings.sweep_batch).await?;
            if settings.is_last(deleted) {
                return Ok(());
            }
        }
    }

    /// Drops deleted entries from the index. The index is purged on a blocking thread, because
    /// there may be millions of entries.
    async fn drop_from_index(&self, until: Timestamp) -> Result<(), AuthorityError> {
        // The watermark must be raised before the entries are dropped, because from then on the
        // watermark stops the tokens that the entries have stopped.
        self.replica.index().raise_purge_watermark(until);
        let kept = self.store.unfinished().await?;
        let kept = kept.into_iter().map(|entry| entry.key).collect();
        let replica = self.replica.clone();
        let dropped =
            tokio::task::spawn_blocking(move || replica.index().purge(until, &kept)).await;
        dropped.map_err(|_| AuthorityError::Internal)
    }
}

impl Settings {
    /// Returns whether a batch that deleted so many rows was the last one.
    fn is_last(&self, deleted: usize) -> bool {
        i64::try_from(deleted).unwrap_or(i64::MAX) < self.sweep_batch
    }
}
