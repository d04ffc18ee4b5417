//! Ends the sessions of revoked tenants: at start, and whenever a tenant is revoked.

use std::{sync::Arc, time::Duration};

use crate::authority::Authority;

/// How long to wait before trying again after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// Ends what is to end.
pub async fn run(authority: Arc<Authority>) {
    loop {
        match authority.end_revoked_tenants().await {
            Ok(sessions) => {
                // Whoever revokes a tenant again and again must not fill the log.
                if sessions > 0 {
                    tracing::info!(sessions, "the sessions of revoked tenants have been ended");
                }
                authority.tenant_revoked().await;
            }
            Err(error) => {
                tracing::warn!(%error, "the sessions of revoked tenants are not all ended yet; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
