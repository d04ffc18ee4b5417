//! Bounded texts: valid UTF-8 without control characters. Limits are in bytes. Each kind of text
//! has its own type.

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
    /// The text breaks a rule of its kind, which the variant states.
    #[error("{0}")]
    NotAllowed(&'static str),
}

/// Checks the length of a text, in bytes.
pub fn check_length(text: &str, least: usize, limit: usize) -> Result<(), TextError> {
    if text.len() < least {
        return Err(TextError::Empty);
    }
    if text.len() > limit {
        return Err(TextError::TooLong { length: text.len(), limit });
    }
    Ok(())
}

/// Checks that a text has no control characters.
pub fn no_control(text: &str) -> Result<(), TextError> {
    if text.chars().any(char::is_control) { Err(TextError::ControlCharacter) } else { Ok(()) }
}

/// Defines a kind of text: its documentation, its name, the smallest and the largest length, and a
/// function that checks its characters.
#[macro_export]
macro_rules! bounded_text {
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
            type Error = $crate::text::TextError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                $crate::text::check_length(&text, $least, $limit)?;
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

bounded_text!(
    /// The user who is signed in: the `sub` claim (RFC 7519, section 4.1.2).
    Subject, 1..=256, no_control);
bounded_text!(
    /// The tenant that a subject belongs to; empty for the default tenant.
    Tenant, 0..=128, no_control);
bounded_text!(
    /// The OAuth client: the `client_id` claim (RFC 9068, section 2.2); may be empty.
    ClientId, 0..=256, no_control);
bounded_text!(
    /// A resource server: a value of the `aud` claim (RFC 7519, section 4.1.3).
    Audience, 1..=256, no_control);

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
}
