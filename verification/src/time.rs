//! Instants as whole microseconds, the finest unit that both database engines store.

use std::time::Duration;

/// An instant, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Returns the instant this many microseconds after the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns the instant this many seconds after the epoch. It saturates at the earliest and
    /// latest instants that can be represented.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Returns the microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns the whole milliseconds since the epoch, rounded down.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Returns the whole seconds since the epoch, rounded down: a `NumericDate` (RFC 7519, section
    /// 2).
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Returns the microseconds past the whole second, 0 to 999,999.
    pub const fn subsecond_micros(self) -> i64 {
        self.0.rem_euclid(1_000_000)
    }

    /// Returns this instant rounded down to a whole second.
    pub const fn floor_to_second(self) -> Self {
        Self::from_seconds(self.seconds())
    }

    /// Returns the instant `span` later. It saturates at the latest instant that can be
    /// represented.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// Returns the instant `span` earlier. It saturates at the earliest instant that can be
    /// represented.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// Returns the time from `earlier` to this instant, or zero if this instant is not later.
    pub fn since(self, earlier: Self) -> Duration {
        let span = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(span).unwrap_or(0))
    }
}

/// Returns a span in whole microseconds, at most `i64::MAX`.
pub fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_down_on_both_sides_of_the_epoch() {
        assert_eq!(Timestamp::from_micros(1_999_999).seconds(), 1);
        assert_eq!(Timestamp::from_micros(-1).seconds(), -1);
        assert_eq!(Timestamp::from_micros(-1).subsecond_micros(), 999_999);
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let last = Timestamp::from_micros(i64::MAX);
        assert_eq!(last.plus(Duration::from_secs(1)), last);
        assert_eq!(Timestamp::from_seconds(i64::MAX), last);
        assert_eq!(Timestamp::from_micros(5).since(last), Duration::ZERO);
    }
}
