//! Observes calls: counts them by method and by the code with which they ended, measures how long
//! they took, gives them identifiers and spans, and logs those that were slow.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use governor::Quota;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::Code;
use tracing::{Instrument, Span, field::Empty};
use uuid::Uuid;

use super::{
    methods::{Access, METHODS, Method, names},
    status::CODE,
};
use crate::{
    authority::rate_limiter::RateLimiter,
    domain::{
        call_id::{self, CallId},
        caller::{Actor, Caller},
    },
    instruments::{
        Events, Labels,
        times::{Part, Times, measure},
        traces::{Trace, Traces},
    },
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
        Self {
            events: Arc::new(counters()),
            slow_from: Duration::ZERO,
            slow_lines: Mutex::new(RateLimiter::with_stopped_clock(SLOW_LINES)),
            traces: Traces::default(),
        }
    }

    /// Logs a call that has ended, if it was slow.
    fn log_if_slow(&self, record: &CallRecord, took: Duration) {
        // Streams are meant to last.
        let may_be_slow = matches!(record.method.access, Access::Allowed(_));
        if self.slow_from.is_zero() || took < self.slow_from || !may_be_slow {
            return;
        }
        let allowed = self.slow_lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(left_out) = allowed else { return };
        let (service, method) = names(record.method.path);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let times = record.details.as_ref().and_then(|details| details.times.as_ref());
        let part = |part| times.map(|times| millis(times.of(part)));
        tracing::warn!(
            service,
            method,
            caller = record.caller(),
            x_request_id = record.id(),
            code = CODES.get(number(record.code)).copied(),
            took_ms = millis(took),
            queue_ms = part(Part::Queue),
            store_ms = part(Part::Store),
            acknowledgement_ms = part(Part::Acknowledgement),
            renewal_ms = part(Part::Renewal),
            left_out = Some(left_out).filter(|left_out| *left_out > 0),
            "a call was slow"
        );
    }
}

/// Observes the calls of one connection. Calls clone this, and so change a reference count that
/// belongs to the connection; that of [`CallObserver`] would be contended by all connections.
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
        let id = sent.or_else(|| (!method.is_frequent).then(random));
        CallRecord {
            observer: self.clone(),
            method,
            began: Instant::now(),
            code: Code::Cancelled,
            caller: None,
            details: id.map(|id| Box::new(Details { id: Some(id), ..Details::default() })),
        }
    }
}

/// The parts of a record that most calls of frequent methods lack. They are kept apart, because
/// records are moved several times.
#[derive(Debug)]
struct Details {
    /// The identifier of the call.
    id: Option<CallId>,
    /// The span of the call, in which its use case runs.
    span: Span,
    /// The times of the parts of the call, if they are measured.
    times: Option<Times>,
}

impl Default for Details {
    fn default() -> Self {
        Self { id: None, span: Span::none(), times: None }
    }
}

/// A call under way. When this is dropped, the call is counted, and logged if it was slow: with its
/// code, or as cancelled if no code was set, because then the client went away before the end of
/// the answer.
#[derive(Debug)]
pub struct CallRecord {
    observer: ConnectionObserver,
    method: Method,
    began: Instant,
    code: Code,
    caller: Option<Arc<Caller>>,
    details: Option<Box<Details>>,
}

impl CallRecord {
    /// Notes that the call was admitted. A call of a frequent method gets a span and measured parts
    /// only if it is traced, because they would cost a considerable part of its time.
    pub fn admit(&mut self, actor: Option<&Actor>, headers: &HeaderMap) {
        self.caller = actor.map(|actor| actor.caller.clone());
        let trace = self.observer.0.observer.traces.decide(headers, actor.is_some());
        if !self.method.is_frequent || trace.is_recorded() {
            let span = self.span_of(&trace);
            trace.apply_to(&span);
            let details = self.details.get_or_insert_default();
            (details.span, details.times) = (span, Some(Times::default()));
        }
    }

    /// Returns the future of the answer of the service, which runs in the span of the call, and
    /// whose parts are measured.
    pub fn observe<T>(&self, answering: BoxFuture<'static, T>) -> BoxFuture<'static, T>
    where
        T: 'static,
    {
        match self.details.as_deref() {
            Some(Details { times: Some(times), span, .. }) => {
                Box::pin(measure(times.clone(), answering.instrument(span.clone())))
            }
            _ => answering,
        }
    }

    /// Sets the code with which the call ends.
    pub fn set_code(&mut self, code: Code) {
        self.code = code;
    }

    /// Reads the code of the call from trailers, or from the headers of an answer that has no
    /// trailers, and adds the identifier of the call to them. Does nothing if they have no code.
    pub fn end(&mut self, headers: &mut HeaderMap) {
        let Some(code) = headers.get(&CODE) else { return };
        self.code = Code::from_bytes(code.as_bytes());
        if let Some(id) = self.id()
            && let Ok(id) = HeaderValue::from_str(id)
        {
            headers.insert(ID.clone(), id);
        }
    }

    fn span_of(&self, trace: &Trace) -> Span {
        let (service, method) = names(self.method.path);
        let id = self.id();
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
        tracing::info_span!(
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
        )
    }

    fn caller(&self) -> Option<&str> {
        self.caller.as_ref().map(|caller| &*caller.name)
    }

    fn id(&self) -> Option<&str> {
        self.details.as_ref()?.id.as_ref().map(CallId::as_str)
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let observer = &self.observer.0.observer;
        observer.events.observe(self.method.number, number(self.code), took);
        observer.log_if_slow(self, took);
        if let Some(Details { span, .. }) = self.details.as_deref() {
            span.record("rpc.grpc.status_code", i32::from(self.code));
            // These codes are errors of the server (semantic conventions for gRPC).
            let is_error = matches!(
                self.code,
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
