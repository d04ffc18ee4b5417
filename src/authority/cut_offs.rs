//! Marks the sessions of revoked tenants and subjects as ended, in batches. The tokens of these
//! sessions are refused even before that, because a blacklist entry stops them.

use super::{Authority, error::AuthorityError};

impl Authority {
    /// Ends the remaining sessions that unfinished blacklist entries cover, and returns the number
    /// of sessions that it ended. A crash loses nothing, because an entry stays unfinished until
    /// its last batch.
    pub async fn end_covered_sessions(&self) -> Result<usize, AuthorityError> {
        let limit = self.settings().sweep_batch;
        let mut count = 0;
        for entry in self.store.unfinished().await? {
            let mut after = None;
            while let Some(batch) =
                self.store.end_covered_sessions(entry.clone(), after, limit).await?
            {
                after = Some(batch.last);
                count += batch.sessions;
            }
        }
        Ok(count)
    }
}
