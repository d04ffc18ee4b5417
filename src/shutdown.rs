//! What signals say: stop softly at the first one, at once at the second; SIGHUP reads files anew.

use std::sync::Arc;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// Two steps of stopping, and a wish. All are arguments of whatever runs, so that tests do as
/// signals do.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish what is in flight, then stop.
    pub soft: CancellationToken,
    /// Stop at once.
    pub hard: CancellationToken,
    /// Read certificates and callers anew.
    pub reload: Arc<Notify>,
}

impl Shutdown {
    /// Stops at SIGTERM and SIGINT, and reads anew at SIGHUP.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        // A file at its size limit must fail the write, which callers are told, and not kill the
        // process.
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
