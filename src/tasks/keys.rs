//! Rotates the keys when they are due.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::authority::{Authority, error::AuthorityError};

/// Checks whether a change of the keys is due, and makes it: once every `every`, and whenever
/// `wanted` is notified. As a rule, the check does not use the database.
pub async fn run(authority: Arc<Authority>, every: Duration, wanted: Arc<Notify>) {
    loop {
        match authority.rotate_what_is_due().await {
            Ok(()) => {}
            // The change stays due, so the next check makes it.
            Err(AuthorityError::StoreUnavailable) => {
                tracing::debug!("the keys are checked again later")
            }
            Err(error) => tracing::warn!(%error, "the keys could not be rotated; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = wanted.notified() => {}
        }
    }
}
