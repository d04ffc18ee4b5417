//! A request under way, as its route sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::Either;
use http::{Extensions, HeaderMap};

use crate::{
    calls::{CallRecord, EndCode},
    domain::{call_id::CallId, caller::Actor},
};

/// A request under way. Clones share it. A request that did not come through the server, as in a
/// fuzz target, has no record, and is not observed.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenRequest(Option<Arc<Mutex<CallRecord>>>);

impl OpenRequest {
    /// Wraps the record of a request.
    pub fn new(record: CallRecord) -> Self {
        Self(Some(Arc::new(Mutex::new(record))))
    }

    /// Returns the record that the server has put into these extensions, or an empty one.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Returns the identifier of the request, if it has one.
    pub fn id(&self) -> Option<CallId> {
        self.record()?.id().cloned()
    }

    /// Notes that the request was admitted, and returns the future of its use case, which is
    /// observed.
    pub fn observe<F: Future>(
        &self,
        actor: &Actor,
        headers: &HeaderMap,
        use_case: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        match self.record() {
            Some(mut record) => {
                record.admit(Some(actor), headers);
                Either::Left(record.observe(use_case))
            }
            None => Either::Right(use_case),
        }
    }

    /// Sets the code with which the request ends, and adds its identifier to the headers of the
    /// answer.
    pub fn end(&self, code: EndCode, headers: &mut HeaderMap) {
        if let Some(mut record) = self.record() {
            record.set_code(code);
            record.add_id(headers);
        }
    }

    fn record(&self) -> Option<MutexGuard<'_, CallRecord>> {
        self.0.as_ref().map(|record| record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
