//! Log lines: text on a terminal, JSON elsewhere, on standard error. Tokens, keys and claims never get here.

use std::io::{self, IsTerminal};

use tracing_subscriber::{fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{
    error::ConfigError,
    log::{Log, LogFormat},
};

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not one.
    #[error(transparent)]
    Level(#[from] ConfigError),
    /// It has been started before.
    #[error("logging has been started before")]
    Twice,
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let filter = log.filter()?;
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
