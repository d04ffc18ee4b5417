//! The claims of an access token (RFC 9068, section 2.2).

use std::{fmt, mem::size_of};

use crate::{
    ids::{AuthenticationId, SessionId, TokenId},
    json_object::JsonObject,
    time::Timestamp,
};

/// The name of the claim with the identifier of a later authentication of the session's user. It
/// has a prefix, so that no existing session has a custom claim of this name.
pub const AUTHENTICATION_ID: &str = "countersign_authentication_id";

/// The name of the claim with the times at which authentication methods were verified: an object
/// that has the seconds since the epoch for each method.
pub const AMR_VERIFIED_AT: &str = "countersign_amr_verified_at";

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
