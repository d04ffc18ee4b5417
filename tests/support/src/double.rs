//! A test double of the store. It passes calls on to the real store, unless a test holds the calls
//! or makes them fail.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use countersign::{
    clock::Clock,
    domain::{
        audit::AuditEntry,
        change::SessionChange,
        cut_off::{CutOff, CutOffKey},
        ids::SessionId,
        key::RefreshKeyId,
        legacy_token::{LegacyToken, LegacyTokenHash},
        metadata::SessionMetadata,
        refresh::RefreshAttempt,
        revocation::{FeedPosition, Revocation, Seq},
        search::{AuditPlace, AuditQuery, Part, SessionQuery},
        session::{Ended, Session},
        time::Timestamp,
    },
    store::{
        Changed, CountedBatch, Created, Creation, CutOffEntry, EndedBatch, RecordedExpiries,
        Refreshed, RevocationOutcome, Store, StoreError, SweptRevocations, Walk,
        counts::StoreCounts,
        replicas::{Members, Newcomer, RenewalClient, RenewalOutcome, RenewalRequest},
        ring::{RingChange, SealedRing},
        sizes::Sizes,
    },
};
use tokio::sync::watch;

use crate::server::in_time;

type Result<T> = std::result::Result<T, StoreError>;

/// A gate through which calls pass. While it is shut, they wait.
pub struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: watch::channel(true).0, waiting: watch::channel(0).0 }
    }
}

impl Gate {
    /// Makes calls wait.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Lets calls pass.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until a call waits at the shut gate.
    pub async fn held(&self) {
        let mut waiting = self.waiting.subscribe();
        in_time("a call comes to the gate", waiting.wait_for(|waiting| *waiting > 0))
            .await
            .unwrap();
    }

    async fn pass(&self) {
        let mut open = self.open.subscribe();
        if !*open.borrow_and_update() {
            self.waiting.send_modify(|waiting| *waiting += 1);
        }
        open.wait_for(|open| *open).await.unwrap();
    }
}

/// A failure to write to the audit table.
#[derive(Clone)]
pub struct AuditFailure {
    /// Returns whether a record makes its batch fail.
    pub of: fn(&AuditEntry) -> bool,
    /// The error that the call returns.
    pub error: StoreError,
    /// True if the batch is written before the call fails.
    pub after: bool,
}

/// Returns a renewal client for a store.
type RenewalClientSource = Box<dyn Fn(&Arc<dyn Store>) -> Box<dyn RenewalClient> + Send + Sync>;

/// The test double.
pub struct Double {
    real: Arc<dyn Store>,
    renewals: RenewalClientSource,
    /// The clock of the test, if it replaces the database's clock.
    clock: Option<Arc<dyn Clock>>,
    /// The error that all calls about sessions return. Renewals, which read the feed, still
    /// succeed.
    failure: Mutex<Option<StoreError>>,
    /// Holds calls before a session is created.
    pub creations: Gate,
    /// Holds calls after a revocation has been committed, and before its caller learns of it.
    pub committed_revocations: Gate,
    /// Holds renewals before they read the feed.
    pub feed: Arc<Gate>,
    /// The seconds by which the database's clock is ahead of the test's clock.
    pub skew: Arc<AtomicI64>,
    /// The number of sweeps that have begun, and the instant up to which the last of them deletes.
    sweeps: watch::Sender<(usize, Timestamp)>,
    /// Holds calls before metadata are read.
    pub metadata: Gate,
    /// The number of sessions whose metadata were asked for, for each query.
    metadata_reads: watch::Sender<Vec<usize>>,
    /// Holds calls before a batch is written to the audit table.
    pub audit: Gate,
    /// The failure of writes to the audit table.
    failing_audit: Mutex<Option<AuditFailure>>,
    /// The number of records in each batch for the audit table.
    audits: watch::Sender<Vec<usize>>,
    /// The number of queries that asked whether a session needs a refresh key.
    holders_asked: watch::Sender<usize>,
}

impl Double {
    /// Creates a double in which `clock` replaces the database's clock.
    pub fn of(real: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let renewals = Box::new(|real: &Arc<dyn Store>| real.renewal_client());
        Self::new(real, renewals, Some(clock))
    }

    /// Creates a double whose renewals go through the clients that `renewals` returns, and not
    /// through the store's own.
    pub fn with_renewals(
        real: Arc<dyn Store>,
        renewals: impl Fn(&Arc<dyn Store>) -> Box<dyn RenewalClient> + Send + Sync + 'static,
    ) -> Self {
        Self::new(real, Box::new(renewals), None)
    }

    fn new(
        real: Arc<dyn Store>,
        renewals: RenewalClientSource,
        clock: Option<Arc<dyn Clock>>,
    ) -> Self {
        Self {
            real,
            renewals,
            clock,
            failure: Mutex::default(),
            creations: Gate::default(),
            committed_revocations: Gate::default(),
            feed: Arc::default(),
            skew: Arc::default(),
            sweeps: watch::channel((0, Timestamp::from_micros(i64::MIN))).0,
            metadata: Gate::default(),
            metadata_reads: watch::Sender::default(),
            audit: Gate::default(),
            failing_audit: Mutex::default(),
            audits: watch::Sender::default(),
            holders_asked: watch::Sender::default(),
        }
    }

    /// Returns a receiver that changes with each query that asks whether a session needs a refresh
    /// key.
    pub fn holders_asked(&self) -> watch::Receiver<usize> {
        self.holders_asked.subscribe()
    }

    /// Makes calls about sessions fail from now on, or work again.
    pub fn fail_with(&self, failure: Option<StoreError>) {
        *self.failure.lock().unwrap() = failure;
    }

    /// Returns the number of sweeps that have begun.
    pub fn sweeps(&self) -> usize {
        self.sweeps.borrow().0
    }

    /// Waits until a sweep that begins after this call has ended. Returns the instant up to which
    /// the sweep deleted.
    pub async fn whole_sweep(&self) -> Timestamp {
        let mut sweeps = self.sweeps.subscribe();
        let (before, _) = *sweeps.borrow_and_update();
        // The next sweep may already have read the clock. The sweep after that has not, and has
        // ended when a third sweep begins.
        let (_, until) =
            *in_time("a sweep", sweeps.wait_for(|(count, _)| *count >= before + 2)).await.unwrap();
        in_time("another sweep", sweeps.wait_for(|(count, _)| *count >= before + 3)).await.unwrap();
        until
    }

    /// Makes batches for the audit table fail from now on, or work again.
    pub fn fail_audit_with(&self, failure: Option<AuditFailure>) {
        *self.failing_audit.lock().unwrap() = failure;
    }

    /// Returns the number of records in each batch for the audit table, failed or not.
    pub fn audits(&self) -> watch::Receiver<Vec<usize>> {
        self.audits.subscribe()
    }

    /// Returns the number of sessions whose metadata were asked for, for each query.
    pub fn metadata_reads(&self) -> watch::Receiver<Vec<usize>> {
        self.metadata_reads.subscribe()
    }

    fn check(&self) -> Result<()> {
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

/// Returns the time of the database, which is `real` unless the clock of the test replaces it.
fn database_time(
    clock: Option<&dyn Clock>,
    skew: &AtomicI64,
    real: Option<Timestamp>,
) -> Option<Timestamp> {
    let Some(clock) = clock else { return real };
    let micros = clock.now().micros() + skew.load(Ordering::SeqCst) * 1_000_000;
    real.map(|_| Timestamp::from_micros(micros))
}

/// A renewal client whose renewals pass through a gate.
struct Gated {
    real: Box<dyn RenewalClient>,
    gate: Arc<Gate>,
    clock: Option<Arc<dyn Clock>>,
    skew: Arc<AtomicI64>,
}

#[async_trait]
impl RenewalClient for Gated {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        self.gate.pass().await;
        let mut renewed = self.real.renew(renewal).await?;
        if let RenewalOutcome::Answer(answer) = &mut renewed {
            answer.now = database_time(self.clock.as_deref(), &self.skew, answer.now);
        }
        Ok(renewed)
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

#[async_trait]
impl Store for Double {
    async fn create_session(&self, creation: Creation) -> Result<Created> {
        self.check()?;
        self.creations.pass().await;
        self.real.create_session(creation).await
    }

    async fn refresh_session(&self, attempt: RefreshAttempt) -> Result<Refreshed> {
        self.check()?;
        self.real.refresh_session(attempt).await
    }

    async fn change_session(&self, change: SessionChange) -> Result<Changed> {
        self.check()?;
        self.real.change_session(change).await
    }

    async fn revoke(&self, revocation: Revocation) -> Result<RevocationOutcome> {
        self.check()?;
        let outcome = self.real.revoke(revocation).await;
        self.committed_revocations.pass().await;
        outcome
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.check()?;
        self.real.session(id).await
    }

    async fn metadata_of(&self, ids: Vec<SessionId>) -> Result<Vec<SessionMetadata>> {
        self.check()?;
        self.metadata_reads.send_modify(|reads| reads.push(ids.len()));
        self.metadata.pass().await;
        self.real.metadata_of(ids).await
    }

    async fn legacy_token(&self, hash: LegacyTokenHash) -> Result<Option<LegacyToken>> {
        self.check()?;
        self.real.legacy_token(hash).await
    }

    async fn sessions(&self, query: SessionQuery) -> Result<Part<Vec<Session>, SessionId>> {
        self.check()?;
        self.real.sessions(query).await
    }

    async fn count_sessions(&self, query: SessionQuery) -> Result<Part<i64, SessionId>> {
        self.check()?;
        self.real.count_sessions(query).await
    }

    async fn audit(&self, query: AuditQuery) -> Result<Part<Vec<AuditEntry>, AuditPlace>> {
        self.check()?;
        self.real.audit(query).await
    }

    async fn unfinished(&self) -> Result<Vec<CutOffEntry>> {
        self.real.unfinished().await
    }

    async fn end_covered_sessions(
        &self,
        entry: CutOffEntry,
        walk: Walk,
        limit: i64,
    ) -> Result<Option<EndedBatch>> {
        self.real.end_covered_sessions(entry, walk, limit).await
    }

    async fn cut_offs(&self) -> Result<Vec<CutOffEntry>> {
        self.real.cut_offs().await
    }

    async fn count_covered(
        &self,
        key: CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<CountedBatch>> {
        self.real.count_covered(key, cut_off, now, after, limit).await
    }

    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>> {
        self.real.end_all_sessions(ended, until, after, limit).await
    }

    fn renewal_client(&self) -> Box<dyn RenewalClient> {
        let (gate, clock, skew) = (self.feed.clone(), self.clock.clone(), self.skew.clone());
        Box::new(Gated { real: (self.renewals)(&self.real), gate, clock, skew })
    }

    fn members(&self) -> Option<&dyn Members> {
        self.real.members()
    }

    fn revocation_hints(&self) -> watch::Receiver<Seq> {
        self.real.revocation_hints()
    }

    async fn newest(&self) -> Result<Option<Timestamp>> {
        self.real.newest().await
    }

    async fn now(&self) -> Result<Option<Timestamp>> {
        let real = self.real.now().await?;
        Ok(database_time(self.clock.as_deref(), &self.skew, real))
    }

    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations> {
        self.sweeps.send_modify(|(count, last)| (*count, *last) = (*count + 1, until));
        self.real.delete_expired_revocations(until, limit).await
    }

    async fn sizes(&self, now: Timestamp) -> Result<Sizes> {
        self.real.sizes(now).await
    }

    fn counts(&self) -> StoreCounts {
        self.real.counts()
    }

    async fn stopped(&self) {
        self.real.stopped().await;
    }

    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries> {
        self.real.record_expiries(until, limit, keep).await
    }

    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.real.delete_old_sessions(until, limit).await
    }

    async fn delete_old_legacy_tokens(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.real.delete_old_legacy_tokens(until, limit).await
    }

    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<()> {
        self.audits.send_modify(|sizes| sizes.push(entries.len()));
        self.audit.pass().await;
        let failing = self.failing_audit.lock().unwrap().clone();
        if let Some(AuditFailure { of, error, after }) = failing
            && entries.iter().any(of)
        {
            if after {
                self.real.append_audit(entries).await?;
            }
            return Err(error);
        }
        self.real.append_audit(entries).await
    }

    async fn release_space(&self) -> Result<bool> {
        self.real.release_space().await
    }

    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.real.delete_old_audit(until, limit).await
    }

    async fn ring(&self) -> Result<SealedRing> {
        self.real.ring().await
    }

    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>> {
        self.real.change_ring(change).await
    }

    async fn is_refresh_key_in_use(&self, key: RefreshKeyId, now: Timestamp) -> Result<bool> {
        let is_in_use = self.real.is_refresh_key_in_use(key, now).await;
        self.holders_asked.send_modify(|times| *times += 1);
        is_in_use
    }
}
