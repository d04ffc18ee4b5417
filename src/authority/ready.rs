//! Gives servers access to the use cases. Servers start before the use cases are ready, and must
//! answer calls even then.

use std::sync::{Arc, OnceLock};

use super::{Authority, error::AuthorityError};

/// The authority, which is set once it is ready.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<OnceLock<Arc<Authority>>>);

impl Ready {
    /// Publishes the authority. Only the first call has an effect.
    pub fn set(&self, authority: Arc<Authority>) {
        // The process calls this only once, when it starts, so the result does not matter.
        let _ = self.0.set(authority);
    }

    /// Returns the authority for a task of its own, or an error while it is not ready.
    pub fn shared(&self) -> Result<Arc<Authority>, AuthorityError> {
        self.0.get().cloned().ok_or(AuthorityError::NotCurrent)
    }

    /// Returns the authority, or an error while it is not ready. Until then, this server knows no
    /// revocations.
    pub fn get(&self) -> Result<&Authority, AuthorityError> {
        self.0.get().map(|authority| &**authority).ok_or(AuthorityError::NotCurrent)
    }
}
