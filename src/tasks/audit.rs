//! Writes audit records to the table `audit`.

use std::time::Duration;

use crate::authority::audit::AuditWriter;

/// The time for which records are collected before they are written together. A transaction for
/// each record would delay the writes that callers wait for.
const GATHERING: Duration = Duration::from_millis(200);

/// The first and the longest wait after the database has failed. Each wait is twice as long as the
/// previous one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Writes records whenever there are any. While the database is not reachable, the queue keeps
/// records up to its capacity.
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
