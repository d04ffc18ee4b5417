//! How the process ends: softly at the first signal, at once at the second.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two steps of stopping. Both are arguments of whatever runs, so that tests stop it as signals do.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish what is in flight, then stop.
    pub soft: CancellationToken,
    /// Stop at once.
    pub hard: CancellationToken,
}

impl Shutdown {
    /// Stops at SIGTERM and SIGINT.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        // A file at its size limit must fail the write, which callers are told, and not kill the process.
        let _ = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let steps = [shutdown.soft.clone(), shutdown.hard.clone()];
        tokio::spawn(async move {
            for step in steps {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "stopping");
                step.cancel();
            }
        });
        Ok(shutdown)
    }
}
