//! Ends the sessions of revoked tenants and subjects, in batches. Their tokens are inactive
//! already: an entry stops them.

use super::{Authority, error::AuthorityError};

impl Authority {
    /// Ends what is left to be ended. A crash in the middle loses nothing: an entry counts as
    /// unfinished until the last batch. Returns how many sessions ended.
    pub async fn end_covered_sessions(&self) -> Result<usize, AuthorityError> {
        let mut count = 0;
        for entry in self.store.unfinished().await? {
            let mut after = None;
            while let Some(batch) = self
                .store
                .end_covered_sessions(entry.clone(), after, self.settings.sweep_batch)
                .await?
            {
                after = Some(batch.last);
                count += batch.sessions;
            }
        }
        Ok(count)
    }

    /// Waits until the entry of a tenant or of a subject has been applied, if none has since the
    /// last time.
    pub async fn all_revoked(&self) {
        self.replica.all_revoked().await;
    }
}
