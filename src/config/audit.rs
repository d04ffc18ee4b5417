//! `[audit]`: where records of the audit go besides the log, and for how long they are kept there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Whether records go to the table, too.
    pub table: bool,
    /// How long the table keeps them.
    #[serde(with = "super::span")]
    pub retention: Duration,
}

impl Default for Audit {
    fn default() -> Self {
        Self { table: true, retention: Duration::from_secs(90 * 86_400) }
    }
}

impl Audit {
    /// Refuses a table of which nothing is seen.
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
