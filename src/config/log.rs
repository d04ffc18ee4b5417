//! `[log]`: the level and the format of the log.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::{
    error::{ConfigError, invalid, unknown_word},
    word,
};
use crate::domain::audit::TARGET;

/// The section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level (`error`, `warn`, `info`, `debug`, `trace` or `off`), or directives of
    /// tracing-subscriber's `EnvFilter`.
    pub level: String,
    /// The format of the lines.
    #[serde(deserialize_with = "super::section::read_choice")]
    pub format: LogFormat,
    /// The time from which on a call is slow, and is logged; zero if no call is.
    #[serde(with = "super::span")]
    pub slow_calls: Duration,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
            slow_calls: Duration::from_secs(1),
        }
    }
}

/// Changes the level of the log while the process runs.
pub trait LevelControl: Send + Sync {
    /// Sets the level.
    fn set(&self, log: &Log) -> Result<(), String>;
}

const SETTING: &str = "log.level";
/// The levels. `EnvFilter` also takes numbers, which are refused because they are hard to read.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
const EXAMPLE: &str = "like info,countersign=debug";
/// The first part of every log target of this service.
const CRATE: &str = "countersign";

/// Refuses a directive with an unknown level, or with a target that looks like a mistyped
/// `countersign`.
fn check(directive: &str) -> Result<(), ConfigError> {
    let unknown = |word: &str| match word::nearest(word, &LEVELS) {
        Some(_) => unknown_word(SETTING, word, &LEVELS),
        None => {
            let levels = LEVELS.join(", ");
            invalid(SETTING, format!("{word:?} is not one of {levels}, or directives {EXAMPLE}"))
        }
    };
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let (span_end, rest) =
        directive.rsplit_once(']').map_or(("", directive), |(span, rest)| (span, rest));
    let (target, level) = match (span_end, rest.rsplit_once('=')) {
        ("", None) => ("", rest),
        // A directive that names a span and no level enables every level.
        (_, None) => return Ok(()),
        ("", Some((target, level))) => (target, level),
        (span, Some((_, level))) => (span.split('[').next().unwrap_or(""), level),
    };
    if !is_level(level) {
        return Err(unknown(level));
    }
    let name = target.split("::").next().unwrap_or("");
    match word::nearest(name, &[CRATE]) {
        Some(near) if near != name => Err(invalid(
            SETTING,
            format!("{name:?} is not a part of the service: did you mean {near}?"),
        )),
        _ => Ok(()),
    }
}

impl Log {
    /// Returns this section with the settings of `read` that can change without a restart.
    pub fn reloaded(&self, read: &Self) -> Self {
        // The format is chosen when the log is opened.
        Self { format: self.format, ..read.clone() }
    }

    /// Returns the filter for log lines. Refuses a level that would silence the log by mistake:
    /// `EnvFilter` takes any word that is not a level for a target, and then logs only this target.
    pub fn filter(&self) -> Result<EnvFilter, ConfigError> {
        let directives: Vec<_> = self.level.split(',').map(str::trim).collect();
        for directive in &directives {
            check(directive)?;
        }
        // If no level is set for all targets, only the targets that are named are logged. So a
        // target of this service must be among them.
        let is_ours = |directive: &&str| !directive.contains('=') || directive.starts_with(CRATE);
        if !directives.iter().any(is_ours) {
            let problem = format!(
                "{:?} logs nothing of the service: begin with a level, {EXAMPLE}",
                self.level
            );
            return Err(invalid(SETTING, problem));
        }
        let filter = EnvFilter::try_new(directives.join(",")).map_err(|_| {
            let problem = format!(
                "{:?} is not one of {}, or directives {EXAMPLE}",
                self.level,
                LEVELS.join(", ")
            );
            invalid(SETTING, problem)
        })?;
        // The level is chosen for diagnostics, and must not turn off the audit as a side effect.
        // Only a directive that names the audit's target turns the audit off.
        match format!("{TARGET}=info").parse() {
            Ok(audit) if !self.level.contains(TARGET) => Ok(filter.add_directive(audit)),
            _ => Ok(filter),
        }
    }
}
