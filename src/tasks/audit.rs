//! Writes audit records to their table.

use std::time::Duration;

use crate::authority::audit::AuditWriter;

/// The time for which records are gathered before they are written. A transaction for each record
/// would delay the writes that callers wait for.
const GATHERING: Duration = Duration::from_millis(200);

/// The first and the longest wait after the database failed. Each wait is twice as long as the one
/// before.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Writes whenever there are records. While the database is not reachable, records are kept up to
/// the capacity of the queue.
pub async fn run(mut writer: AuditWriter) {
    let mut retry = FIRST_RETRY;
    let mut is_in_trouble = false;
    loop {
        writer.wait().await;
        tokio::time::sleep(GATHERING).await;
        while let Err(error) = writer.write().await {
            if !is_in_trouble {
                tracing::warn!(%error, "the audit cannot be written to its table; trying again");
                is_in_trouble = true;
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
        if is_in_trouble {
            tracing::info!("the audit is written to its table again");
        }
        (retry, is_in_trouble) = (FIRST_RETRY, false);
    }
}
