//! The signals that the process handles. The first SIGTERM or SIGINT starts a soft stop, the second
//! stops the process at once, and SIGHUP reloads certificates and settings.

use std::sync::Arc;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// The requests to stop and to reload. They are passed as arguments, so that tests can make them
/// without signals.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled to stop after the calls in flight have finished.
    pub soft: CancellationToken,
    /// Cancelled to stop at once.
    pub hard: CancellationToken,
    /// Notified to reload certificates and settings.
    pub reload: Arc<Notify>,
}

impl Shutdown {
    /// Installs the handlers of SIGTERM, SIGINT and SIGHUP.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        // SIGXFSZ would kill the process when a file reaches its size limit. While the signal is
        // handled, the write fails instead, and the caller gets an error.
        let _ = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let reload = shutdown.reload.clone();
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                reload.notify_one();
            }
        });
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
