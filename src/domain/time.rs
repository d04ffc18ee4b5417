//! Instants, and spans of time as text for people.

use std::time::Duration;

pub use countersign_verification::time::{Timestamp, micros};

/// Formats a span for people, in the largest unit that expresses it exactly: `90d`, `36h`, `10m`,
/// `1500ms`.
pub fn brief(span: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = span.as_nanos();
    let unit = UNITS.iter().find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{nanos}ns"), |(unit, name)| format!("{}{name}", nanos / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_formatted_in_the_largest_unit_that_expresses_it_exactly() {
        let day = Duration::from_secs(86_400);
        for (span, text) in [
            (day * 90, "90d"),
            (day + day / 2, "36h"),
            (Duration::from_secs(90), "90s"),
            (Duration::from_millis(1500), "1500ms"),
            (Duration::ZERO, "0ns"),
        ] {
            assert_eq!(brief(span), text);
            assert_eq!(humantime::parse_duration(text), Ok(span), "{text} is read back");
        }
    }
}
