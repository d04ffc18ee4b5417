//! The audit of what the command line does to a database beside a service.

use std::sync::Arc;

use super::{AppError, System};
use crate::{
    authority::audit::{Audit, AuditQueue, AuditWriter, BATCH},
    config::Config,
    domain::{
        audit::{AuditAction, AuditRecord, Who},
        time::Timestamp,
    },
    rng::random,
    store::Store,
};

/// Opens the audit, and the queue in which records wait for its table, if it is to have one.
pub fn open_audit(
    config: &Config,
    system: &System,
) -> Result<(Audit, Option<AuditQueue>), AppError> {
    let salt = random(&*system.rng)?;
    if !config.audit.table {
        return Ok((Audit::of_log(system.clock.clone(), salt), None));
    }
    let (audit, queue) = Audit::with_table(system.clock.clone(), salt);
    Ok((audit, Some(queue)))
}

/// The audit of a command.
pub struct CommandAudit {
    audit: Audit,
    table: Option<AuditWriter>,
}

impl CommandAudit {
    /// Opens the audit of a command that works on this database.
    pub fn open(
        config: &Config,
        system: &System,
        store: &Arc<dyn Store>,
    ) -> Result<Self, AppError> {
        let (audit, queue) = open_audit(config, system)?;
        Ok(Self::new(audit, queue, store))
    }

    /// The audit whose records wait in this queue, if they are to be in the table too.
    pub fn new(audit: Audit, queue: Option<AuditQueue>, store: &Arc<dyn Store>) -> Self {
        Self { audit, table: queue.map(|queue| AuditWriter::new(Arc::clone(store), queue)) }
    }

    /// Returns the audit in which others record what they do for the command.
    pub fn log(&self) -> &Audit {
        &self.audit
    }

    /// Records a change in the log and in the table.
    pub async fn record(&mut self, record: AuditRecord) {
        self.audit.record(record);
        self.write().await;
    }

    /// Records a change in the log at once, and in the table with many others: a transaction for
    /// each would take the longest part of a command that changes much. [`Self::write`] comes at
    /// its end.
    pub async fn record_in_batches(&mut self, record: AuditRecord) {
        self.audit.record(record);
        if self.audit.waiting() >= BATCH {
            self.write().await;
        }
    }

    /// Writes the records that wait to the table. What they are about has been done, so this does
    /// not fail because the table cannot be written.
    pub async fn write(&mut self) {
        if let Some(table) = &mut self.table
            && let Err(error) = table.write().await
        {
            tracing::warn!(%error, "the table of the audit lacks records: they are in the log \
                                    alone");
        }
    }
}

/// A record of something that the command line did.
pub fn by_command(action: AuditAction, at: Timestamp) -> AuditRecord {
    AuditRecord::new(action, at, Who::Service, None)
}
