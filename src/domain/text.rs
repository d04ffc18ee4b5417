//! Bounded texts: valid UTF-8 without control characters. Limits are in bytes. Each kind of text
//! has its own type.

use std::{fmt, ops::Deref};

/// The reason why a text was refused. The displayed text completes a sentence that starts with the
/// field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The text is empty, but must not be.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than its limit.
    #[error("has {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// The length in bytes.
        length: usize,
        /// The largest allowed length in bytes.
        limit: usize,
    },
    /// The text holds a control character.
    #[error("must not contain control characters")]
    ControlCharacter,
    /// A scope contains a character that is not allowed in scopes.
    #[error(
        "may only contain printable ASCII without space, quote and backslash (RFC 6749, section \
         3.3)"
    )]
    NotAScope,
    /// The text is not an IP address.
    #[error("is not an IP address")]
    NotAnAddress,
    /// A name contains a character that is not allowed in names.
    #[error("may only contain ASCII letters, ASCII digits, and . _ -")]
    NotAName,
    /// The service itself uses this name in audit records.
    #[error("must not be {}, which are names that the service itself uses", OWN_CALLERS.join(", "))]
    OwnCaller,
}

fn check_length(text: &str, least: usize, limit: usize) -> Result<(), TextError> {
    if text.len() < least {
        return Err(TextError::Empty);
    }
    if text.len() > limit {
        return Err(TextError::TooLong { length: text.len(), limit });
    }
    Ok(())
}

fn no_control(text: &str) -> Result<(), TextError> {
    if text.chars().any(char::is_control) { Err(TextError::ControlCharacter) } else { Ok(()) }
}

fn scope_characters(text: &str) -> Result<(), TextError> {
    let allowed = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    if text.bytes().all(allowed) { Ok(()) } else { Err(TextError::NotAScope) }
}

fn ip_address(text: &str) -> Result<(), TextError> {
    if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() {
        Ok(())
    } else {
        Err(TextError::NotAnAddress)
    }
}

fn name_characters(text: &str) -> Result<(), TextError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !text.bytes().all(allowed) {
        return Err(TextError::NotAName);
    }
    if OWN_CALLERS.contains(&text) { Err(TextError::OwnCaller) } else { Ok(()) }
}

/// The caller's name in audit records if the configuration names no callers.
pub const ANYBODY: &str = "anybody";
/// The caller's name in audit records if the caller could not be authenticated.
pub const UNKNOWN: &str = "unknown";
/// The caller's name in audit records of actions of the service itself.
pub const SERVICE: &str = "countersign";
const OWN_CALLERS: [&str; 3] = [ANYBODY, UNKNOWN, SERVICE];

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $least:literal..=$limit:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The largest length in bytes.
            pub const MAX_BYTES: usize = $limit;

            /// Returns the text.
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;
            fn try_from(text: String) -> Result<Self, TextError> {
                check_length(&text, $least, $limit)?;
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// The user who is signed in: the `sub` claim (RFC 7519, section 4.1.2).
    Subject, 1..=256, no_control);
text!(
    /// The tenant that a subject belongs to; empty for the default tenant.
    Tenant, 0..=128, no_control);
text!(
    /// The OAuth client: the `client_id` claim (RFC 9068, section 2.2); may be empty.
    ClientId, 0..=256, no_control);
text!(
    /// A resource server: a value of the `aud` claim (RFC 7519, section 4.1.3).
    Audience, 1..=256, no_control);
text!(
    /// One scope (RFC 6749, section 3.3).
    Scope, 1..=128, scope_characters);
text!(
    /// An authentication context class reference (OpenID Connect Core, section 2); may be empty.
    Acr, 0..=256, no_control);
text!(
    /// An authentication method (RFC 8176).
    Amr, 1..=64, no_control);
text!(
    /// A User-Agent header; may be empty.
    UserAgent, 0..=512, no_control);
text!(
    /// The text form of an IP address; may be empty.
    IpAddress, 0..=64, ip_address);
text!(
    /// A name that a user gave a device; may be empty.
    DeviceLabel, 0..=128, no_control);
text!(
    /// The caller's own identifier of a device; may be empty.
    DeviceId, 0..=128, no_control);
text!(
    /// A note that explains why a session ended; may be empty.
    Note, 0..=1024, no_control);
text!(
    /// An idempotency key.
    RequestId, 1..=128, no_control);
text!(
    /// The name of a policy in the configuration.
    PolicyName, 1..=64, no_control);
text!(
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
    fn limits_are_in_bytes_and_inclusive() {
        assert!(Subject::try_from("é".repeat(128)).is_ok());
        assert_eq!(
            Subject::try_from("é".repeat(128) + "x"),
            Err(TextError::TooLong { length: 257, limit: 256 })
        );
        assert_eq!(Subject::try_from(String::new()), Err(TextError::Empty));
        assert!(Tenant::try_from(String::new()).is_ok());
    }

    #[test]
    fn control_characters_are_refused_at_any_position() {
        for text in ["a\nb", "\0", "tab\t", "\u{85}", "\u{7f}"] {
            assert_eq!(Subject::try_from(text.to_owned()), Err(TextError::ControlCharacter));
        }
    }

    #[test]
    fn no_caller_may_have_a_name_that_the_service_uses_itself() {
        assert!(CallerName::try_from("login".to_owned()).is_ok());
        for name in ["anybody", "unknown", "countersign"] {
            assert_eq!(CallerName::try_from(name.to_owned()), Err(TextError::OwnCaller));
        }
    }

    #[test]
    fn a_scope_contains_only_the_characters_that_rfc_6749_allows() {
        assert!(Scope::try_from("orders:read".to_owned()).is_ok());
        for text in ["a b", "a\"b", "a\\b", "é"] {
            assert_eq!(Scope::try_from(text.to_owned()), Err(TextError::NotAScope));
        }
    }
}
