//! The sweeper's work: deletes expired blacklist rows, records the sessions that have expired, and
//! deletes sessions that have been over for long and old records of the audit, in bounded batches,
//! and gives the space back.

use super::{Authority, error::AuthorityError, slow_clock::SlowClock};
use crate::{
    clock::Clock,
    domain::{
        revocation::{RETENTION_MARGIN, cut_off_key},
        time::Timestamp,
    },
    mutants::broken,
};

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blacklist rows deleted.
    pub revocations: usize,
    /// Sessions deleted.
    pub sessions: usize,
    /// Records of the audit deleted.
    pub audit: usize,
    /// Sessions that were recorded as expired.
    pub expired: usize,
}

/// What a sweep goes on from.
#[derive(Debug)]
pub struct Sweeper {
    clock: SlowClock,
    /// The earlier one of this clock and that of the database, if it has one.
    shared: Option<SlowClock>,
    /// What expired up to here is no longer in the index.
    dropped_until: Timestamp,
}

impl Sweeper {
    /// Has dropped nothing.
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            clock: SlowClock::at(clock.now(), clock.uptime()),
            shared: None,
            dropped_until: Timestamp::from_micros(i64::MIN),
        }
    }
}

/// The clocks that a sweep goes by.
#[derive(Clone, Copy, Debug)]
enum Clocks {
    Own,
    Both,
}

impl Authority {
    /// Deletes all that is due, a batch a transaction, so that no other write waits long. It goes
    /// by the earlier one of our clock and the clock of the database, if it has one.
    pub async fn sweep(&self) -> Result<Swept, AuthorityError> {
        self.sweep_by(Clocks::Both).await
    }

    /// The same by our clock alone, which somebody says is right.
    pub async fn sweep_by_own_clock(&self) -> Result<Swept, AuthorityError> {
        self.sweep_by(Clocks::Own).await
    }

    async fn sweep_by(&self, clocks: Clocks) -> Result<Swept, AuthorityError> {
        // Held throughout: two sweeps at once would do each other's work.
        let mut sweeper = self.sweeper.lock().await;
        let mut now = self.time_to_sweep_by(clocks, &mut sweeper).await?;
        if broken("purge-at-expiry") {
            // As by the clock of a replica that is as far ahead as it may be.
            now = now.plus(RETENTION_MARGIN).plus(self.settings.max_clock_skew);
        }
        let mut swept = Swept::default();
        let forgotten_until = loop {
            let batch =
                self.store.delete_expired_revocations(now, self.settings.sweep_batch).await?;
            swept.revocations += batch.deleted;
            if self.is_last(batch.deleted) {
                break batch.forgotten_until;
            }
        };
        // An entry that has expired may still cover a session that nobody had seen.
        self.end_covered_sessions().await?;
        // Also what other replicas have swept.
        if forgotten_until > sweeper.dropped_until {
            self.forget(forgotten_until).await?;
            sweeper.dropped_until = forgotten_until;
        }
        swept.expired = self.record_expiries(now).await?;
        let until = now.minus(self.settings.session_retention);
        loop {
            let deleted = self.store.delete_old_sessions(until, self.settings.sweep_batch).await?;
            swept.sessions += deleted;
            if self.is_last(deleted) {
                break;
            }
        }
        // Also if no more come: a table that was turned off is not kept for ever.
        let until = now.minus(self.settings.audit_retention);
        loop {
            let deleted = self.store.delete_old_audit(until, self.settings.sweep_batch).await?;
            swept.audit += deleted;
            if self.is_last(deleted) {
                break;
            }
        }
        if let Some(members) = self.store.members() {
            members.delete_former_replicas().await?;
        }
        while self.store.release_space().await? {}
        Ok(swept)
    }

    /// By a clock that is ahead, what all others still need would be deleted.
    async fn time_to_sweep_by(
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

    /// Records the sessions that have expired and were not ended before. Returns how many there
    /// were.
    ///
    /// A replica whose clock is behind may still refresh a session that has expired by ours, so
    /// this waits for as long as clocks may differ.
    async fn record_expiries(&self, now: Timestamp) -> Result<usize, AuthorityError> {
        let until = now.minus(RETENTION_MARGIN);
        let mut expired = 0;
        loop {
            let batch = self
                .store
                .record_expiries(until, self.settings.sweep_batch, self.settings.audit_table)
                .await?;
            batch.entries.iter().for_each(|entry| self.audit.log_stored(entry));
            expired += batch.entries.len();
            if batch.is_last {
                return Ok(expired);
            }
        }
    }

    /// Drops from the index what has been deleted, on a thread of its own: there may be millions of
    /// entries.
    async fn forget(&self, until: Timestamp) -> Result<(), AuthorityError> {
        // Before the index forgets: until then its entries stop what they did.
        self.replica.index().set_forgotten_until(until);
        let kept = self.store.unfinished().await?;
        let kept =
            kept.iter().map(|entry| cut_off_key(&entry.tenant, entry.subject.as_deref())).collect();
        let replica = self.replica.clone();
        let forgotten =
            tokio::task::spawn_blocking(move || replica.index().forget(until, &kept)).await;
        forgotten.map_err(|_| AuthorityError::Internal)
    }

    fn is_last(&self, deleted: usize) -> bool {
        i64::try_from(deleted).unwrap_or(i64::MAX) < self.settings.sweep_batch
    }
}
