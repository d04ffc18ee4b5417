//! Metadata: data that callers keep with a session, and that no token carries.

use serde_json::{Map, Value};

use super::{
    claims::AccessClaims,
    ids::{AuthenticationId, SessionId, TokenId},
    json_object::JsonObject,
    policy::OnRefresh,
    stored_object::{ObjectError, checked_object, find_large_integer},
    time::Timestamp,
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

/// The metadata of a session, and the part of its row that may show that a token was revoked.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionMetadata {
    /// The session.
    pub session_id: SessionId,
    /// The metadata.
    pub metadata: Metadata,
    /// True if the session was ended before its expiry.
    pub is_ended: bool,
    /// The authentication that new access tokens rest on; none if it is the one with which the
    /// session was created.
    pub authentication_id: Option<AuthenticationId>,
    /// The only access token that is accepted, if there can be no other. It is none if a refresh
    /// keeps the previous token, or kept it before stricter limits reached the session.
    pub only_token: Option<TokenId>,
}

impl SessionMetadata {
    /// Returns the only access token of a session that is accepted, from the columns of its row.
    pub fn only_token(
        access_token_id: TokenId,
        on_refresh: OnRefresh,
        earlier_tokens_expire_at: Option<Timestamp>,
    ) -> Option<TokenId> {
        match (on_refresh, earlier_tokens_expire_at) {
            (OnRefresh::RevokeAccessToken, None) => Some(access_token_id),
            (OnRefresh::RevokeAccessToken, Some(_)) | (OnRefresh::KeepAccessToken, _) => None,
        }
    }

    /// Returns whether the row shows that a token of the session was revoked. The row may be ahead
    /// of the index in memory.
    pub fn stops(&self, token: &AccessClaims) -> bool {
        self.is_ended
            || self.authentication_id != token.authentication_id
            || self.only_token.is_some_and(|only| only != token.token_id)
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
