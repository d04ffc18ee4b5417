//! Records the actions of use cases. Each record is written to the log at once, and to a table soon
//! after.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use governor::Quota;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};

use super::rate_limiter::RateLimiter;
use crate::{
    clock::Clock,
    domain::{
        audit::{AuditAction, AuditEntry, AuditRecord, TARGET},
        call_id::CallId,
        ids::AuditId,
        text::Note,
        time::Timestamp,
        who::Who,
    },
    store::{Store, StoreError},
};

/// The largest number of records that wait for the table. Further records are only written to the
/// log, so that a slow database does not make memory grow.
const MOST_WAITING: usize = 16_384;

/// The largest number of records in one transaction. It is limited so that no other write waits
/// long.
pub const BATCH: usize = 512;

/// The number of records of denied calls that one caller may cause in each period. They may all be
/// caused at once.
const DENIED_RECORDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
/// The quota of each caller for the log lines of its denied calls.
const DENIED_LINES: Quota = Quota::per_second(DENIED_RECORDS);
/// The quota of each caller for the table rows of its denied calls. A caller without permissions
/// must not be able to fill the table.
const DENIED_ROWS: Quota = Quota::per_minute(DENIED_RECORDS);

/// Accepts the records of use cases. A clone is cheap, because all clones share one state.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    /// Distinguishes the identifiers of this process's records from those of other processes.
    salt: [u8; 6],
    count: AtomicU32,
    /// The limits for each caller that was denied something. The configuration has few callers, so
    /// the map stays small.
    denied: Mutex<HashMap<Who, Denied>>,
    table: Option<mpsc::Sender<AuditEntry>>,
    /// The number of records that wait for the table.
    waiting: watch::Sender<usize>,
    dropped: Counter,
    left_out: Counter,
}

/// The limits on the records of one denied caller.
struct Denied {
    lines: RateLimiter,
    rows: RateLimiter,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Audit {
    /// Creates an audit whose records go only to the log. The salt must be random.
    pub fn of_log(clock: Arc<dyn Clock>, salt: [u8; 6]) -> Self {
        Self::new(clock, salt, None)
    }

    /// Creates an audit whose records go to the log and to the returned queue.
    pub fn with_table(clock: Arc<dyn Clock>, salt: [u8; 6]) -> (Self, AuditQueue) {
        let (table, entries) = mpsc::channel(MOST_WAITING);
        let audit = Self::new(clock, salt, Some(table));
        (audit.clone(), AuditQueue { entries, audit })
    }

    fn new(clock: Arc<dyn Clock>, salt: [u8; 6], table: Option<mpsc::Sender<AuditEntry>>) -> Self {
        Self(Arc::new(Shared {
            clock,
            salt,
            count: AtomicU32::default(),
            denied: Mutex::default(),
            table,
            waiting: watch::Sender::default(),
            dropped: Counter::default(),
            left_out: Counter::default(),
        }))
    }

    /// Returns whether records are kept in a table.
    pub fn has_table(&self) -> bool {
        self.0.table.is_some()
    }

    /// Writes a record to the log at once, and queues it for the table. This neither waits for the
    /// database nor fails.
    ///
    /// A record of an unknown caller goes only to the log, because otherwise anybody could fill the
    /// table. The lines of unknown callers, and the lines and rows of denied calls, are limited in
    /// rate. The next line or row that is written says how many were left out.
    pub fn record(&self, record: AuditRecord) {
        let (line, row) = self.allowed(&record);
        if line.is_none() && row.is_none() {
            return;
        }
        let count = self.0.count.fetch_add(1, Ordering::Relaxed);
        let id = AuditId::new(record.at, count, self.0.salt);
        if let Some(left_out) = line {
            log(id, &record, left_out);
        }
        if let Some(left_out) = row
            && let Some(table) = &self.0.table
        {
            self.add_waiting(1);
            if table.try_send(AuditEntry { id, record, left_out }).is_err() {
                self.subtract_waiting(1);
                self.0.dropped.inc();
            }
        }
    }

    /// Writes a record to the log after the record has been stored in the table.
    pub fn log_stored(&self, AuditEntry { id, record, left_out }: &AuditEntry) {
        log(*id, record, *left_out);
    }

    /// Records that a caller asked for something that it may not do.
    pub fn denied(&self, caller: Who, peer: Option<IpAddr>, call: Option<CallId>, asked: &str) {
        let at = self.0.clock.now();
        // The names of operations, and the problems with them, are short enough for a note, so the
        // default is never used.
        let note = Note::try_from(asked.to_owned()).unwrap_or_default();
        self.record(AuditRecord {
            note,
            call,
            ..AuditRecord::new(AuditAction::CallerDenied, at, caller, peer)
        });
    }

    /// Decides whether a record is written to the log, and whether it is written to the table. Each
    /// `Some` holds the number of earlier records that were left out there.
    fn allowed(&self, record: &AuditRecord) -> (Option<i64>, Option<i64>) {
        let is_known = record.caller != Who::Unknown;
        if is_known && record.action != AuditAction::CallerDenied {
            return (Some(0), Some(0));
        }
        let mut denied = self.0.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let of_caller = denied.entry(record.caller.clone()).or_insert_with(|| {
            let limiter = |quota| RateLimiter::new(quota, self.0.clock.clone());
            Denied { lines: limiter(DENIED_LINES), rows: limiter(DENIED_ROWS) }
        });
        let line = of_caller.lines.take();
        if line.is_none() {
            self.0.left_out.inc();
        }
        (line, if is_known { of_caller.rows.take() } else { None })
    }

    /// Waits until at most half of the places in the queue are taken, or until there is no writer
    /// any more. Whoever is about to make very many records waits for this, so that the table can
    /// keep up with them.
    pub async fn has_room(&self) {
        self.at_most(MOST_WAITING / 2).await;
    }

    /// Waits until no record waits for the table, or until there is no writer any more.
    pub async fn written(&self) {
        self.at_most(0).await;
    }

    async fn at_most(&self, most: usize) {
        let Some(table) = &self.0.table else { return };
        let mut waiting = self.0.waiting.subscribe();
        tokio::select! {
            _ = waiting.wait_for(|waiting| *waiting <= most) => {}
            () = table.closed() => {}
        }
    }

    /// Returns the number of records that wait for the table.
    pub fn waiting(&self) -> usize {
        *self.0.waiting.borrow()
    }

    /// Returns the number of records that were not stored in the table and never will be.
    pub fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    /// Returns the number of records that were left out of the log by the limits on denied and
    /// unknown callers.
    pub fn left_out(&self) -> &Counter {
        &self.0.left_out
    }

    fn add_waiting(&self, entries: usize) {
        self.0.waiting.send_modify(|waiting| *waiting = waiting.saturating_add(entries));
    }

    fn subtract_waiting(&self, entries: usize) {
        self.0.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(entries));
    }
}

/// Writes one line to the log. Texts are passed unquoted, because each log format quotes them in
/// its own way. An expiry is recorded some time after it happened, so its line also has the field
/// `at`.
fn log(id: AuditId, record: &AuditRecord, left_out: i64) {
    let is_late = record.action == AuditAction::SessionExpired;
    let at = is_late.then(|| rfc3339(record.at)).flatten();
    tracing::info!(
        target: TARGET,
        %id,
        action = record.action.as_str(),
        caller = record.caller.as_str(),
        peer = record.peer.map(tracing::field::display),
        x_request_id = record.call.as_ref().map(CallId::as_str),
        tenant = record.tenant.as_deref(),
        subject = record.subject.as_deref(),
        session_id = record.session_id.map(tracing::field::display),
        kid = record.kid.as_deref(),
        reason = record.reason.map(|reason| reason.as_str()),
        note = Some(&*record.note).filter(|note| !note.is_empty()),
        sessions = record.sessions,
        client_id = record.client_id.as_deref(),
        created_before = record.created_before.and_then(rfc3339).map(tracing::field::display),
        authenticated_before =
            record.authenticated_before.and_then(rfc3339).map(tracing::field::display),
        at = at.map(tracing::field::display),
        left_out = Some(left_out).filter(|left_out| *left_out > 0),
        "audit"
    );
}

/// Returns a value that is displayed in the form of RFC 3339.
fn rfc3339(at: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_microsecond(at.micros()).ok()
}

/// The queue of records for the table.
#[derive(Debug)]
pub struct AuditQueue {
    entries: mpsc::Receiver<AuditEntry>,
    audit: Audit,
}

/// Writes records from the queue to the table. A background task drives it.
pub struct AuditWriter {
    store: Arc<dyn Store>,
    queue: AuditQueue,
    /// The records that were taken from the queue, and that are not known to be in the table.
    held: Vec<AuditEntry>,
}

impl fmt::Debug for AuditWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditWriter").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl AuditWriter {
    /// Creates a writer to this database.
    pub fn new(store: Arc<dyn Store>, queue: AuditQueue) -> Self {
        Self { store, queue, held: vec![] }
    }

    /// Waits until there is a record to write.
    pub async fn wait(&mut self) {
        if self.held.is_empty() {
            self.held.extend(self.queue.entries.recv().await);
        }
    }

    /// Writes the queued records, one batch in each transaction. The call ends after the first
    /// batch that is not full. Records that arrive later wait for the next call, so that there are
    /// few transactions. After an error, the unwritten records are kept for the next call. If the
    /// database did store them in spite of the error, storing them again changes nothing.
    pub async fn write(&mut self) -> Result<(), StoreError> {
        loop {
            while self.held.len() < BATCH
                && let Ok(entry) = self.queue.entries.try_recv()
            {
                self.held.push(entry);
            }
            if self.held.is_empty() {
                return Ok(());
            }
            let there_may_be_more = self.held.len() == BATCH;
            match self.store.append_audit(self.held.clone()).await {
                Ok(()) => {
                    self.queue.audit.subtract_waiting(self.held.len());
                    self.held.clear();
                }
                Err(error) if may_pass(&error) => return Err(error),
                Err(_) => self.write_each_alone().await?,
            }
            if !there_may_be_more {
                return Ok(());
            }
        }
    }

    /// Writes the records one by one, after their batch was refused. A record that the database
    /// refuses is dropped, so that it neither blocks the other records nor is tried for ever.
    async fn write_each_alone(&mut self) -> Result<(), StoreError> {
        while let Some(entry) = self.held.last() {
            match self.store.append_audit(vec![entry.clone()]).await {
                Ok(()) => {}
                Err(error) if may_pass(&error) => return Err(error),
                Err(error) => {
                    tracing::error!(id = %entry.id, %error, "an audit record is only in the log");
                    self.queue.audit.dropped().inc();
                }
            }
            self.held.pop();
            self.queue.audit.subtract_waiting(1);
        }
        Ok(())
    }
}

/// Returns whether another attempt to write may succeed after this error.
fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Overloaded)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
