//! The claims of an access token (RFC 9068, section 2.2), and the custom claims that a session may
//! add to them.

use std::{fmt, mem::size_of};

use serde_json::{Map, Value};

use super::{
    ids::{AuthenticationId, SessionId, TokenId},
    json_object::JsonObject,
    stored_object::{ObjectError, checked_object, find_large_integer},
    time::Timestamp,
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

/// The name of the claim with the identifier of a later authentication of the session's user. It
/// has a prefix, so that no existing session has a custom claim of this name.
pub const AUTHENTICATION_ID: &str = "countersign_authentication_id";

/// The name of the claim with the times at which authentication methods were verified: an object
/// that has the seconds since the epoch for each method.
pub const AMR_VERIFIED_AT: &str = "countersign_amr_verified_at";

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

/// The claims of a well-formed access token. Instants are in whole seconds, as in the token.
#[derive(Clone, PartialEq)]
pub struct AccessClaims {
    /// `iss`: the issuer.
    pub issuer: String,
    /// `sid`: the session that the token belongs to.
    pub session_id: SessionId,
    /// `jti`: the identifier of the token.
    pub token_id: TokenId,
    /// `countersign_authentication_id`: the authentication that the token rests on; none if it is
    /// the one with which the session was created.
    pub authentication_id: Option<AuthenticationId>,
    /// `sub`.
    pub subject: String,
    /// `tenant`; empty if the token has none.
    pub tenant: String,
    /// `client_id`; empty if the token has none.
    pub client_id: String,
    /// `aud`: at least one audience.
    pub audience: Vec<String>,
    /// `scope`, split at its spaces.
    pub scopes: Vec<String>,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`: at this instant the token has expired.
    pub expires_at: Timestamp,
    /// `nbf`, if the token has one.
    pub not_before: Option<Timestamp>,
    /// `auth_time`: the instant at which the user authenticated.
    pub authenticated_at: Timestamp,
    /// `acr`; empty if the token has none.
    pub acr: String,
    /// `amr`.
    pub amr: Vec<String>,
    /// `countersign_amr_verified_at`: methods, and the instants at which they were verified.
    pub amr_verified_at: Vec<(String, Timestamp)>,
    /// All other claims.
    pub custom: JsonObject,
}

impl AccessClaims {
    /// Estimates the memory that the claims take, in bytes, including the overhead of the
    /// allocator.
    pub fn memory(&self) -> usize {
        /// An allocator may round a size up by an eighth, and adds a few bytes to small
        /// allocations.
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
        let times = &self.amr_verified_at;
        let names: usize = times.iter().map(|(name, _)| allocation(name.capacity())).sum();
        let times = allocation(times.capacity() * size_of::<(String, Timestamp)>()) + names;
        size_of::<Self>() + texts + lists + times + allocation(self.custom.as_str().len())
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
