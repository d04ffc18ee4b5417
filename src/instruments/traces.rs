//! Decides which calls are traced, and joins their spans to the traces of their clients (W3C Trace
//! Context).

use http::HeaderMap;
use opentelemetry::{Context, propagation::TextMapPropagator, trace::TraceContextExt};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use prometheus_client::metrics::counter::Counter;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The attribute of the span of a call that begins a trace. The call was sampled before its span
/// was created, and the sampler of OpenTelemetry follows this attribute.
pub const SAMPLED: &str = "countersign.sampled";

/// The header that carries the trace of the client.
const TRACE_PARENT: &str = "traceparent";

/// Decides which calls are traced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traces {
    /// The share of calls without a valid `traceparent` that begin a trace; none if traces are off.
    ratio: Option<f64>,
}

/// The number of spans that were recorded and did not reach the collector, by reason.
#[derive(Debug, Default)]
pub struct DroppedSpans {
    /// Spans for which the queue had no room.
    pub queue_full: Counter,
    /// Spans that the collector did not take.
    pub export_failed: Counter,
}

/// The decision whether a call is traced (head sampling).
#[derive(Clone, Debug)]
pub enum Trace {
    /// The call is not traced.
    None,
    /// The call is part of this trace of its client, which is recorded.
    Joined(Context),
    /// The call begins a trace.
    Begun,
}

impl Traces {
    /// Records calls whose client asks for it, and this share of those whose client does not say.
    pub fn with_ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio) }
    }

    /// Returns whether any call is traced.
    pub fn is_on(&self) -> bool {
        self.ratio.is_some()
    }

    /// Decides whether the call with these headers is traced. A `traceparent` counts only if its
    /// caller is known, so that strangers cannot fill the collector.
    pub fn decide(&self, headers: &HeaderMap, is_known: bool) -> Trace {
        let Some(ratio) = self.ratio else { return Trace::None };
        if is_known && headers.contains_key(TRACE_PARENT) {
            let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
            let of_client = context.span().span_context().clone();
            if of_client.is_valid() {
                let is_sampled = of_client.is_sampled();
                return if is_sampled { Trace::Joined(context) } else { Trace::None };
            }
        }
        if fastrand::f64() < ratio { Trace::Begun } else { Trace::None }
    }
}

impl Trace {
    /// Returns whether the call is traced.
    pub fn is_recorded(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Puts the span of the call into the trace.
    pub fn apply_to(self, span: &Span) {
        match self {
            // The span has not been entered yet, so this does not fail.
            Self::Joined(context) => drop(span.set_parent(context)),
            Self::Begun => span.set_attribute(SAMPLED, true),
            Self::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(trace_parent: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static(TRACE_PARENT),
            trace_parent.parse().unwrap(),
        )])
    }

    #[test]
    fn the_client_decides_if_it_sends_a_valid_trace_and_the_ratio_otherwise() {
        let parent = |flags: &str| {
            headers(&format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"))
        };
        let (none, all) = (Traces::with_ratio(0.0), Traces::with_ratio(1.0));
        for traces in [none, all] {
            assert!(matches!(traces.decide(&parent("01"), true), Trace::Joined(_)));
            assert!(matches!(traces.decide(&parent("00"), true), Trace::None));
        }
        assert!(matches!(none.decide(&parent("01"), false), Trace::None), "of a stranger");
        for unsaid in [HeaderMap::new(), headers("00-0-0-01"), headers("nonsense")] {
            assert!(matches!(none.decide(&unsaid, true), Trace::None));
            assert!(matches!(all.decide(&unsaid, true), Trace::Begun));
        }
        assert!(
            matches!(Traces::default().decide(&parent("01"), true), Trace::None),
            "traces are off"
        );
    }
}
