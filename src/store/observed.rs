//! A store that counts the operations of another one, measures how long they take, gives each a
//! span, and logs those that fail.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;
use tracing::Instrument;

use super::{
    Changed, CountedBatch, Created, Creation, CutOffEntry, EndedBatch, RecordedExpiries, Refreshed,
    RevocationOutcome, Store, StoreError, SweptRevocations, Walk,
    counts::StoreCounts,
    replicas::{Members, Register, RenewalClient},
    ring::{RingChange, SealedRing},
    sizes::Sizes,
};
use crate::{
    domain::{
        audit::AuditEntry,
        change::SessionChange,
        cut_off::{CutOff, CutOffKey},
        ids::{Incarnation, SessionId},
        key::RefreshKeyId,
        legacy_token::{LegacyToken, LegacyTokenHash},
        metadata::SessionMetadata,
        refresh::RefreshAttempt,
        revocation::{FeedPosition, Revocation, Seq, Timeline},
        search::{AuditPlace, AuditQuery, Part as Found, SessionQuery},
        session::{Ended, Session},
        time::Timestamp,
    },
    instruments::{
        EventSource, Events,
        times::{self, Part},
    },
};

type Result<T> = std::result::Result<T, StoreError>;

/// The operations, which are the methods of [`Store`] that ask the database.
const OPERATIONS: [&str; 36] = [
    "create_session",
    "refresh_session",
    "change_session",
    "revoke",
    "session",
    "legacy_token",
    "metadata_of",
    "sessions",
    "count_sessions",
    "unfinished",
    "end_covered_sessions",
    "cut_offs",
    "count_covered",
    "end_all_sessions",
    "newest",
    "now",
    "delete_expired_revocations",
    "record_expiries",
    "delete_old_sessions",
    "delete_old_legacy_tokens",
    "append_audit",
    "audit",
    "delete_old_audit",
    "release_space",
    "ring",
    "change_ring",
    "is_refresh_key_in_use",
    "sizes",
    "begin_watching",
    "watched",
    "end_watching",
    "register",
    "remove",
    "settle",
    "leave",
    "delete_former_replicas",
];

/// The results of an operation.
const RESULTS: [&str; 6] = ["ok", "unavailable", "overloaded", "damaged", "refused", "cancelled"];

/// Creates the counters of all operations.
pub fn counters() -> Events {
    let labels = OPERATIONS.iter().map(|operation| vec![("operation", *operation)]);
    Events::new(labels.collect(), &RESULTS)
}

/// Returns the number of the result of an operation.
fn number<T>(result: &Result<T>) -> usize {
    match result {
        Ok(_) => 0,
        Err(StoreError::Unavailable(_)) => 1,
        Err(StoreError::Overloaded) => 2,
        Err(StoreError::Damaged(_)) => 3,
        Err(StoreError::Refused(_)) => 4,
    }
}

/// The number of the result of an operation whose caller went away.
const CANCELLED: usize = 5;

/// The store that observes another one.
pub struct ObservedStore {
    store: Arc<dyn Store>,
    operations: EventSource,
}

impl ObservedStore {
    /// Observes a store, and counts its operations in `operations`.
    pub fn new(store: Arc<dyn Store>, operations: Arc<Events>) -> Self {
        Self { store, operations: EventSource::new(operations) }
    }

    fn real_members(&self) -> Result<&dyn Members> {
        let missing = || StoreError::Refused("this database has no register".to_owned());
        self.store.members().ok_or_else(missing)
    }

    /// Counts and measures an operation.
    async fn measure<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let kind = OPERATIONS.iter().position(|known| *known == operation).unwrap_or_default();
        let mut event = self.operations.begin(kind, CANCELLED);
        let result = times::part(Part::Store, work).await;
        event.set_code(number(&result));
        result
    }

    /// Measures an operation, in a span of its own, and logs its failure.
    async fn observe<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let observed = async {
            let result = self.measure(operation, work).await;
            match &result {
                // A full queue refuses many calls at once. They are counted.
                Ok(_) | Err(StoreError::Overloaded) => {}
                Err(error @ StoreError::Unavailable(_)) => {
                    tracing::warn!(%error, "a store operation failed");
                }
                Err(error @ (StoreError::Damaged(_) | StoreError::Refused(_))) => {
                    tracing::error!(%error, "a store operation failed");
                }
            }
            result
        };
        observed.instrument(tracing::info_span!("store", operation)).await
    }
}

#[async_trait]
impl Store for ObservedStore {
    async fn create_session(&self, creation: Creation) -> Result<Created> {
        self.observe("create_session", self.store.create_session(creation)).await
    }

    async fn refresh_session(&self, attempt: RefreshAttempt) -> Result<Refreshed> {
        self.observe("refresh_session", self.store.refresh_session(attempt)).await
    }

    async fn change_session(&self, change: SessionChange) -> Result<Changed> {
        self.observe("change_session", self.store.change_session(change)).await
    }

    async fn revoke(&self, revocation: Revocation) -> Result<RevocationOutcome> {
        self.observe("revoke", self.store.revoke(revocation)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.observe("session", self.store.session(id)).await
    }

    async fn metadata_of(&self, ids: Vec<SessionId>) -> Result<Vec<SessionMetadata>> {
        self.observe("metadata_of", self.store.metadata_of(ids)).await
    }

    async fn legacy_token(&self, hash: LegacyTokenHash) -> Result<Option<LegacyToken>> {
        self.observe("legacy_token", self.store.legacy_token(hash)).await
    }

    async fn sessions(&self, query: SessionQuery) -> Result<Found<Vec<Session>, SessionId>> {
        self.observe("sessions", self.store.sessions(query)).await
    }

    async fn count_sessions(&self, query: SessionQuery) -> Result<Found<i64, SessionId>> {
        self.observe("count_sessions", self.store.count_sessions(query)).await
    }

    async fn unfinished(&self) -> Result<Vec<CutOffEntry>> {
        self.observe("unfinished", self.store.unfinished()).await
    }

    async fn end_covered_sessions(
        &self,
        entry: CutOffEntry,
        walk: Walk,
        limit: i64,
    ) -> Result<Option<EndedBatch>> {
        self.observe("end_covered_sessions", self.store.end_covered_sessions(entry, walk, limit))
            .await
    }

    async fn cut_offs(&self) -> Result<Vec<CutOffEntry>> {
        self.observe("cut_offs", self.store.cut_offs()).await
    }

    async fn count_covered(
        &self,
        key: CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<CountedBatch>> {
        let counting = self.store.count_covered(key, cut_off, now, after, limit);
        self.observe("count_covered", counting).await
    }

    async fn end_all_sessions(
        &self,
        ended: Ended,
        until: Timestamp,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<EndedBatch>> {
        self.observe("end_all_sessions", self.store.end_all_sessions(ended, until, after, limit))
            .await
    }

    async fn newest(&self) -> Result<Option<Timestamp>> {
        self.observe("newest", self.store.newest()).await
    }

    async fn now(&self) -> Result<Option<Timestamp>> {
        self.observe("now", self.store.now()).await
    }

    async fn delete_expired_revocations(
        &self,
        until: Timestamp,
        limit: i64,
    ) -> Result<SweptRevocations> {
        self.observe(
            "delete_expired_revocations",
            self.store.delete_expired_revocations(until, limit),
        )
        .await
    }

    async fn record_expiries(
        &self,
        until: Timestamp,
        limit: i64,
        keep: bool,
    ) -> Result<RecordedExpiries> {
        self.observe("record_expiries", self.store.record_expiries(until, limit, keep)).await
    }

    async fn delete_old_sessions(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.observe("delete_old_sessions", self.store.delete_old_sessions(until, limit)).await
    }

    async fn delete_old_legacy_tokens(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.observe("delete_old_legacy_tokens", self.store.delete_old_legacy_tokens(until, limit))
            .await
    }

    async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<()> {
        // The writer of the audit tries again and again, and logs the first failure itself.
        self.measure("append_audit", self.store.append_audit(entries)).await
    }

    async fn audit(&self, query: AuditQuery) -> Result<Found<Vec<AuditEntry>, AuditPlace>> {
        self.observe("audit", self.store.audit(query)).await
    }

    async fn delete_old_audit(&self, until: Timestamp, limit: i64) -> Result<usize> {
        self.observe("delete_old_audit", self.store.delete_old_audit(until, limit)).await
    }

    async fn release_space(&self) -> Result<bool> {
        self.observe("release_space", self.store.release_space()).await
    }

    async fn ring(&self) -> Result<SealedRing> {
        self.observe("ring", self.store.ring()).await
    }

    async fn change_ring(&self, change: RingChange) -> Result<Option<FeedPosition>> {
        self.observe("change_ring", self.store.change_ring(change)).await
    }

    async fn is_refresh_key_in_use(&self, key: RefreshKeyId, now: Timestamp) -> Result<bool> {
        self.observe("is_refresh_key_in_use", self.store.is_refresh_key_in_use(key, now)).await
    }

    async fn sizes(&self, now: Timestamp) -> Result<Sizes> {
        self.observe("sizes", self.store.sizes(now)).await
    }

    async fn begin_watching(&self, validity: Duration) -> Result<()> {
        self.observe("begin_watching", self.store.begin_watching(validity)).await
    }

    async fn watched(&self) -> Result<Option<Duration>> {
        self.observe("watched", self.store.watched()).await
    }

    async fn end_watching(&self) -> Result<()> {
        self.observe("end_watching", self.store.end_watching()).await
    }

    fn renewal_client(&self) -> Box<dyn RenewalClient> {
        self.store.renewal_client()
    }

    fn revocation_hints(&self) -> watch::Receiver<Seq> {
        self.store.revocation_hints()
    }

    fn counts(&self) -> StoreCounts {
        self.store.counts()
    }

    async fn stopped(&self) {
        self.store.stopped().await;
    }

    fn members(&self) -> Option<&dyn Members> {
        self.store.members().map(|_| self as &dyn Members)
    }
}

/// The register of the observed store. Those who change it log failures themselves.
#[async_trait]
impl Members for ObservedStore {
    async fn register(&self) -> Result<Register> {
        self.measure("register", self.real_members()?.register()).await
    }

    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool> {
        self.measure("remove", self.real_members()?.remove(incarnation, renewals)).await
    }

    async fn settle(&self, before: Timeline, now: Timeline) -> Result<()> {
        self.measure("settle", self.real_members()?.settle(before, now)).await
    }

    async fn leave(&self, incarnation: Incarnation) -> Result<()> {
        self.measure("leave", self.real_members()?.leave(incarnation)).await
    }

    async fn delete_former_replicas(&self) -> Result<usize> {
        let deleting = self.real_members()?.delete_former_replicas();
        self.observe("delete_former_replicas", deleting).await
    }
}
