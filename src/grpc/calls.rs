//! Counts the calls of each method by the code with which they ended, and measures how long they
//! took.

use http::HeaderMap;
use tonic::Code;

use super::{
    methods::{METHODS, Method, names},
    status::CODE,
};
use crate::instruments::{Event, EventSource, Events, Labels};

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
        let (service, method) = names(path);
        vec![("service", service), ("method", method)]
    };
    Events::new(METHODS.iter().map(labels).collect(), &CODES)
}

/// A call under way, which is counted when this is dropped. Until its code is known, it counts as
/// cancelled, because then its client went away.
#[derive(Debug)]
pub struct CallRecord(Event);

impl CallRecord {
    /// Begins a call.
    pub fn begin(calls: &EventSource, method: Method) -> Self {
        Self(calls.begin(method.number, number(Code::Cancelled)))
    }

    /// Sets the code with which the call ends.
    pub fn set_code(&mut self, code: Code) {
        self.0.set_code(number(code));
    }

    /// Reads the code from the headers of an answer without a message, or from trailers. Leaves the
    /// code as it is if there is none.
    pub fn read_code(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(&CODE) {
            self.set_code(Code::from_bytes(code.as_bytes()));
        }
    }
}

fn number(code: Code) -> usize {
    usize::try_from(i32::from(code)).unwrap_or_default()
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
