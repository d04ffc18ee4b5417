//! Answers gateways that ask about a request: whether it may pass, and who sends it.
//!
//! One judgement for all kinds of gateways: [`credential`] finds the token, [`demands`] reads what
//! the route asks for, [`identity`] tells the application who it is, [`denial`] tells the client
//! why not.

pub mod bearer;
pub mod credential;
pub mod demands;
pub mod denial;
pub mod identity;
pub mod outcomes;

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use self::{
    credential::{Credential, Found},
    demands::{Demands, DemandsError},
    denial::Denial,
    identity::IdentityHeaders,
    outcomes::{Kind, Outcomes},
};
use crate::{
    authority::{Authority, error::AuthorityError, validate::Question},
    domain::caller::Actor,
};

/// The settings of the answers to gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The cookie that carries the access token where there is no `authorization: Bearer`; `None`
    /// if no cookie counts.
    pub cookie: Option<String>,
    /// The headers that tell the application who sends a request.
    pub headers: IdentityHeaders,
    /// Most bytes in one of these headers.
    pub max_header_bytes: usize,
    /// Set if the token is removed from a request that passes, where the gateway leaves that to us.
    pub remove_credential: bool,
}

/// A request passes: the headers that tell who sends it, each with its value if it has one. A
/// header without a value must be removed, because the client may have sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// The headers.
    pub identity: Vec<(&'a HeaderName, Option<HeaderValue>)>,
    /// The place where the token was found.
    pub found: Found,
}

/// Decides about requests for gateways.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    outcomes: Arc<Outcomes>,
}

impl Gateway {
    /// Creates it with these settings. It counts into `outcomes`.
    pub fn new(settings: Settings, outcomes: Arc<Outcomes>) -> Self {
        Self { settings, outcomes }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Decides whether a request may pass, and counts the outcome. Fails only if that cannot be
    /// known now.
    pub async fn authorize(
        &self,
        kind: Kind,
        authority: &Authority,
        by: &Actor,
        credential: Credential<'_>,
        demands: Result<Demands, DemandsError>,
    ) -> Result<Result<Passed<'_>, Denial>, AuthorityError> {
        let decision = self.decide(authority, by, credential, demands).await;
        self.outcomes.count(
            kind,
            match &decision {
                Ok(Ok(_)) => outcomes::PASSED,
                Ok(Err(denial)) => denial.as_str(),
                Err(_) => outcomes::UNAVAILABLE,
            },
        );
        decision
    }

    async fn decide(
        &self,
        authority: &Authority,
        by: &Actor,
        credential: Credential<'_>,
        demands: Result<Demands, DemandsError>,
    ) -> Result<Result<Passed<'_>, Denial>, AuthorityError> {
        let demands = match demands {
            Ok(demands) => demands,
            Err(error) => return Ok(Err(Denial::Demands(error))),
        };
        let (token, found) = match credential {
            Credential::Token(token, found) => (token, found),
            Credential::None => return Ok(Err(Denial::NoCredential(demands))),
            Credential::Several => return Ok(Err(Denial::SeveralCredentials)),
            Credential::ConflictingCookies => return Ok(Err(Denial::ConflictingCookies)),
        };
        let question = Question {
            access_token: token,
            audience: &demands.audience,
            scopes: &demands.scopes,
            acr_values: &demands.acr_values,
            max_authentication_age: demands.max_age,
        };
        let token = match authority.validation(by).validate(&question).await?.outcome {
            Ok(token) => token,
            Err(reason) => return Ok(Err(Denial::Inactive(reason, demands))),
        };
        Ok(self
            .settings
            .headers
            .of(&token.claims, self.settings.max_header_bytes)
            .map(|identity| Passed { identity, found })
            .map_err(Denial::Identity))
    }
}
