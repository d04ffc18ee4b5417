//! Reads and writes spans of time in the form `10m`, `14d` or `1h 30m`.

use std::time::Duration;

use serde::{Deserializer, Serializer};

use crate::domain::time::brief;

/// Deserializes a span, or an optional one.
pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    humantime_serde::Serde<T>: serde::Deserialize<'de>,
{
    humantime_serde::deserialize(deserializer)
}

/// Serializes a span in the largest unit that expresses it exactly. A span of centuries in a small
/// unit would overflow when `humantime` parses it, so such a span is written in several units.
pub fn serialize<S: Serializer>(span: &impl AsSpan, serializer: S) -> Result<S::Ok, S::Error> {
    match span.as_span() {
        Some(span) => {
            let text = brief(span);
            match humantime::parse_duration(&text) {
                Ok(_) => serializer.serialize_str(&text),
                Err(_) => serializer.collect_str(&humantime::format_duration(span)),
            }
        }
        None => serializer.serialize_none(),
    }
}

/// A span, or an optional span.
pub trait AsSpan {
    /// Returns the span, if there is one.
    fn as_span(&self) -> Option<Duration>;
}

impl AsSpan for Duration {
    fn as_span(&self) -> Option<Duration> {
        Some(*self)
    }
}

impl AsSpan for Option<Duration> {
    fn as_span(&self) -> Option<Duration> {
        *self
    }
}
