//! Identifiers of calls, by which the lines of a call can be found in the logs of several services.

use std::{fmt, sync::Arc};

/// The name of the header that holds the identifier of a call, over gRPC and HTTP.
pub const HEADER: &str = "x-request-id";

/// The most characters of an identifier.
const MAX_LENGTH: usize = 128;

/// The identifier of a call. It has 1 to 128 visible ASCII characters. A clone is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallId(Arc<str>);

impl CallId {
    /// Reads the identifier that a client or a proxy has sent. An identifier of another form is
    /// ignored, because it is written to the log.
    pub fn read(value: &[u8]) -> Option<Self> {
        let is_good = (1..=MAX_LENGTH).contains(&value.len())
            && value.iter().all(|byte| byte.is_ascii_graphic());
        is_good.then(|| Self(String::from_utf8_lossy(value).into()))
    }

    /// Returns an identifier with these random bits.
    pub fn random(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// Returns the characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_has_1_to_128_visible_characters() {
        let longest = "x".repeat(MAX_LENGTH);
        for good in ["a", "2f1c:7/8=+_-.~", &longest, &CallId::random(7).to_string()] {
            assert_eq!(CallId::read(good.as_bytes()).unwrap().as_str(), good);
        }
        let too_long = "x".repeat(MAX_LENGTH + 1);
        for bad in ["", " ", "a b", "a\nb", "\u{e4}", "a\u{7f}", &too_long] {
            assert_eq!(CallId::read(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(CallId::read(b"\xff").is_none());
    }
}
