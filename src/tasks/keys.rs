//! Rotates the keys when they are due.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::authority::{Authority, error::AuthorityError};

/// Checks whether a change of the keys is due, and makes it: at an interval, and whenever `wanted` is
/// notified. As a rule, the check does not use the database.
pub async fn run(authority: Arc<Authority>, wanted: Arc<Notify>) {
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
            () = tokio::time::sleep(authority.key_check_interval()) => {}
            () = wanted.notified() => {}
        }
    }
}
