//! Marks the sessions of revoked tenants and subjects as ended, at the start of the process and
//! whenever a tenant or a subject is revoked.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::authority::Authority;

/// The wait before another attempt after the database has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is dropped. `revoked` is notified when a tenant or a subject is revoked.
pub async fn run(authority: Arc<Authority>, revoked: Arc<Notify>) {
    loop {
        match authority.end_covered_sessions().await {
            Ok(sessions) => {
                // Without this condition, repeated revocations of the same subject could fill the
                // log.
                if sessions > 0 {
                    tracing::info!(
                        sessions,
                        "the sessions of revoked tenants and subjects have been ended"
                    );
                }
                revoked.notified().await;
            }
            Err(error) => {
                tracing::warn!(%error, "the sessions of revoked tenants and subjects are not all \
                                        ended yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
