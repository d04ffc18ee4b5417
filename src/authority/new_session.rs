//! The request for a session, as the use case takes it.

use std::time::Duration;

use crate::domain::{
    claims::CustomClaims,
    session::Device,
    text::{Acr, Amr, Audience, ClientId, PolicyName, RequestId, Scope, Subject, Tenant},
    time::Timestamp,
};

/// A request for a session: its subject, and the claims of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// The user who signed in.
    pub subject: Subject,
    /// The tenant that the user belongs to.
    pub tenant: Tenant,
    /// The OAuth client.
    pub client_id: ClientId,
    /// The audience of the tokens; empty for the default.
    pub audience: Vec<Audience>,
    /// The scopes granted.
    pub scopes: Vec<Scope>,
    /// Claims of the caller's own.
    pub claims: CustomClaims,
    /// Authentication context class.
    pub acr: Acr,
    /// Authentication methods.
    pub amr: Vec<Amr>,
    /// The instant at which the user authenticated; none for now.
    pub authenticated_at: Option<Timestamp>,
    /// The device, as the client tells it.
    pub device: Device,
    /// The policy of the session; none for the tenant's.
    pub policy: Option<PolicyName>,
    /// A shorter lifetime for access tokens.
    pub access_token_ttl: Option<Duration>,
    /// A shorter lifetime for the session.
    pub max_lifetime: Option<Duration>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}
