//! Decides which calls are traced, and joins their spans to the traces of their clients (W3C Trace
//! Context).

use http::HeaderMap;
use opentelemetry::{Context, propagation::TextMapPropagator, trace::TraceContextExt};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The name of the attribute of a call that was chosen before its span was made.
pub const CHOSEN: &str = "countersign.chosen";

/// The header that carries the trace of the client.
const TRACE_PARENT: &str = "traceparent";

/// Decides which calls are traced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traces {
    /// The share of calls without a trace of their client that begin one; none if traces are off.
    ratio: Option<f64>,
}

/// The place of a call among traces.
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

    /// Returns the place of the call with these headers.
    pub fn place(&self, headers: &HeaderMap) -> Trace {
        let Some(ratio) = self.ratio else { return Trace::None };
        if headers.contains_key(TRACE_PARENT) {
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
    pub fn adopt(self, span: &Span) {
        match self {
            // The parent is set before the span is entered, so this cannot fail.
            Self::Joined(context) => drop(span.set_parent(context)),
            Self::Begun => span.set_attribute(CHOSEN, true),
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
            assert!(matches!(traces.place(&parent("01")), Trace::Joined(_)));
            assert!(matches!(traces.place(&parent("00")), Trace::None));
        }
        for unsaid in [HeaderMap::new(), headers("00-0-0-01"), headers("nonsense")] {
            assert!(matches!(none.place(&unsaid), Trace::None));
            assert!(matches!(all.place(&unsaid), Trace::Begun));
        }
        assert!(matches!(Traces::default().place(&parent("01")), Trace::None), "traces are off");
    }
}
