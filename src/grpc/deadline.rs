//! Reads the deadline that a caller sets for a call (`grpc-timeout`).

use std::time::Duration;

use http::HeaderMap;

/// Returns the time that the caller allows for the call, if the caller sets one. The header holds
/// up to eight digits and a unit (gRPC over HTTP/2, "Timeout"). A malformed header is ignored.
pub fn span(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_of_at_most_eight_digits_and_a_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            span(&headers)
        };
        let units = [
            ("2H", 7_200_000_000_000),
            ("3M", 180_000_000_000),
            ("4S", 4_000_000_000),
            ("5m", 5_000_000),
        ];
        for (text, nanos) in
            units.into_iter().chain([("6u", 6_000), ("7n", 7), ("99999999n", 99_999_999)])
        {
            assert_eq!(read(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "5", "5x", "-5S", "+5S", "1.5S", "999999999n"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(span(&HeaderMap::new()), None);
    }
}
