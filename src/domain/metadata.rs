//! Metadata: data that callers keep with a session, and that no token carries.

use serde_json::{Map, Value};

use super::{
    json_object::JsonObject,
    stored_object::{ObjectError, checked_object, find_large_integer},
};

/// The largest size of a session's metadata, in bytes of JSON.
pub const MAX_BYTES: usize = 4096;

/// The metadata of a session: a JSON object of bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(JsonObject);

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
    type Error = ObjectError;

    fn try_from(map: Map<String, Value>) -> Result<Self, ObjectError> {
        if let Some(path) = map.iter().find_map(|(name, value)| find_large_integer(name, value)) {
            return Err(ObjectError::LargeInteger(path));
        }
        checked_object(&map, MAX_BYTES).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Metadata, ObjectError> {
        let Value::Object(map) = value else { panic!("{value}") };
        Metadata::try_from(map)
    }

    #[test]
    fn metadata_are_an_object_of_limited_size_without_inexact_numbers_and_nul() {
        let longest = MAX_BYTES - json!({ "a": "" }).to_string().len();
        let kept = read(json!({ "a": "x".repeat(longest) })).unwrap();
        assert_eq!(kept.to_json().len(), MAX_BYTES);
        let too_long = read(json!({ "a": "x".repeat(longest + 1) }));
        assert_eq!(too_long, Err(ObjectError::TooLong { bytes: MAX_BYTES + 1, limit: MAX_BYTES }));
        let large = read(json!({ "a": [9_007_199_254_740_993_u64] }));
        assert_eq!(large, Err(ObjectError::LargeInteger("a[0]".to_owned())));
        for nul in [json!({ "\0": 1 }), json!({ "a": ["\0"] })] {
            assert_eq!(read(nul), Err(ObjectError::Nul));
        }
        assert_eq!(Metadata::default().to_json(), "{}");
    }
}
