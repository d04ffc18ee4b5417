//! Observes calls over gRPC and HTTP: counts them by the code with which they ended, measures how
//! long they took, gives them identifiers and spans, and logs those that were slow.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::Either;
use governor::Quota;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tracing::{Instrument, Span, field::Empty};
use uuid::Uuid;

use crate::{
    authority::rate_limiter::RateLimiter,
    clock::Clock,
    domain::{
        call_id::{self, CallId},
        caller::{Actor, Caller},
    },
    instruments::{
        Events,
        times::{Part, Times, measure},
        traces::{Trace, Traces},
    },
};

/// The header with the identifier of a call, in requests and in answers.
static ID: HeaderName = HeaderName::from_static(call_id::HEADER);

/// The rate of lines about slow calls, and their largest burst.
const SLOW_LINES: Quota = Quota::per_second(NonZeroU32::MIN.saturating_add(9));

/// The name of a kind of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallName {
    /// The path of a method over gRPC: a service and a method.
    Grpc(&'static str),
    /// The route of a request over HTTP.
    Http(&'static str),
}

impl CallName {
    /// Returns the service and the method of a path.
    pub fn service_and_method(path: &'static str) -> (&'static str, &'static str) {
        path.trim_start_matches('/').split_once('/').unwrap_or(("other", "other"))
    }
}

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallKind {
    /// The number under which calls of this kind are counted.
    pub number: usize,
    /// The name of the kind.
    pub name: CallName,
    /// True if calls of this kind are so frequent and so cheap that a span for each of them would
    /// cost a considerable part of its time.
    pub is_frequent: bool,
    /// True if calls of this kind should end soon. Streams, for instance, are meant to last.
    pub should_be_fast: bool,
}

/// The code with which a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndCode {
    /// The number under which calls that end so are counted.
    pub number: u8,
    /// The code of gRPC or the status of HTTP; zero if there was no answer over HTTP.
    pub value: u16,
    /// True if the code means that the server has failed.
    pub is_server_error: bool,
}

/// Logs calls that were slow.
#[derive(Debug)]
pub struct SlowCalls {
    /// Calls that take at least this many microseconds are slow; zero if none is.
    threshold: AtomicU64,
    lines: Mutex<RateLimiter>,
}

/// Observes the calls of all connections of a port.
#[derive(Debug)]
pub struct CallObserver {
    /// The counters of the calls.
    pub events: Arc<Events>,
    /// Logs calls that were slow.
    pub slow: Arc<SlowCalls>,
    /// Decides which calls are traced.
    pub traces: Traces,
}

impl SlowCalls {
    /// Creates a logger of calls that take at least `threshold`; of none if it is zero.
    pub fn new(threshold: Duration, clock: Arc<dyn Clock>) -> Self {
        let slow = Self {
            threshold: AtomicU64::default(),
            lines: Mutex::new(RateLimiter::new(SLOW_LINES, clock)),
        };
        slow.set_threshold(threshold);
        slow
    }

    /// Changes the time from which on a call is slow; if it is zero, none is.
    pub fn set_threshold(&self, threshold: Duration) {
        let micros = u64::try_from(threshold.as_micros()).unwrap_or(u64::MAX);
        self.threshold.store(micros, Ordering::Relaxed);
    }

    /// Logs a call that has ended, if it was slow.
    fn log_if_slow(&self, record: &CallRecord, code: &str, took: Duration) {
        let threshold = Duration::from_micros(self.threshold.load(Ordering::Relaxed));
        if threshold.is_zero() || took < threshold || !record.kind.should_be_fast {
            return;
        }
        let allowed = self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(left_out) = allowed else { return };
        let (method, route) = match record.kind.name {
            CallName::Grpc(path) => (Some(CallName::service_and_method(path)), None),
            CallName::Http(route) => (None, Some(route)),
        };
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let times = record.details.as_ref().and_then(|details| details.times.as_ref());
        let part = |part| times.map(|times| millis(times.of(part)));
        tracing::warn!(
            service = method.map(|(service, _)| service),
            method = method.map(|(_, method)| method),
            route,
            caller = record.caller(),
            x_request_id = record.id().map(CallId::as_str),
            code,
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

impl CallObserver {
    /// Creates an observer that logs and traces no call.
    #[cfg(test)]
    pub fn silent(events: Events) -> Self {
        let clock = Arc::new(crate::clock::SystemClock);
        let slow = Arc::new(SlowCalls::new(Duration::ZERO, clock));
        Self { events: Arc::new(events), slow, traces: Traces::default() }
    }
}

/// Observes the calls of one connection. Each call clones this handle, which counts references for
/// each connection. If calls cloned the [`CallObserver`], all connections would contend for one
/// count.
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

    /// Begins a call with these headers, which ends with `code` unless it gets another one. The
    /// identifier of the call is that in the headers. Without one, a call gets a random identifier,
    /// unless calls of its kind are frequent.
    pub fn begin(&self, kind: CallKind, code: EndCode, headers: &HeaderMap) -> CallRecord {
        let random = || CallId::random(Uuid::new_v4().as_u128());
        let sent = headers.get(&ID).and_then(|id| CallId::read(id.as_bytes()));
        let id = sent.or_else(|| (!kind.is_frequent).then(random));
        CallRecord {
            observer: self.clone(),
            kind,
            began: Instant::now(),
            code,
            caller: None,
            details: id.map(|id| Box::new(Details { id: Some(id), ..Details::default() })),
        }
    }
}

/// The parts of a record that most calls of frequent kinds lack. They are boxed, so that a record,
/// which is moved several times, stays small.
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

/// A call under way. When this is dropped, the call is counted, and logged if it was slow. A client
/// that goes away before the end of the answer leaves the code with which the call began.
#[derive(Debug)]
pub struct CallRecord {
    observer: ConnectionObserver,
    kind: CallKind,
    began: Instant,
    code: EndCode,
    caller: Option<Arc<Caller>>,
    details: Option<Box<Details>>,
}

impl CallRecord {
    /// Notes that the call was admitted. A call of a frequent kind gets a span and measured parts
    /// only if it is traced, because they would cost a considerable part of its time.
    pub fn admit(&mut self, actor: Option<&Actor>, headers: &HeaderMap) {
        self.caller = actor.map(|actor| actor.caller.clone());
        let trace = self.observer.0.observer.traces.decide(headers, actor.is_some());
        if !self.kind.is_frequent || trace.is_recorded() {
            let span = self.span_of(&trace);
            trace.apply_to(&span);
            let details = self.details.get_or_insert_default();
            (details.span, details.times) = (span, Some(Times::default()));
        }
    }

    /// Wraps the future that answers the call: it runs in the span of the call, and its parts are
    /// timed. Without a span, returns the future as it is.
    pub fn observe<F: Future>(&self, answering: F) -> impl Future<Output = F::Output> + use<F> {
        match self.details.as_deref() {
            Some(Details { times: Some(times), span, .. }) => {
                Either::Left(measure(times.clone(), answering.instrument(span.clone())))
            }
            _ => Either::Right(answering),
        }
    }

    /// Sets the code with which the call ends.
    pub fn set_code(&mut self, code: EndCode) {
        self.code = code;
    }

    /// Adds the identifier of the call, if it has one, to the headers or trailers of the answer.
    pub fn add_id(&self, headers: &mut HeaderMap) {
        if let Some(id) = self.id()
            && let Ok(id) = HeaderValue::from_str(id.as_str())
        {
            headers.insert(ID.clone(), id);
        }
    }

    /// Returns the identifier of the call.
    pub fn id(&self) -> Option<&CallId> {
        self.details.as_ref()?.id.as_ref()
    }

    fn span_of(&self, trace: &Trace) -> Span {
        match self.kind.name {
            CallName::Grpc(path) => self.grpc_span(path, trace.is_recorded()),
            CallName::Http(route) => self.http_span(route, trace.is_recorded()),
        }
    }

    /// Creates the span of a call over gRPC. The fields of a traced call have the names of
    /// OpenTelemetry (semantic conventions for RPC).
    fn grpc_span(&self, path: &'static str, is_traced: bool) -> Span {
        let (service, method) = CallName::service_and_method(path);
        let (caller, id) = (self.caller(), self.id().map(CallId::as_str));
        if !is_traced {
            return tracing::info_span!(
                "call",
                service,
                method,
                caller,
                x_request_id = id,
                tenant = Empty,
                session_id = Empty,
            );
        }
        tracing::info_span!(
            "call",
            otel.name = path.trim_start_matches('/'),
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
            service,
            method,
            caller,
            x_request_id = id,
            tenant = Empty,
            session_id = Empty,
        )
    }

    /// Creates the span of a request over HTTP. The fields of a traced request have the names of
    /// OpenTelemetry (semantic conventions for HTTP).
    fn http_span(&self, route: &'static str, is_traced: bool) -> Span {
        let (caller, id) = (self.caller(), self.id().map(CallId::as_str));
        if !is_traced {
            return tracing::info_span!(
                "call",
                route,
                caller,
                x_request_id = id,
                tenant = Empty,
                session_id = Empty,
            );
        }
        tracing::info_span!(
            "call",
            otel.name = route,
            otel.kind = "server",
            otel.status_code = Empty,
            http.route = route,
            http.response.status_code = Empty,
            route,
            caller,
            x_request_id = id,
            tenant = Empty,
            session_id = Empty,
        )
    }

    fn caller(&self) -> Option<&str> {
        self.caller.as_ref().map(|caller| &*caller.name)
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let (took, code) = (self.began.elapsed(), usize::from(self.code.number));
        let CallObserver { events, slow, .. } = &*self.observer.0.observer;
        events.observe(self.kind.number, code, took);
        slow.log_if_slow(self, events.codes().get(code).unwrap_or(&""), took);
        if let Some(Details { span, .. }) = self.details.as_deref() {
            let field = match self.kind.name {
                CallName::Grpc(_) => "rpc.grpc.status_code",
                CallName::Http(_) => "http.response.status_code",
            };
            // OpenTelemetry has only one type of integers.
            span.record(field, i64::from(self.code.value));
            if self.code.is_server_error {
                span.record("otel.status_code", "ERROR");
            }
        }
    }
}
