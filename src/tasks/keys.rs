//! Rotates the keys by their schedule.

use std::{sync::Arc, time::Duration};

use crate::authority::{Authority, error::AuthorityError};

/// Looks again and again whether something is due. That costs no look at the database.
pub async fn run(authority: Arc<Authority>, every: Duration) {
    loop {
        match authority.rotate_what_is_due().await {
            Ok(()) => {}
            // What is due stays due.
            Err(AuthorityError::StoreUnavailable) => {
                tracing::debug!("the keys are looked at again later")
            }
            Err(error) => tracing::warn!(%error, "the keys could not be rotated; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = authority.keys_wanted() => {}
        }
    }
}
