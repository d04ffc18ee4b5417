//! `countersign.v1.AuditService`: converts the request, runs its use case, and converts the result.

use tonic::{Request, Response, Status};

use super::{
    answers,
    overload::admission::{actor, counted, reserve},
    page::Page,
};
use crate::{
    authority::ready::Ready,
    proto::{self, audit_service_server::AuditService},
};

/// The service. It accepts calls as soon as the process has started. Until the authority is ready,
/// all of them fail with `NOT_CURRENT`.
#[derive(Clone, Debug)]
pub struct AuditRecords {
    /// The use cases, once they can be called.
    pub ready: Ready,
    /// The maximum size of an answer, in bytes.
    pub max_answer_bytes: usize,
}

#[tonic::async_trait]
impl AuditService for AuditRecords {
    async fn list_audit(
        &self,
        request: Request<proto::ListAuditRequest>,
    ) -> Result<Response<proto::ListAuditResponse>, Status> {
        let by = actor(&request)?.clone();
        let mut page = Page::new(reserve(&request)?, self.max_answer_bytes)?;
        let authority = self.ready.get()?;
        let take = |entry: &_| page.add(answers::audit_record(entry));
        let listed = authority.audit_records(&by, request.into_inner().try_into()?, take).await;
        let (records, reserved) = page.finish()?;
        counted(proto::ListAuditResponse { records, next_page_token: listed? }, reserved)
    }
}
