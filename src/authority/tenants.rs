//! Ends the sessions of revoked tenants, in batches. Their tokens are inactive already: the tenant's entry stops them.

use super::{Authority, error::AuthorityError};

impl Authority {
    /// Ends what is left to be ended, from the start, so that a crash in the middle loses nothing. Returns how many
    /// tenants it went through.
    pub async fn end_revoked_tenants(&self) -> Result<usize, AuthorityError> {
        let tenants = self.store.revoked_tenants().await?;
        for tenant in &tenants {
            let mut after = None;
            while let Some(last) =
                self.store.end_tenant_sessions(tenant.clone(), after, self.settings.sweep_batch).await?
            {
                after = Some(last);
            }
        }
        Ok(tenants.len())
    }

    /// Waits until a tenant has been revoked by this process.
    pub async fn tenant_revoked(&self) {
        self.tenant_revoked.notified().await;
    }
}
