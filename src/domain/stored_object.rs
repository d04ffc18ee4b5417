//! The rules for the JSON objects that callers keep with a session: custom claims and metadata.

use serde_json::{Map, Value};

use super::json_object::JsonObject;

/// The reason why an object is refused. The displayed text completes a sentence that starts with
/// the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The object is too long.
    #[error("has {bytes} bytes as JSON, at most {limit} are allowed")]
    TooLong {
        /// The length of the object as JSON, in bytes.
        bytes: usize,
        /// The largest length.
        limit: usize,
    },
    /// An integer is so large that most JSON parsers round it to another integer. The variant holds
    /// the path to the integer.
    #[error(
        "holds an integer beyond 2^53 at {0}, which readers of JSON change to another one: send \
         it as a string"
    )]
    LargeInteger(String),
    /// A text contains a NUL character, which PostgreSQL cannot store.
    #[error("must not contain NUL characters")]
    Nul,
}

/// The largest safe integer, 2^53 - 1. Most JSON parsers decode numbers to doubles (RFC 8259,
/// section 6; RFC 7493, section 2.2), so they round several larger integers to the same value.
pub const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// The longest path to an integer in an error message. A longer path is cut.
const MAX_PATH_CHARS: usize = 64;

/// Converts an object that has at most `limit` bytes as JSON and no NUL characters.
pub fn checked_object(map: &Map<String, Value>, limit: usize) -> Result<JsonObject, ObjectError> {
    if map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
        return Err(ObjectError::Nul);
    }
    let object = JsonObject::from(map);
    match object.as_str().len() {
        bytes if bytes > limit => Err(ObjectError::TooLong { bytes, limit }),
        _ => Ok(object),
    }
}

/// Returns the path to the first number in a member, at any depth, whose absolute value is beyond
/// [`MAX_EXACT_INTEGER`].
pub fn find_large_integer(name: &str, value: &Value) -> Option<String> {
    // From 2^53 on, every double is an integer, so no fraction is reported as an integer.
    let is_large = |number: f64| number.abs() > MAX_EXACT_INTEGER;
    let path = match value {
        Value::Number(number) if number.as_f64().is_some_and(is_large) => name.to_owned(),
        Value::Array(values) => values.iter().enumerate().find_map(|(index, value)| {
            find_large_integer("", value).map(|path| format!("{name}[{index}]{path}"))
        })?,
        Value::Object(map) => map
            .iter()
            .find_map(|(inner, value)| find_large_integer(inner, value))
            .map(|path| format!("{name}.{path}"))?,
        _ => return None,
    };
    Some(path.chars().filter(|character| !character.is_control()).take(MAX_PATH_CHARS).collect())
}

/// Returns whether a value contains a NUL character at any depth.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
