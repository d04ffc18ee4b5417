//! The use cases for servers, which are there before them and answer from the start on.

use std::sync::{Arc, OnceLock};

use super::{Authority, error::AuthorityError};

/// The authority, once it is ready.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<OnceLock<Arc<Authority>>>);

impl Ready {
    /// From now on it is.
    pub fn set(&self, authority: Arc<Authority>) {
        // Only the first one counts, and there is one.
        let _ = self.0.set(authority);
    }

    /// The authority. Until it is there, nothing is known of revocations.
    pub fn get(&self) -> Result<&Authority, AuthorityError> {
        self.0.get().map(|authority| &**authority).ok_or(AuthorityError::NotCurrent)
    }
}
