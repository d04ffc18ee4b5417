//! What a session is created from.

use std::time::Duration;

use crate::domain::{
    claims::CustomClaims,
    session::Device,
    text::{Acr, Amr, Audience, ClientId, PolicyName, RequestId, Scope, Subject, Tenant},
    time::Timestamp,
};

/// Whom the session is for, and what its tokens say.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// Who signed in.
    pub subject: Subject,
    /// Where.
    pub tenant: Tenant,
    /// Through which client.
    pub client_id: ClientId,
    /// For whom the tokens are; empty for the default.
    pub audience: Vec<Audience>,
    /// What the tokens allow.
    pub scopes: Vec<Scope>,
    /// What else the tokens say.
    pub claims: CustomClaims,
    /// Authentication context class.
    pub acr: Acr,
    /// Authentication methods.
    pub amr: Vec<Amr>,
    /// When the user authenticated; none for now.
    pub authenticated_at: Option<Timestamp>,
    /// On which device.
    pub device: Device,
    /// Under which policy; none for the tenant's.
    pub policy: Option<PolicyName>,
    /// A shorter lifetime for access tokens.
    pub access_token_ttl: Option<Duration>,
    /// A shorter lifetime for the session.
    pub max_lifetime: Option<Duration>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}
