//! Bounded texts: valid UTF-8 without control characters. Limits are in bytes. Each kind of text
//! has its own type.

use countersign_verification::{bounded_text, text::no_control};

pub use countersign_verification::text::{Audience, ClientId, Subject, Tenant, TextError};

const NOT_A_SCOPE: &str = "may only contain printable ASCII without space, quote and backslash (RFC \
                           6749, section 3.3)";
const NOT_A_NAME: &str = "may only contain ASCII letters, ASCII digits, and . _ -";
const OWN_CALLER: &str = "must not be anybody, unknown, countersign, which are names that the \
                          service itself uses";

fn scope_characters(text: &str) -> Result<(), TextError> {
    let allowed = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    if text.bytes().all(allowed) { Ok(()) } else { Err(TextError::NotAllowed(NOT_A_SCOPE)) }
}

fn ip_address(text: &str) -> Result<(), TextError> {
    if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() {
        Ok(())
    } else {
        Err(TextError::NotAllowed("is not an IP address"))
    }
}

fn name_characters(text: &str) -> Result<(), TextError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !text.bytes().all(allowed) {
        return Err(TextError::NotAllowed(NOT_A_NAME));
    }
    if OWN_CALLERS.contains(&text) { Err(TextError::NotAllowed(OWN_CALLER)) } else { Ok(()) }
}

/// The caller's name in audit records if the configuration names no callers.
pub const ANYBODY: &str = "anybody";
/// The caller's name in audit records if the caller could not be authenticated.
pub const UNKNOWN: &str = "unknown";
/// The caller's name in audit records of actions of the service itself.
pub const SERVICE: &str = "countersign";
const OWN_CALLERS: [&str; 3] = [ANYBODY, UNKNOWN, SERVICE];

bounded_text!(
    /// One scope (RFC 6749, section 3.3).
    Scope, 1..=128, scope_characters);
bounded_text!(
    /// An authentication context class reference (OpenID Connect Core, section 2); may be empty.
    Acr, 0..=256, no_control);
bounded_text!(
    /// An authentication method (RFC 8176).
    Amr, 1..=64, no_control);
bounded_text!(
    /// A User-Agent header; may be empty.
    UserAgent, 0..=512, no_control);
bounded_text!(
    /// The text form of an IP address; may be empty.
    IpAddress, 0..=64, ip_address);
bounded_text!(
    /// A name that a user gave a device; may be empty.
    DeviceLabel, 0..=128, no_control);
bounded_text!(
    /// The caller's own identifier of a device; may be empty.
    DeviceId, 0..=128, no_control);
bounded_text!(
    /// A note that explains why a session ended; may be empty.
    Note, 0..=1024, no_control);
bounded_text!(
    /// An idempotency key.
    RequestId, 1..=128, no_control);
bounded_text!(
    /// The name of a policy in the configuration.
    PolicyName, 1..=64, no_control);
bounded_text!(
    /// The name of a caller in the configuration.
    CallerName, 1..=64, name_characters);

impl CallerName {
    /// Returns the name that stands for every caller if the configuration names no callers.
    pub fn anybody() -> Self {
        Self(ANYBODY.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_may_have_a_name_that_the_service_uses_itself() {
        assert!(CallerName::try_from("login".to_owned()).is_ok());
        for name in OWN_CALLERS {
            assert!(OWN_CALLER.contains(name));
            assert_eq!(
                CallerName::try_from(name.to_owned()),
                Err(TextError::NotAllowed(OWN_CALLER))
            );
        }
    }

    #[test]
    fn a_scope_contains_only_the_characters_that_rfc_6749_allows() {
        assert!(Scope::try_from("orders:read".to_owned()).is_ok());
        for text in ["a b", "a\"b", "a\\b", "é"] {
            assert_eq!(Scope::try_from(text.to_owned()), Err(TextError::NotAllowed(NOT_A_SCOPE)));
        }
    }
}
