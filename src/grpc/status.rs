//! Converts errors to gRPC statuses. No other file does this.

use std::{collections::HashMap, time::Duration};

use http::{HeaderName, Response};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt};

use super::overload::unsent::TooManyUnsentBytes;
use crate::{authority::error::AuthorityError, callers::Refusal, domain::rotation::NotRotated};

/// The domain of every `ErrorInfo` (google/rpc/error_details.proto).
pub const DOMAIN: &str = "countersign";

/// The delay after which a caller should try again if the service is overloaded, or has no
/// database, no lease or no key.
const RETRY_DELAY: Duration = Duration::from_millis(500);

impl From<AuthorityError> for Status {
    fn from(error: AuthorityError) -> Self {
        use AuthorityError as E;

        let (code, reason) = match &error {
            E::InvalidField { .. } => (Code::InvalidArgument, "INVALID_FIELD"),
            E::RequestIdReused => (Code::InvalidArgument, "REQUEST_ID_REUSED"),
            E::CallerNotAllowed { .. } => (Code::PermissionDenied, "CALLER_NOT_ALLOWED"),
            E::RefreshTokenInvalid => (Code::Unauthenticated, "REFRESH_TOKEN_INVALID"),
            E::RefreshTokenReused => (Code::Unauthenticated, "REFRESH_TOKEN_REUSED"),
            E::SessionRevoked => (Code::Unauthenticated, "SESSION_REVOKED"),
            E::SessionExpiredIdle => (Code::Unauthenticated, "SESSION_EXPIRED_IDLE"),
            E::SessionExpiredAbsolute => (Code::Unauthenticated, "SESSION_EXPIRED_ABSOLUTE"),
            E::SessionQuotaExceeded { .. } => (Code::ResourceExhausted, "SESSION_QUOTA_EXCEEDED"),
            E::EtagMismatch => (Code::Aborted, "ETAG_MISMATCH"),
            E::SessionNotFound => (Code::NotFound, "SESSION_NOT_FOUND"),
            E::KeyNotFound => (Code::NotFound, "KEY_NOT_FOUND"),
            E::KeyNotRotated(NotRotated::TooSoon { .. }) => {
                (Code::FailedPrecondition, "KEY_TOO_NEW")
            }
            E::KeyNotRotated(NotRotated::TooMany) => (Code::ResourceExhausted, "TOO_MANY_KEYS"),
            E::KeyNotRotated(NotRotated::NoNext | NotRotated::Step(_)) => {
                (Code::Internal, "INTERNAL")
            }
            E::BlacklistFull { .. } => (Code::ResourceExhausted, "BLACKLIST_FULL"),
            E::TooManyWatchers { .. } => (Code::ResourceExhausted, "TOO_MANY_WATCHERS"),
            E::WatcherTooSlow => (Code::ResourceExhausted, "WATCHER_TOO_SLOW"),
            E::NotSent => (Code::FailedPrecondition, "NOT_SENT"),
            E::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            E::StoreUnavailable => (Code::Unavailable, "STORE_UNAVAILABLE"),
            E::NotCurrent => (Code::Unavailable, "NOT_CURRENT"),
            E::NoActiveKey => (Code::Unavailable, "NO_ACTIVE_KEY"),
            E::AuditTableOff => (Code::FailedPrecondition, "AUDIT_TABLE_OFF"),
            E::Internal => (Code::Internal, "INTERNAL"),
        };
        let details = details(&error, reason);
        Status::with_error_details(code, error.to_string(), details)
    }
}

/// Returns the details that fit an error.
fn details(error: &AuthorityError, reason: &'static str) -> ErrorDetails {
    use AuthorityError as E;

    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    match error {
        E::InvalidField { field, problem } => {
            details.add_bad_request_violation(field, problem);
        }
        E::RequestIdReused => {
            details.add_bad_request_violation("request_id", error.to_string());
        }
        E::SessionQuotaExceeded { policy, .. } => {
            details.add_quota_failure_violation(format!("policy:{policy}"), error.to_string());
        }
        E::BlacklistFull { .. } => {
            details.add_quota_failure_violation("blacklist", error.to_string());
        }
        E::KeyNotRotated(NotRotated::TooSoon { wait, .. }) => {
            details.set_retry_info(Some(*wait));
        }
        E::KeyNotRotated(NotRotated::TooMany) => {
            details.add_quota_failure_violation("keys", error.to_string());
        }
        E::Overloaded
        | E::StoreUnavailable
        | E::NotCurrent
        | E::NoActiveKey
        | E::TooManyWatchers { .. }
        | E::WatcherTooSlow => {
            details.set_retry_info(Some(RETRY_DELAY));
        }
        _ => {}
    }
    details
}

/// The message to an unknown caller. It does not depend on what was wrong with the credentials.
const UNKNOWN_CALLER: &str = "the caller is not known: send `authorization: Bearer` with an API \
                              key, or a client certificate";

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason, message, wait) = match refusal {
            Refusal::Unknown => {
                (Code::Unauthenticated, "CALLER_UNKNOWN", UNKNOWN_CALLER.to_owned(), None)
            }
            Refusal::NotAllowed { caller, operation } => {
                (Code::PermissionDenied, "CALLER_NOT_ALLOWED", caller.why_not(operation), None)
            }
            Refusal::OverLimit { wait } => {
                let message = "the caller has too many calls under way, or began too many recently"
                    .to_owned();
                (Code::ResourceExhausted, "CALLER_OVER_LIMIT", message, Some(wait))
            }
            Refusal::Overloaded { wait } => {
                let message =
                    "the server has as many calls under way as its limits allow: try again later"
                        .to_owned();
                (Code::ResourceExhausted, "OVERLOADED", message, Some(wait))
            }
        };
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
        if wait.is_some() {
            details.set_retry_info(wait);
        }
        Status::with_error_details(code, message, details)
    }
}

impl From<TooManyUnsentBytes> for Status {
    fn from(too_many: TooManyUnsentBytes) -> Self {
        let mut details = ErrorDetails::with_error_info("OVERLOADED", DOMAIN, HashMap::new());
        details.set_retry_info(Some(RETRY_DELAY));
        Status::with_error_details(Code::ResourceExhausted, too_many.to_string(), details)
    }
}

/// The limit on the size of a message.
#[derive(Clone, Copy, Debug)]
pub struct SizeLimit {
    /// The name of the setting that defines the limit.
    pub setting: &'static str,
    /// The maximum number of bytes.
    pub bytes: usize,
}

/// The header with the status code, if the answer has no message. Answers with a message have the
/// status code in their trailers (gRPC over HTTP/2, "Responses").
pub static CODE: HeaderName = HeaderName::from_static("grpc-status");
/// The header with the details of an error.
static DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Adds a reason to an error with which the gRPC library itself has answered a call, because every
/// error of this service has a reason. The library answers before the service sees the call if the
/// message is too large or malformed, or if the method does not exist.
#[inline]
pub fn with_reason(answer: Response<Body>, size_limit: SizeLimit) -> Response<Body> {
    let headers = answer.headers();
    match headers.contains_key(&CODE) && !headers.contains_key(&DETAILS) {
        true => explain(answer, size_limit),
        false => answer,
    }
}

#[cold]
fn explain(answer: Response<Body>, size_limit: SizeLimit) -> Response<Body> {
    match Status::from_header_map(answer.headers()) {
        Some(status) => stream_error(status, size_limit).into_http(),
        None => answer,
    }
}

/// Adds a reason to an error with which the gRPC library has refused a message.
pub fn stream_error(status: Status, size_limit: SizeLimit) -> Status {
    let reason = match status.code() {
        // A message that is too large is reported like a field that is too long.
        Code::OutOfRange => return TooLarge(size_limit).into(),
        Code::Internal => "MALFORMED_REQUEST",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        _ => return status,
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    // The metadata is kept, because it holds, for instance, the accepted encodings.
    let metadata = status.metadata().clone();
    Status::with_error_details_and_metadata(status.code(), status.message(), details, metadata)
}

/// The error of a message that has more bytes than the limit.
struct TooLarge(SizeLimit);

impl From<TooLarge> for Status {
    fn from(TooLarge(SizeLimit { setting, bytes }): TooLarge) -> Self {
        let problem =
            format!("has more than {bytes} bytes ({setting}): send less, or raise the limit");
        let metadata = HashMap::from([("limit".to_owned(), bytes.to_string())]);
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", DOMAIN, metadata);
        details.add_bad_request_violation("request", &problem);
        Self::with_error_details(Code::InvalidArgument, format!("request {problem}"), details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_a_reason_and_the_detail_that_fits() {
        let details = |error: AuthorityError| {
            let status = Status::from(error);
            (status.code(), status.get_error_details())
        };
        let (code, invalid) = details(AuthorityError::field("audience[3]", "must not be empty"));
        assert_eq!(code, Code::InvalidArgument);
        assert_eq!(invalid.bad_request().unwrap().field_violations[0].field, "audience[3]");
        assert_eq!(invalid.error_info().unwrap().domain, "countersign");

        let (code, unavailable) = details(AuthorityError::StoreUnavailable);
        assert_eq!(code, Code::Unavailable);
        assert!(unavailable.retry_info().unwrap().retry_delay.is_some());

        let (code, quota) =
            details(AuthorityError::SessionQuotaExceeded { limit: 3, policy: "short".to_owned() });
        assert_eq!(code, Code::ResourceExhausted);
        assert_eq!(quota.quota_failure().unwrap().violations[0].subject, "policy:short");
    }

    #[test]
    fn an_error_of_the_library_gets_a_reason_and_other_answers_do_not_change() {
        let limit = SizeLimit { setting: "limits.max_request_bytes", bytes: 9 };
        let answer = |status: Status| {
            let answer = with_reason(status.into_http(), limit);
            let status = Status::from_header_map(answer.headers()).unwrap();
            (status.code(), status.get_details_error_info().map(|info| info.reason))
        };
        for (status, code, reason) in [
            (Status::out_of_range("found 10 bytes"), Code::InvalidArgument, "INVALID_FIELD"),
            (Status::internal("failed to decode"), Code::Internal, "MALFORMED_REQUEST"),
            (Status::unimplemented(""), Code::Unimplemented, "UNIMPLEMENTED"),
            (Status::deadline_exceeded("late"), Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (AuthorityError::Internal.into(), Code::Internal, "INTERNAL"),
        ] {
            assert_eq!(answer(status), (code, Some(reason.to_owned())));
        }
        assert_eq!(
            answer(Status::not_found("no such service")),
            (Code::NotFound, None),
            "the health service answers with such an error"
        );
        let done = with_reason(Response::new(Body::default()), limit);
        assert!(done.headers().is_empty());
    }
}
