//! The details of an error, which tests compare with those that the proto files document.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A `google.rpc.Status` of this service, with all of its details.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The reason in `ErrorInfo`.
    pub reason: String,
    /// The fields in `BadRequest`.
    pub fields: Vec<String>,
    /// True if there is `RetryInfo` with a delay.
    pub retry: bool,
    /// The subjects in `QuotaFailure`.
    pub quotas: Vec<String>,
}

impl Refusal {
    /// Returns an error with only a reason.
    pub fn of(code: Code, reason: &str) -> Self {
        Self { code, reason: reason.to_owned(), fields: vec![], retry: false, quotas: vec![] }
    }

    /// Returns INVALID_ARGUMENT that names a field.
    pub fn field(path: &str) -> Self {
        Self { fields: vec![path.to_owned()], ..Self::of(Code::InvalidArgument, "INVALID_FIELD") }
    }

    /// Returns INVALID_ARGUMENT because the request id belongs to another request.
    pub fn request_id_reused() -> Self {
        Self {
            fields: vec!["request_id".to_owned()],
            ..Self::of(Code::InvalidArgument, "REQUEST_ID_REUSED")
        }
    }

    /// Returns UNAUTHENTICATED.
    pub fn unauthenticated(reason: &str) -> Self {
        Self::of(Code::Unauthenticated, reason)
    }

    /// Returns a temporary error.
    pub fn retry(code: Code, reason: &str) -> Self {
        Self { retry: true, ..Self::of(code, reason) }
    }

    /// Returns RESOURCE_EXHAUSTED that names a quota.
    pub fn quota(reason: &str, subject: &str) -> Self {
        Self { quotas: vec![subject.to_owned()], ..Self::of(Code::ResourceExhausted, reason) }
    }
}

/// Returns the error of a call that must have failed.
pub fn refused<T>(answer: Result<T, Status>) -> Refusal {
    let Err(status) = answer else { panic!("the call was not refused") };
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "countersign");
    assert!(!status.message().is_empty());
    let violations = details.bad_request().map_or(&[][..], |bad| &bad.field_violations);
    let quotas = details.quota_failure().map_or(&[][..], |quota| &quota.violations);
    Refusal {
        code: status.code(),
        reason: info.reason.clone(),
        fields: violations.iter().map(|violation| violation.field.clone()).collect(),
        retry: details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()),
        quotas: quotas.iter().map(|violation| violation.subject.clone()).collect(),
    }
}
