//! Metadata: data that callers keep with a session, and that no token carries.

use serde_json::{Map, Value};

use super::{
    claims::{find_large_integer, has_nul},
    json_object::JsonObject,
};

/// The largest size of a session's metadata, in bytes of JSON.
pub const MAX_BYTES: usize = 4096;

/// The metadata of a session: a JSON object of bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(JsonObject);

/// The reason why metadata are refused. The displayed text completes a sentence that starts with
/// the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The metadata are longer than [`MAX_BYTES`]. The variant holds their length.
    #[error("has {0} bytes as JSON, at most {MAX_BYTES} are allowed")]
    TooLong(usize),
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

impl Metadata {
    /// Returns the metadata as a JSON object.
    pub fn object(&self) -> &JsonObject {
        &self.0
    }

    /// Returns the metadata as JSON text.
    pub fn to_json(&self) -> String {
        self.0.as_str().to_owned()
    }
}

impl TryFrom<Map<String, Value>> for Metadata {
    type Error = MetadataError;

    fn try_from(map: Map<String, Value>) -> Result<Self, MetadataError> {
        if map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
            return Err(MetadataError::Nul);
        }
        if let Some(path) = map.iter().find_map(|(name, value)| find_large_integer(name, value)) {
            return Err(MetadataError::LargeInteger(path));
        }
        let object = JsonObject::from(&map);
        match object.as_str().len() {
            length if length > MAX_BYTES => Err(MetadataError::TooLong(length)),
            _ => Ok(Self(object)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Metadata, MetadataError> {
        let Value::Object(map) = value else { panic!("{value}") };
        Metadata::try_from(map)
    }

    #[test]
    fn metadata_are_an_object_of_limited_size_without_inexact_numbers_and_nul() {
        let longest = MAX_BYTES - json!({ "a": "" }).to_string().len();
        let kept = read(json!({ "a": "x".repeat(longest) })).unwrap();
        assert_eq!(kept.to_json().len(), MAX_BYTES);
        let too_long = read(json!({ "a": "x".repeat(longest + 1) }));
        assert_eq!(too_long, Err(MetadataError::TooLong(MAX_BYTES + 1)));
        let large = read(json!({ "a": [9_007_199_254_740_993_u64] }));
        assert_eq!(large, Err(MetadataError::LargeInteger("a[0]".to_owned())));
        for nul in [json!({ "\0": 1 }), json!({ "a": ["\0"] })] {
            assert_eq!(read(nul), Err(MetadataError::Nul));
        }
        assert_eq!(Metadata::default().to_json(), "{}");
    }
}
