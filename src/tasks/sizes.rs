//! Reads the size of the database once a minute, for metrics.

use std::{sync::Arc, time::Duration};

use crate::authority::Authority;

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub async fn run(authority: Arc<Authority>) {
    loop {
        // The store logs a failure. The metrics keep the last sizes until it passes.
        let _ = authority.sample_sizes().await;
        tokio::time::sleep(INTERVAL).await;
    }
}
