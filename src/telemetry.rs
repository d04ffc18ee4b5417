//! Writes the log to standard error, by default as text on a terminal and as JSON elsewhere.
//! Tokens, keys and claims must never be logged.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::{filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{
    error::ConfigError,
    log::{Log, LogFormat},
};

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not valid.
    #[error(transparent)]
    Level(#[from] ConfigError),
    /// Logging has been started before.
    #[error("logging has been started before")]
    Twice,
}

/// Returns false for lines that may contain secrets. The PostgreSQL driver logs the values of every
/// statement at the levels below `INFO`, so those lines are dropped whatever level is configured.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !metadata.target().starts_with("tokio_postgres")
}

/// Starts logging for the whole process.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let filter = log.filter()?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_harmless));
    let started = if json {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_writer(io::stderr),
            )
            .try_init()
    } else {
        registry
            .with(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr))
            .try_init()
    };
    started.map_err(|_| TelemetryError::Twice)
}
