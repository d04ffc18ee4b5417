//! What gateways ask about requests that others have sent them: may this one pass, and who sends
//! it.
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

/// How gateways are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The cookie that carries the access token where there is no `authorization: Bearer`; none if
    /// only that counts.
    pub cookie: Option<String>,
    /// What the application is told, and in which headers.
    pub headers: IdentityHeaders,
    /// Most bytes that one of these may have.
    pub max_header_bytes: usize,
    /// Whether the token is taken away from a request that passes, where the gateway leaves that to
    /// us.
    pub remove_credential: bool,
}

/// What passes: each header that we answer for, with its value if it has one. What has none must be
/// taken away, because the client may have sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// The headers.
    pub identity: Vec<(&'a HeaderName, Option<HeaderValue>)>,
    /// Where the token was.
    pub found: Found,
}

/// Judges requests for gateways.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    outcomes: Arc<Outcomes>,
}

impl Gateway {
    /// Judges as configured, and counts.
    pub fn new(settings: Settings, outcomes: Arc<Outcomes>) -> Self {
        Self { settings, outcomes }
    }

    /// How gateways are answered.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether a request may pass. Fails only if that cannot be known now.
    pub async fn judge(
        &self,
        kind: Kind,
        authority: &Authority,
        by: &Actor,
        credential: Credential<'_>,
        demands: Result<Demands, DemandsError>,
    ) -> Result<Result<Passed<'_>, Denial>, AuthorityError> {
        let judged = self.verdict(authority, by, credential, demands).await;
        self.outcomes.count(
            kind,
            match &judged {
                Ok(Ok(_)) => outcomes::PASSED,
                Ok(Err(denial)) => denial.as_str(),
                Err(_) => outcomes::UNAVAILABLE,
            },
        );
        judged
    }

    async fn verdict(
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
        let token = match authority.validation(by).judge(&question).await?.outcome {
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
