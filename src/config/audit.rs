//! `[audit]`: the database table to which audit records are written, in addition to the log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// True if records are written to the table too.
    pub table: bool,
    /// The time for which the table keeps a record.
    #[serde(with = "super::span")]
    pub retention: Duration,
}

impl Default for Audit {
    fn default() -> Self {
        Self { table: true, retention: Duration::from_secs(90 * 86_400) }
    }
}

impl Audit {
    /// Returns this section with the settings of `read` that can change without a restart.
    pub fn reloaded(&self, read: &Self) -> Self {
        // The queue of records for the table is made when the service starts.
        Self { table: self.table, ..read.clone() }
    }

    /// Checks that the table keeps records for some time.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.retention.is_zero() {
            return Err(invalid(
                "audit.retention",
                "must be more than 0s: to keep no records, set audit.table to false",
            ));
        }
        Ok(())
    }
}
