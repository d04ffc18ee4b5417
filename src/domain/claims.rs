//! The claims of an access token (RFC 9068, section 2.2), and the custom claims that a session may
//! add to them.

use serde_json::{Map, Value};

pub use countersign_verification::claims::{AMR_VERIFIED_AT, AUTHENTICATION_ID, AccessClaims};

use super::{
    json_object::JsonObject,
    stored_object::{ObjectError, checked_object, find_large_integer},
};

/// Names that custom claims must not have, because the service or a standard gives them a meaning.
pub const RESERVED: [&str; 22] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "client_id",
    "sid",
    AUTHENTICATION_ID,
    AMR_VERIFIED_AT,
    "tenant",
    "scope",
    "auth_time",
    "acr",
    "amr",
    "cnf",
    "act",
    "may_act",
    "azp",
    "nonce",
    "events",
];

/// The largest size of a session's custom claims, in bytes of JSON.
pub const MAX_CUSTOM_BYTES: usize = 4096;

/// The custom claims of a session: a JSON object of bounded size without reserved names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomClaims(JsonObject);

/// The reason why custom claims are refused. The displayed text completes a sentence that starts
/// with the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// A claim has a reserved name.
    #[error("may not set the reserved claim {0:?}")]
    Reserved(String),
    /// The claims are not an object that a session can keep.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl CustomClaims {
    /// Returns the claims as a JSON object.
    pub fn object(&self) -> &JsonObject {
        &self.0
    }

    /// Returns the claims as JSON text.
    pub fn to_json(&self) -> String {
        self.0.as_str().to_owned()
    }
}

impl CustomClaims {
    /// Checks the claims of a request, which must not hold integers beyond
    /// [`MAX_EXACT_INTEGER`](super::stored_object::MAX_EXACT_INTEGER).
    /// Claims that are read from the database may hold such integers, because older versions
    /// accepted them.
    pub fn requested(map: Map<String, Value>) -> Result<Self, ClaimsError> {
        let large = map.iter().find_map(|(name, value)| find_large_integer(name, value));
        let claims = Self::try_from(map)?;
        match large {
            Some(path) => Err(ObjectError::LargeInteger(path).into()),
            None => Ok(claims),
        }
    }
}

impl TryFrom<Map<String, Value>> for CustomClaims {
    type Error = ClaimsError;

    fn try_from(map: Map<String, Value>) -> Result<Self, ClaimsError> {
        if let Some(name) = map.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(ClaimsError::Reserved(name.clone()));
        }
        Ok(Self(checked_object(&map, MAX_CUSTOM_BYTES)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims(value: Value) -> Result<CustomClaims, ClaimsError> {
        let Value::Object(map) = value else { panic!("an object") };
        CustomClaims::try_from(map)
    }

    #[test]
    fn reserved_names_are_refused_at_top_level_only() {
        for name in RESERVED {
            assert_eq!(claims(json!({ name: 1 })), Err(ClaimsError::Reserved(name.to_owned())));
        }
        assert!(claims(json!({ "nested": { "sub": "x" } })).is_ok());
    }

    #[test]
    fn nul_is_refused_at_any_depth() {
        for value in [
            json!({ "\0": 1 }),
            json!({ "a": "\0" }),
            json!({ "a": [{ "b\0": 1 }] }),
            json!({ "a": [["\0"]] }),
        ] {
            assert_eq!(claims(value), Err(ObjectError::Nul.into()));
        }
        assert!(claims(json!({ "a": "\u{1}" })).is_ok());
    }

    #[test]
    fn integers_from_two_to_the_53rd_on_are_found_at_any_depth() {
        let requested = |value: Value| {
            let Value::Object(map) = value else { panic!("an object") };
            CustomClaims::requested(map)
        };
        for (value, path) in [
            (json!({ "id": 9_007_199_254_740_993_i64 }), "id"),
            (json!({ "id": 9_007_199_254_740_992_i64 }), "id"),
            (json!({ "id": -9_007_199_254_740_992_i64 }), "id"),
            (json!({ "id": u64::MAX }), "id"),
            (json!({ "id": i64::MIN }), "id"),
            (json!({ "id": 1e300 }), "id"),
            (json!({ "a": [0, [1e16]] }), "a[1][0]"),
            (json!({ "a": { "b": [{ "c": 1e16 }] } }), "a.b[0].c"),
            (json!({ "x".repeat(100): 1e16 }), &*"x".repeat(64)),
        ] {
            assert_eq!(
                requested(value.clone()),
                Err(ObjectError::LargeInteger(path.to_owned()).into())
            );
            assert!(claims(value).is_ok(), "older versions have stored such integers");
        }
        for value in
            [json!(9_007_199_254_740_991_i64), json!(-9_007_199_254_740_991_i64), json!(0.1)]
        {
            assert!(requested(json!({ "id": value })).is_ok());
        }
        assert!(requested(json!({ "id": "9007199254740993" })).is_ok());
    }

    #[test]
    fn the_size_limit_counts_the_json_text() {
        let overhead = json!({ "k": "" }).to_string().len();
        assert!(claims(json!({ "k": "x".repeat(MAX_CUSTOM_BYTES - overhead) })).is_ok());
        assert_eq!(
            claims(json!({ "k": "x".repeat(MAX_CUSTOM_BYTES - overhead + 1) })),
            Err(ObjectError::TooLong { bytes: MAX_CUSTOM_BYTES + 1, limit: MAX_CUSTOM_BYTES }
                .into())
        );
    }
}
