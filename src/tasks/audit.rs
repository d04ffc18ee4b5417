//! Writes what was recorded to the table of the audit.

use std::time::Duration;

use crate::authority::audit::AuditWriter;

/// How long others may join a record: a transaction for each would keep the writes waiting that
/// somebody waits for.
const GATHERING: Duration = Duration::from_millis(200);

/// How long to wait after the database failed, at first and at last.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Writes whenever there is something to write. While the database is away, records are kept as far
/// as there is room.
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
