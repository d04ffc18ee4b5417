//! `[log]`: what is logged, and in which form.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::error::{ConfigError, invalid};
use crate::domain::audit::TARGET;

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as of tracing-subscriber's `EnvFilter`.
    pub level: String,
    /// The form of the lines.
    #[serde(deserialize_with = "super::section::read_choice")]
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// A JSON object a line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

impl Log {
    /// Which lines are logged, if the level says it well.
    pub fn filter(&self) -> Result<EnvFilter, ConfigError> {
        let filter = EnvFilter::try_new(&self.level).map_err(|_| {
            let problem = "must be error, warn, info, debug, trace, or directives like info,countersign=debug";
            invalid("log.level", format!("{:?} {problem}", self.level))
        })?;
        // The audit is no matter of how much one wants to read, so only its own name turns it off.
        match format!("{TARGET}=info").parse() {
            Ok(audit) if !self.level.contains(TARGET) => Ok(filter.add_directive(audit)),
            _ => Ok(filter),
        }
    }
}
