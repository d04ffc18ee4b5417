//! Spans of time as they are written: `10m`, `14d`, `1h 30m`.

use std::time::Duration;

use serde::{Deserializer, Serializer};

use crate::domain::time::brief;

/// Reads a span, or none.
pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    humantime_serde::Serde<T>: serde::Deserialize<'de>,
{
    humantime_serde::deserialize(deserializer)
}

/// Writes a span in its largest exact unit, or in several: of a small unit, centuries are more than
/// can be read.
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

/// A span that may be left out.
pub trait AsSpan {
    /// The span, if there is one.
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
