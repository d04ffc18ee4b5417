//! The error of a call.

use std::{fmt, time::Duration};

use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// Defines the reasons: each variant with its name in `ErrorInfo.reason`.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// The reason of an error, as `ErrorInfo.reason` names it.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])+ $variant,)+
            /// No replica could be reached, or the connection was lost during the call.
            Unreachable,
            /// A reason that this version of the library does not know; empty if there is none.
            Other(String),
        }

        impl Reason {
            /// Returns the reason with this name in `ErrorInfo.reason`.
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($name => Self::$variant,)+
                    other => Self::Other(other.to_owned()),
                }
            }

            /// Returns the name.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Unreachable => "UNREACHABLE",
                    Self::Other(name) => name,
                }
            }
        }
    };
}

reasons! {
    /// A field of the request is not valid. [`Error::fields`] names it.
    InvalidField = "INVALID_FIELD",
    /// The request id belongs to another request, or to another caller.
    RequestIdReused = "REQUEST_ID_REUSED",
    /// The API key or the client certificate is missing or unknown.
    CallerUnknown = "CALLER_UNKNOWN",
    /// The caller lacks the role, or the tenant or audience is not one of the caller's.
    CallerNotAllowed = "CALLER_NOT_ALLOWED",
    /// The caller has too many calls under way, or began too many recently.
    CallerOverLimit = "CALLER_OVER_LIMIT",
    /// The refresh token is malformed, forged, or from another service.
    RefreshTokenInvalid = "REFRESH_TOKEN_INVALID",
    /// The refresh token was exchanged before, so two parties have it. The session has ended.
    RefreshTokenReused = "REFRESH_TOKEN_REUSED",
    /// The session was ended.
    SessionRevoked = "SESSION_REVOKED",
    /// The session was not refreshed within its idle time-out.
    SessionExpiredIdle = "SESSION_EXPIRED_IDLE",
    /// The session has reached the end of its lifetime.
    SessionExpiredAbsolute = "SESSION_EXPIRED_ABSOLUTE",
    /// The subject has as many sessions as its policy allows.
    SessionQuotaExceeded = "SESSION_QUOTA_EXCEEDED",
    /// The session has changed since it was read.
    EtagMismatch = "ETAG_MISMATCH",
    /// There is no such session.
    SessionNotFound = "SESSION_NOT_FOUND",
    /// There is no such key.
    KeyNotFound = "KEY_NOT_FOUND",
    /// The pending key was published so recently that verifiers may not know it.
    KeyTooNew = "KEY_TOO_NEW",
    /// There are too many keys.
    TooManyKeys = "TOO_MANY_KEYS",
    /// The blacklist is full.
    BlacklistFull = "BLACKLIST_FULL",
    /// Too many watchers are connected to the replica.
    TooManyWatchers = "TOO_MANY_WATCHERS",
    /// The watcher does not read fast enough.
    WatcherTooSlow = "WATCHER_TOO_SLOW",
    /// The watcher has confirmed something that was not sent.
    NotSent = "NOT_SENT",
    /// The service is overloaded, and has done nothing.
    Overloaded = "OVERLOADED",
    /// The database is not available. A write may or may not have taken effect.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The replica starts, stops, or does not know the latest revocations.
    NotCurrent = "NOT_CURRENT",
    /// No key is active at the moment.
    NoActiveKey = "NO_ACTIVE_KEY",
    /// The service keeps no audit in its database.
    AuditTableOff = "AUDIT_TABLE_OFF",
    /// A bug of the service, or damaged data. The service's log has the details.
    Internal = "INTERNAL",
    /// The service could not read the request.
    MalformedRequest = "MALFORMED_REQUEST",
    /// The service does not have the call; it may be older than this library.
    Unimplemented = "UNIMPLEMENTED",
    /// The deadline of the call has passed. A write may or may not have taken effect.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
}

/// A field of a request that is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field, such as `audience[3]`.
    pub field: String,
    /// The problem with it.
    pub description: String,
}

/// The error of a call. It holds no token.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { code, reason, message, .. } = &*self.0;
        match reason.as_str() {
            "" => write!(f, "{code:?}: {message}"),
            reason => write!(f, "{reason} ({code:?}): {message}"),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    code: Code,
    reason: Reason,
    message: String,
    retry_after: Option<Duration>,
    fields: Vec<FieldViolation>,
    is_refused: bool,
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { code, reason, message, retry_after, fields, .. } = &*self.0;
        f.debug_struct("Error")
            .field("code", code)
            .field("reason", reason)
            .field("message", message)
            .field("retry_after", retry_after)
            .field("fields", fields)
            .finish()
    }
}

impl Error {
    /// Returns the gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Returns the reason.
    pub fn reason(&self) -> &Reason {
        &self.0.reason
    }

    /// Returns the message, which is for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the time after which the call may be repeated (`RetryInfo`). The library has waited
    /// for it already as far as the deadline allowed.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Returns the fields that are not valid (`BadRequest`).
    pub fn fields(&self) -> &[FieldViolation] {
        &self.0.fields
    }

    /// Returns whether the call certainly had no effect, because it did not reach the service, or
    /// because the service refused it before doing anything.
    pub fn is_refused(&self) -> bool {
        self.0.is_refused
    }

    /// Returns whether the call may succeed later, without a change of the request.
    pub fn is_temporary(&self) -> bool {
        self.0.code == Code::Unavailable || self.0.retry_after.is_some()
    }

    /// Creates the error of a call whose deadline has passed.
    pub(crate) fn deadline_exceeded() -> Self {
        Status::deadline_exceeded("no replica has answered within the deadline").into()
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let bad_request = details.bad_request().map(|bad| bad.field_violations.as_slice());
        let fields = bad_request.unwrap_or_default().iter().map(|violation| FieldViolation {
            field: violation.field.clone(),
            description: violation.description.clone(),
        });
        let source = std::error::Error::source(&status);
        // A status with a source was made here, because the connection failed, or the stream.
        let mut causes = std::iter::successors(source, |error| error.source());
        let reset = causes.clone().find_map(code_of_reset);
        let has_expired = causes.any(|error| error.is::<TimeoutExpired>());
        let (code, reason) = match (details.error_info(), status.code()) {
            (Some(info), code) => (code, Reason::from_name(&info.reason)),
            (None, code @ Code::DeadlineExceeded) => (code, Reason::DeadlineExceeded),
            (None, code @ Code::Unavailable) => (code, Reason::Unreachable),
            // The transport ends a call at its deadline, too, and calls that cancelled.
            (None, Code::Cancelled) if has_expired => {
                (Code::DeadlineExceeded, Reason::DeadlineExceeded)
            }
            (None, _) if source.is_some() && reset.is_none_or(|code| code == Code::Unavailable) => {
                (Code::Unavailable, Reason::Unreachable)
            }
            (None, code) => (reset.unwrap_or(code), Reason::Other(String::new())),
        };
        let is_connect_error = std::iter::successors(source, |error| error.source())
            .any(|error| error.is::<ConnectError>());
        let is_refused = is_connect_error
            || matches!(
                reason,
                Reason::NotCurrent
                    | Reason::NoActiveKey
                    | Reason::Overloaded
                    | Reason::CallerOverLimit
            );
        Self(Box::new(Inner {
            code,
            reason,
            message: message(&status),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            fields: fields.collect(),
            is_refused,
        }))
    }
}

/// Returns the code of gRPC for the reset of a stream by the server, which has not lost the
/// connection.
fn code_of_reset(error: &(dyn std::error::Error + 'static)) -> Option<Code> {
    let error = error.downcast_ref::<h2::Error>()?;
    let reason = error.reason().filter(|_| error.is_reset() && error.is_remote())?;
    Some(match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    })
}

/// Returns the message of a status. If the connection has failed, the causes are added, such as
/// "Connection refused".
fn message(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let source = std::error::Error::source(status);
    for error in std::iter::successors(source, |error| error.source()) {
        let cause = error.to_string();
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_without_a_reason_has_the_code_alone() {
        let error = Error::from(Status::internal("broken"));
        assert_eq!(error.to_string(), "Internal: broken");
        let error = Error::from(Status::unavailable("gone"));
        assert_eq!(error.to_string(), "UNREACHABLE (Unavailable): gone");
    }
}
