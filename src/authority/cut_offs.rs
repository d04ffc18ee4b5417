//! Marks the sessions that cut-offs cover as ended, in batches. The tokens of these sessions are
//! refused even before that, because the blacklist entry of the cut-off stops them.

use super::{Authority, error::AuthorityError};
use crate::store::Walk;

impl Authority {
    /// Ends the remaining sessions that unfinished blacklist entries cover, and returns the number
    /// of sessions that it ended. A crash loses nothing, because an entry stays unfinished until
    /// its last batch.
    pub async fn end_covered_sessions(&self) -> Result<usize, AuthorityError> {
        let limit = self.settings().sweep_batch;
        let (mut count, counts) = (0, &self.counts.cut_offs);
        let entries = self.store.unfinished().await?;
        let mut left = i64::try_from(entries.len()).unwrap_or(i64::MAX);
        for entry in entries {
            counts.unfinished.set(left);
            let mut walk = Walk { began_at: self.clock.now(), after: None };
            while let Some(batch) =
                self.store.end_covered_sessions(entry.clone(), walk, limit).await?
            {
                walk.after = Some(batch.last);
                count += batch.sessions;
                counts.ended_sessions.inc_by(u64::try_from(batch.sessions).unwrap_or(u64::MAX));
            }
            left -= 1;
        }
        counts.unfinished.set(left);
        Ok(count)
    }
}
