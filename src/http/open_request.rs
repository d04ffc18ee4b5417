//! A request under way, as its route sees it.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;

use crate::{
    calls::{CallRecord, EndCode},
    domain::{call_id::CallId, caller::Actor},
};

/// A request under way, which its route finds in the extensions of the request. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct OpenRequest(Arc<Mutex<CallRecord>>);

impl OpenRequest {
    /// Wraps the record of a request.
    pub fn new(record: CallRecord) -> Self {
        Self(Arc::new(Mutex::new(record)))
    }

    /// Returns the identifier of the request, if it has one.
    pub fn id(&self) -> Option<CallId> {
        self.with(|record| record.id().cloned())
    }

    /// Notes that the request was admitted, and returns the future of its use case, which is
    /// observed.
    pub fn observe<F: Future>(
        &self,
        actor: &Actor,
        headers: &HeaderMap,
        use_case: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        self.with(|record| {
            record.admit(Some(actor), headers);
            record.observe(use_case)
        })
    }

    /// Sets the end of the request, and adds its identifier to the headers of the answer.
    pub fn end(&self, code: EndCode, headers: &mut HeaderMap) {
        self.with(|record| {
            record.set_code(code);
            record.add_id(headers);
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut CallRecord) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
