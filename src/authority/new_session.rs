//! The input of CreateSession.

use std::time::Duration;

use crate::domain::{
    claims::CustomClaims,
    factors::FactorTimes,
    metadata::Metadata,
    session::Device,
    text::{Acr, Amr, Audience, ClientId, PolicyName, RequestId, Scope, Subject, Tenant},
    time::Timestamp,
};

/// A request for a session, with its subject and the claims of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// The user who signed in.
    pub subject: Subject,
    /// The tenant that the user belongs to.
    pub tenant: Tenant,
    /// The OAuth client.
    pub client_id: ClientId,
    /// The audience of the tokens; empty for the default audience.
    pub audience: Vec<Audience>,
    /// The scopes granted.
    pub scopes: Vec<Scope>,
    /// The custom claims.
    pub claims: CustomClaims,
    /// Data of the caller that are kept with the session.
    pub metadata: Metadata,
    /// The authentication context class reference.
    pub acr: Acr,
    /// The authentication methods references.
    pub amr: Vec<Amr>,
    /// The times at which the methods were verified, as far as the caller gave them.
    pub amr_verified_at: FactorTimes,
    /// The instant at which the user authenticated, or `None` if the user authenticated just now.
    pub authenticated_at: Option<Timestamp>,
    /// The device, as the caller describes it.
    pub device: Device,
    /// The policy of the session, or `None` for the one that the rules of its client and tenant
    /// choose.
    pub policy: Option<PolicyName>,
    /// A lifetime for access tokens, at most the lifetime that the policy sets.
    pub access_token_ttl: Option<Duration>,
    /// A lifetime for the session, at most the lifetime that the policy sets.
    pub max_lifetime: Option<Duration>,
    /// The idempotency key.
    pub request_id: Option<RequestId>,
}
