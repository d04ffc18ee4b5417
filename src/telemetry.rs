//! Log lines: text on a terminal, JSON elsewhere, on standard error. Tokens, keys and claims never get here.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::log::{Log, LogFormat};

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not one.
    #[error(
        "setting log.level: {0:?} must be error, warn, info, debug, trace, or directives like info,countersign=debug"
    )]
    Level(String),
    /// It has been started before.
    #[error("logging has been started before")]
    Twice,
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&log.level).map_err(|_| TelemetryError::Level(log.level.clone()))?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)).try_init()
    };
    started.map_err(|_| TelemetryError::Twice)
}
