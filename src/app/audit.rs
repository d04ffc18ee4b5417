//! The audit of commands that change the database without a running service.

use std::sync::Arc;

use super::{AppError, System};
use crate::{
    authority::audit::{Audit, AuditQueue, AuditWriter, BATCH},
    config::Config,
    domain::{
        audit::{AuditAction, AuditRecord},
        time::Timestamp,
        who::Who,
    },
    rng::random,
    store::Store,
};

/// Opens the audit, and the queue of records for its table; `None` if the table is turned off.
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

    /// Creates the audit of a command. The table gets the records in the queue, if there is one.
    pub fn new(audit: Audit, queue: Option<AuditQueue>, store: &Arc<dyn Store>) -> Self {
        Self { audit, table: queue.map(|queue| AuditWriter::new(Arc::clone(store), queue)) }
    }

    /// Returns the audit, for the functions that record what they do for the command.
    pub fn log(&self) -> &Audit {
        &self.audit
    }

    /// Records a change in the log and in the table.
    pub async fn record(&mut self, record: AuditRecord) {
        self.audit.record(record);
        self.write().await;
    }

    /// Records a change in the log at once, and in the table together with many others, because a
    /// transaction for each would take most of the time of a command that changes much. Call
    /// [`Self::write`] at the end.
    pub async fn record_in_batches(&mut self, record: AuditRecord) {
        self.audit.record(record);
        if self.audit.waiting() >= BATCH {
            self.write().await;
        }
    }

    /// Writes the queued records to the table. If that fails, this function logs a warning, and the
    /// command goes on, because the changes in the records have already been made.
    pub async fn write(&mut self) {
        if let Some(table) = &mut self.table
            && let Err(error) = table.write().await
        {
            tracing::warn!(%error, "the table of the audit lacks records: they are in the log \
                                    alone");
        }
    }
}

/// Returns a record of something that a command did.
pub fn by_command(action: AuditAction, at: Timestamp) -> AuditRecord {
    AuditRecord::new(action, at, Who::Service, None)
}
