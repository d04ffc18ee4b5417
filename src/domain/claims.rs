//! What an access token says (RFC 9068, section 2.2), and which claims a session may add of its
//! own.

use std::{fmt, mem::size_of};

use serde_json::{Map, Value};

use super::{
    ids::{SessionId, TokenId},
    json_object::JsonObject,
    time::Timestamp,
};

/// Names that a session's own claims may not take, because the service or a standard gives them a
/// meaning.
pub const RESERVED: [&str; 20] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "client_id",
    "sid",
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

/// Most bytes that a session's own claims may have as JSON.
pub const MAX_CUSTOM_BYTES: usize = 4096;

/// A session's own claims: a JSON object of bounded size without reserved names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomClaims(JsonObject);

/// Why claims were refused. It prints as the end of a sentence that starts with the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// A name that only the service may set.
    #[error("may not set the reserved claim {0:?}")]
    Reserved(String),
    /// More bytes than allowed.
    #[error("has {0} bytes as JSON, at most {MAX_CUSTOM_BYTES} are allowed")]
    TooLong(usize),
    /// An integer that JSON numbers cannot tell from its neighbours. The text is where it stands.
    #[error(
        "holds an integer beyond 2^53 at {0}, which readers of JSON change to another one: send \
         it as a string"
    )]
    LargeInteger(String),
    /// A NUL character, which some databases cannot keep in a text.
    #[error("must not contain NUL characters")]
    Nul,
}

impl CustomClaims {
    /// The claims as a JSON object.
    pub fn object(&self) -> &JsonObject {
        &self.0
    }

    /// The claims as JSON text.
    pub fn to_json(&self) -> String {
        self.0.as_str().to_owned()
    }
}

/// Above this, integers may share one double, which is what most readers of JSON make of a number
/// (RFC 8259, section 6; RFC 7493, section 2.2). The first one beyond it is 2^53.
pub const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Longest path to an integer that is told; a longer one is cut.
const MAX_PATH_CHARS: usize = 64;

impl CustomClaims {
    /// Takes claims of a request, which must not hold integers that do not survive JSON. Claims
    /// that were stored before may hold them.
    pub fn requested(map: Map<String, Value>) -> Result<Self, ClaimsError> {
        let large = map.iter().find_map(|(name, value)| find_large_integer(name, value));
        let claims = Self::try_from(map)?;
        match large {
            Some(path) => Err(ClaimsError::LargeInteger(path)),
            None => Ok(claims),
        }
    }
}

/// Finds an integer in a claim that is too large to be told exactly, at any depth, and returns the
/// path to it.
pub fn find_large_integer(name: &str, value: &Value) -> Option<String> {
    // All floats from 2^53 on are whole.
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

impl TryFrom<Map<String, Value>> for CustomClaims {
    type Error = ClaimsError;

    fn try_from(map: Map<String, Value>) -> Result<Self, ClaimsError> {
        if let Some(name) = map.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(ClaimsError::Reserved(name.clone()));
        }
        if map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
            return Err(ClaimsError::Nul);
        }
        let object = JsonObject::from(&map);
        let length = object.as_str().len();
        if length > MAX_CUSTOM_BYTES {
            return Err(ClaimsError::TooLong(length));
        }
        Ok(Self(object))
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The content of an access token whose form is right. Instants have whole seconds, as the token
/// has.
#[derive(Clone, PartialEq)]
pub struct AccessClaims {
    /// `iss`: who issued it.
    pub issuer: String,
    /// `sid`: the session that it belongs to.
    pub session_id: SessionId,
    /// `jti`: the token itself.
    pub token_id: TokenId,
    /// `sub`.
    pub subject: String,
    /// `tenant`; empty if the token has none.
    pub tenant: String,
    /// `client_id`; empty if the token has none.
    pub client_id: String,
    /// `aud`, at least one.
    pub audience: Vec<String>,
    /// `scope`, split at its spaces.
    pub scopes: Vec<String>,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`: at this instant the token has expired.
    pub expires_at: Timestamp,
    /// `nbf`, if the token has one.
    pub not_before: Option<Timestamp>,
    /// `auth_time`: when the user authenticated.
    pub authenticated_at: Timestamp,
    /// `acr`; empty if the token has none.
    pub acr: String,
    /// `amr`.
    pub amr: Vec<String>,
    /// All other claims.
    pub custom: JsonObject,
}

impl AccessClaims {
    /// Bytes of memory that the claims take, with what an allocator adds to each allocation.
    pub fn memory(&self) -> usize {
        /// Up to an eighth of an allocation is lost to rounding, and a little more for small ones.
        fn allocation(bytes: usize) -> usize {
            if bytes == 0 { 0 } else { bytes + bytes / 8 + 8 }
        }
        fn list(texts: &Vec<String>) -> usize {
            let texts_bytes: usize = texts.iter().map(|text| allocation(text.capacity())).sum();
            allocation(texts.capacity() * size_of::<String>()) + texts_bytes
        }
        let texts = [&self.issuer, &self.subject, &self.tenant, &self.client_id, &self.acr];
        let texts: usize = texts.into_iter().map(|text| allocation(text.capacity())).sum();
        let lists: usize = [&self.audience, &self.scopes, &self.amr].into_iter().map(list).sum();
        size_of::<Self>() + texts + lists + allocation(self.custom.as_str().len())
    }
}

impl fmt::Debug for AccessClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session_id, token_id, .. } = self;
        f.debug_struct("AccessClaims")
            .field("session_id", session_id)
            .field("token_id", token_id)
            .finish_non_exhaustive()
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
    fn nul_is_refused_wherever_it_stands() {
        for value in [
            json!({ "\0": 1 }),
            json!({ "a": "\0" }),
            json!({ "a": [{ "b\0": 1 }] }),
            json!({ "a": [["\0"]] }),
        ] {
            assert_eq!(claims(value), Err(ClaimsError::Nul));
        }
        assert!(claims(json!({ "a": "\u{1}" })).is_ok());
    }

    #[test]
    fn integers_beyond_two_to_the_53rd_are_found_wherever_they_stand() {
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
            assert_eq!(requested(value.clone()), Err(ClaimsError::LargeInteger(path.to_owned())));
            assert!(claims(value).is_ok(), "older versions have stored such ones");
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
            Err(ClaimsError::TooLong(MAX_CUSTOM_BYTES + 1))
        );
    }
}
