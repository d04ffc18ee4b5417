//! Ends the sessions of revoked tenants, in batches. Their tokens are inactive already: the tenant's entry stops them.

use super::{Authority, error::AuthorityError};

impl Authority {
    /// Ends what is left to be ended. After a restart it starts anew, so that a crash in the middle loses nothing. Returns
    /// how many sessions ended.
    pub async fn end_revoked_tenants(&self) -> Result<usize, AuthorityError> {
        let mut ended = self.ended_tenants.lock().await;
        // Before they are read, so that what is read later does not count as known.
        let epoch = self.replica.epoch();
        let tenants = self.store.revoked_tenants().await?;
        ended.retain(|name, _| tenants.iter().any(|tenant| *tenant.tenant == **name));
        let mut count = 0;
        for tenant in tenants {
            if ended.get(&*tenant.tenant) == Some(&(epoch, tenant.seq)) {
                continue;
            }
            let mut after = None;
            while let Some(batch) =
                self.store.end_tenant_sessions(tenant.clone(), after, self.settings.sweep_batch).await?
            {
                after = Some(batch.last);
                count += batch.sessions;
            }
            ended.insert(tenant.tenant.into_string(), (epoch, tenant.seq));
        }
        Ok(count)
    }

    /// Waits until a tenant has been revoked.
    pub async fn tenant_revoked(&self) {
        self.replica.tenant_revoked().await;
    }
}
