//! Ends the sessions of revoked tenants and subjects: at start, and whenever one is revoked.

use std::{sync::Arc, time::Duration};

use crate::authority::Authority;

/// How long to wait before trying again after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// Ends what is to end.
pub async fn run(authority: Arc<Authority>) {
    loop {
        match authority.end_covered_sessions().await {
            Ok(sessions) => {
                // Whoever revokes the same again and again must not fill the log.
                if sessions > 0 {
                    tracing::info!(
                        sessions,
                        "the sessions of revoked tenants and subjects have been ended"
                    );
                }
                authority.all_revoked().await;
            }
            Err(error) => {
                tracing::warn!(%error, "the sessions of revoked tenants and subjects are not all \
                                        ended yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
