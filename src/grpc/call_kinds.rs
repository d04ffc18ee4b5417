//! The kinds of calls over gRPC, and the codes with which calls end.

use http::HeaderMap;
use tonic::Code;

use super::{
    methods::{Access, METHODS, Method, WATCH},
    status::CODE,
};
use crate::{
    calls::{CallKind, CallName, CallRecord, EndCode},
    instruments::{Events, Labels},
};

/// The names of the status codes in their order (gRPC, "Status codes and their use in gRPC").
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Creates the counters of the calls of all methods.
pub fn counters() -> Events {
    let labels = |(path, _): &(&'static str, _)| -> Labels {
        let (service, method) = CallName::service_and_method(path);
        vec![("service", service), ("method", method)]
    };
    Events::new(METHODS.iter().map(labels).collect(), &CODES)
}

/// Returns the kind of the calls of a method.
pub fn kind(method: &Method) -> CallKind {
    CallKind {
        number: method.number,
        name: CallName::Grpc(method.path),
        is_frequent: method.is_frequent,
        should_be_fast: matches!(method.access, Access::Allowed(_)) && method.path != WATCH,
    }
}

/// Converts a status code. The semantic conventions of OpenTelemetry for gRPC define which codes
/// are errors of the server.
pub fn end_code(code: Code) -> EndCode {
    let value = u8::try_from(i32::from(code)).unwrap_or_default();
    let is_server_error = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    EndCode { number: value, value: value.into(), is_server_error }
}

/// Reads the status code from these trailers, or from the headers if the answer has no trailers,
/// and adds the identifier of the call to them. Does nothing if there is no code.
pub fn end(record: &mut CallRecord, headers: &mut HeaderMap) {
    let Some(code) = headers.get(&CODE) else { return };
    record.set_code(end_code(Code::from_bytes(code.as_bytes())));
    record.add_id(headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_codes_are_in_the_order_of_their_numbers() {
        for (number, name) in (0..).zip(CODES) {
            let words = format!("{:?}", Code::from(number)).to_uppercase();
            assert_eq!(words, name.replace('_', ""));
        }
    }
}
