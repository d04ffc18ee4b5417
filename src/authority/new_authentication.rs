//! The input of Reauthenticate.

use crate::domain::{
    claims::CustomClaims,
    factors::FactorTimes,
    ids::SessionId,
    session::Device,
    text::{Acr, Amr, RequestId, Scope},
    time::Timestamp,
};

/// The session that a caller names.
#[derive(Clone, PartialEq)]
pub enum NamedSession {
    /// By its identifier.
    Id(SessionId),
    /// By a refresh token.
    RefreshToken(String),
}

/// A request that records a new authentication of a session's user.
pub struct NewAuthentication {
    /// The session.
    pub session: NamedSession,
    /// The authentication context class reference.
    pub acr: Acr,
    /// The authentication methods references.
    pub amr: Vec<Amr>,
    /// The times at which the methods were verified, as far as the caller gave them.
    pub amr_verified_at: FactorTimes,
    /// The instant at which the user authenticated, or `None` if the user authenticated just now.
    pub authenticated_at: Option<Timestamp>,
    /// The new custom claims; none to keep those of the session.
    pub claims: Option<CustomClaims>,
    /// The new scopes; empty to keep those of the session.
    pub scopes: Vec<Scope>,
    /// The current data of the device, if the request has any.
    pub device: Option<Device>,
    /// True if the new `acr` may be weaker than that of the session.
    pub allow_weaker: bool,
    /// The idempotency key.
    pub request_id: Option<RequestId>,
}
