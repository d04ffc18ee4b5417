//! Observes calls: counts them by method and by the code with which they ended, measures how long
//! they took, gives them identifiers and spans, and logs those that were slow.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use governor::Quota;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::Code;
use tracing::{Span, field::Empty};
use uuid::Uuid;

use super::{
    methods::{METHODS, Method, names},
    status::CODE,
};
use crate::{
    authority::rate_limiter::RateLimiter,
    domain::{
        call_id::{self, CallId},
        caller::Actor,
    },
    instruments::{Events, Labels, times::Times, traces::Traces},
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
        let (service, method) = names(path);
        vec![("service", service), ("method", method)]
    };
    Events::new(METHODS.iter().map(labels).collect(), &CODES)
}

/// The header with the identifier of a call, in requests and in answers.
static ID: HeaderName = HeaderName::from_static(call_id::HEADER);

/// The most lines about slow calls in a second.
pub const SLOW_LINES: Quota = Quota::per_second(NonZeroU32::MIN.saturating_add(9));

/// Observes the calls of all connections.
#[derive(Debug)]
pub struct CallObserver {
    /// The counters of all methods.
    pub events: Arc<Events>,
    /// The time from which on a call is slow; zero if no call is.
    pub slow_from: Duration,
    /// Limits the lines about slow calls.
    pub slow_lines: Mutex<RateLimiter>,
    /// Decides which calls are traced.
    pub traces: Traces,
}

impl CallObserver {
    /// Creates an observer that logs and traces no call.
    #[cfg(test)]
    pub fn silent() -> Self {
        use crate::{clock::SettableClock, domain::time::Timestamp};

        let clock = Arc::new(SettableClock::at(Timestamp::from_micros(0)));
        Self {
            events: Arc::new(counters()),
            slow_from: Duration::ZERO,
            slow_lines: Mutex::new(RateLimiter::new(SLOW_LINES, clock)),
            traces: Traces::default(),
        }
    }

    fn log_if_slow(&self, record: &CallRecord, times: &Times) {
        let took = record.began.elapsed();
        if self.slow_from.is_zero() || took < self.slow_from {
            return;
        }
        let allowed = self.slow_lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(left_out) = allowed else { return };
        let (service, method) = names(record.method.path);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            service,
            method,
            caller = record.caller(),
            x_request_id = record.id.as_ref().map(CallId::as_str),
            code = CODES.get(number(record.code.unwrap_or(Code::Ok))).copied(),
            took_ms = millis(took),
            queue_ms = millis(times.queue),
            store_ms = millis(times.store),
            acknowledgement_ms = millis(times.acknowledgement),
            renewal_ms = millis(times.renewal),
            left_out = Some(left_out).filter(|left_out| *left_out > 0),
            "a call was slow"
        );
    }
}

/// Observes the calls of one connection. Each connection has its own, so that connections do not
/// contend for the reference count of the observer. Clones share one.
#[derive(Clone, Debug)]
pub struct ConnectionObserver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    observer: Arc<CallObserver>,
}

impl ConnectionObserver {
    /// Creates the observer of a connection.
    pub fn new(observer: Arc<CallObserver>) -> Self {
        Self(Arc::new(Shared { observer }))
    }

    /// Begins a call with these headers. The identifier of the call is that in the headers. Without
    /// one, a call gets a random identifier, unless its method is called frequently.
    pub fn begin(&self, method: Method, headers: &HeaderMap) -> CallRecord {
        let random = || CallId::random(Uuid::new_v4().as_u128());
        let sent = headers.get(&ID).and_then(|id| CallId::read(id.as_bytes()));
        let id = sent.or_else(|| (!method.is_frequent()).then(random));
        let (observer, began) = (self.clone(), Instant::now());
        CallRecord { observer, method, began, code: None, actor: None, id }
    }
}

/// A call under way, which is counted when this is dropped. Until its code is known, it counts as
/// cancelled, because then its client went away.
#[derive(Debug)]
pub struct CallRecord {
    observer: ConnectionObserver,
    method: Method,
    began: Instant,
    /// The code, once it is known.
    code: Option<Code>,
    actor: Option<Actor>,
    id: Option<CallId>,
}

impl CallRecord {
    /// Sets the caller, once it is known.
    pub fn set_actor(&mut self, actor: Option<Actor>) {
        self.actor = actor;
    }

    /// Sets the code with which the call ends.
    pub fn set_code(&mut self, code: Code) {
        self.code = Some(code);
    }

    /// Reads the code from the headers of an answer without a message, or from trailers. Leaves the
    /// code as it is if there is none. Adds the identifier of the call.
    pub fn end(&mut self, headers: &mut HeaderMap) {
        let Some(code) = headers.get(&CODE) else { return };
        self.set_code(Code::from_bytes(code.as_bytes()));
        if let Some(id) = &self.id
            && let Ok(id) = HeaderValue::from_str(id.as_str())
        {
            headers.insert(ID.clone(), id);
        }
    }

    /// Returns the span of the call, in which its use case runs. Calls of frequent methods only
    /// have one if they are traced.
    pub fn span(&self, headers: &HeaderMap) -> Span {
        let trace = self.observer.0.observer.traces.place(headers);
        if self.method.is_frequent() && !trace.is_recorded() {
            return Span::none();
        }
        let (service, method) = names(self.method.path);
        let id = self.id.as_ref().map(CallId::as_str);
        if !trace.is_recorded() {
            return tracing::info_span!(
                "call",
                service,
                method,
                caller = self.caller(),
                x_request_id = id,
                tenant = Empty,
                session_id = Empty,
            );
        }
        // The names of the fields are those of OpenTelemetry (semantic conventions for RPC).
        let span = tracing::info_span!(
            "call",
            otel.name = self.method.path.trim_start_matches('/'),
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
            caller = self.caller(),
            x_request_id = id,
            tenant = Empty,
            session_id = Empty,
        );
        trace.adopt(&span);
        span
    }

    /// Ends the span of the call, and logs the call if it was slow, with the times of its parts. The
    /// call has been answered, so without a code in the head of its answer, it ends with OK.
    pub fn answered(&self, span: &Span, times: &Times) {
        self.observer.0.observer.log_if_slow(self, times);
        if span.is_disabled() {
            return;
        }
        let code = self.code.unwrap_or(Code::Ok);
        span.record("rpc.grpc.status_code", i32::from(code));
        // These codes are errors of the server (semantic conventions for gRPC).
        let is_error = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if is_error {
            span.record("otel.status_code", "ERROR");
        }
    }

    fn caller(&self) -> Option<&str> {
        self.actor.as_ref().map(|actor| &*actor.caller.name)
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let code = number(self.code.unwrap_or(Code::Cancelled));
        let events = &self.observer.0.observer.events;
        events.observe(self.method.number, code, self.began.elapsed());
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
