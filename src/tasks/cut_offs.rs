//! Marks the sessions that cut-offs cover as ended, at the start of the process and whenever a
//! cut-off is made.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::authority::Authority;

/// The wait before another attempt after the database has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is dropped. `revoked` is notified when a cut-off is made.
pub async fn run(authority: Arc<Authority>, revoked: Arc<Notify>) {
    loop {
        match authority.end_covered_sessions().await {
            Ok(sessions) => {
                // Without this condition, repeated revocations of the same subject could fill the
                // log.
                if sessions > 0 {
                    tracing::info!(sessions, "the sessions that revocations cover have been ended");
                }
                revoked.notified().await;
            }
            Err(error) => {
                tracing::warn!(%error, "the sessions that revocations cover are not all ended yet; \
                                        trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
