//! Converts the types that occur in requests and in answers: instants, durations and end reasons.

use std::time::Duration;

use crate::{
    authority::error::AuthorityError,
    domain::{
        session::EndReason,
        time::{Timestamp, micros},
    },
    proto,
};

/// Converts an instant in a request. Fractions of a microsecond are cut off.
pub fn instant(
    field: &str,
    timestamp: prost_types::Timestamp,
) -> Result<Timestamp, AuthorityError> {
    let wrong = || AuthorityError::field(field, "is not an instant between the years 1 and 9999");
    if !(0..1_000_000_000).contains(&timestamp.nanos)
        || !(-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds)
    {
        return Err(wrong());
    }
    let micros = timestamp
        .seconds
        .checked_mul(1_000_000)
        .and_then(|m| m.checked_add(i64::from(timestamp.nanos) / 1000));
    micros.map(Timestamp::from_micros).ok_or_else(wrong)
}

/// Converts a duration in a request.
pub fn span(field: &str, duration: prost_types::Duration) -> Result<Duration, AuthorityError> {
    let wrong = || AuthorityError::field(field, "must not be negative");
    let seconds = u64::try_from(duration.seconds).map_err(|_| wrong())?;
    let nanos = u32::try_from(duration.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)
        .ok_or_else(wrong)?;
    Ok(Duration::new(seconds, nanos))
}

/// Converts an instant for an answer, with a precision of a microsecond.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.subsecond_micros() * 1000).unwrap_or_default();
    prost_types::Timestamp { seconds: at.seconds(), nanos }
}

/// Converts a duration for an answer, with a precision of a microsecond.
pub fn duration(span: Duration) -> prost_types::Duration {
    let micros = micros(span);
    let nanos = i32::try_from(micros % 1_000_000 * 1000).unwrap_or_default();
    prost_types::Duration { seconds: micros / 1_000_000, nanos }
}

/// Converts an end reason in a request.
pub fn end_reason_of(reason: proto::EndReason) -> EndReason {
    match reason {
        proto::EndReason::Unspecified => EndReason::Unspecified,
        proto::EndReason::SignedOut => EndReason::SignedOut,
        proto::EndReason::Administrative => EndReason::Administrative,
        proto::EndReason::Compromised => EndReason::Compromised,
        proto::EndReason::CredentialsChanged => EndReason::CredentialsChanged,
        proto::EndReason::AccountDisabled => EndReason::AccountDisabled,
        proto::EndReason::RefreshTokenReused => EndReason::RefreshTokenReused,
        proto::EndReason::QuotaEvicted => EndReason::QuotaEvicted,
        proto::EndReason::ExpiredIdle => EndReason::ExpiredIdle,
        proto::EndReason::ExpiredAbsolute => EndReason::ExpiredAbsolute,
    }
}

/// Converts an end reason for an answer.
pub fn end_reason(reason: EndReason) -> proto::EndReason {
    match reason {
        EndReason::Unspecified => proto::EndReason::Unspecified,
        EndReason::SignedOut => proto::EndReason::SignedOut,
        EndReason::Administrative => proto::EndReason::Administrative,
        EndReason::Compromised => proto::EndReason::Compromised,
        EndReason::CredentialsChanged => proto::EndReason::CredentialsChanged,
        EndReason::AccountDisabled => proto::EndReason::AccountDisabled,
        EndReason::RefreshTokenReused => proto::EndReason::RefreshTokenReused,
        EndReason::QuotaEvicted => proto::EndReason::QuotaEvicted,
        EndReason::ExpiredIdle => proto::EndReason::ExpiredIdle,
        EndReason::ExpiredAbsolute => proto::EndReason::ExpiredAbsolute,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instants_that_are_malformed_or_outside_the_years_1_to_9999_are_refused() {
        for (seconds, nanos) in
            [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0)]
        {
            assert!(instant("t", prost_types::Timestamp { seconds, nanos }).is_err());
        }
    }

    #[test]
    fn spans_that_are_negative_or_malformed_are_refused() {
        for (seconds, nanos) in
            [(-1, 0), (0, -1), (i64::MIN, 0), (i64::MIN, i32::MIN), (0, 1_000_000_000)]
        {
            assert!(span("t", prost_types::Duration { seconds, nanos }).is_err());
        }
        let longest = prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 };
        assert_eq!(span("t", longest).unwrap().as_secs(), u64::try_from(i64::MAX).unwrap());
    }

    #[test]
    fn end_reasons_survive_the_conversion_both_ways() {
        for number in 0..10 {
            let reason = proto::EndReason::try_from(number).unwrap();
            assert_eq!(end_reason(end_reason_of(reason)), reason);
        }
    }

    proptest! {
        #[test]
        fn instants_survive_the_conversion_both_ways_to_the_microsecond(
            micros in -62_135_596_800_000_000i64..253_402_300_799_000_000,
        ) {
            let at = Timestamp::from_micros(micros);
            prop_assert_eq!(instant("t", timestamp(at)).unwrap(), at);
        }
    }
}
