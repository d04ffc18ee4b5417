//! Answers gateways that ask whether a request may pass, and who sends it.
//!
//! The decision is made in the same way for all kinds of gateways: [`credential`] finds the token,
//! and [`demands`] reads the demands of the route. If the request may pass, [`identity`] makes the
//! headers that tell the application who sends it. Otherwise [`denial`] tells the client why it may
//! not pass.

pub mod demands;
pub mod denial;
pub mod identity;
pub mod outcomes;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use http::{HeaderName, HeaderValue};

use self::{
    credential::{Credential, Found},
    demands::{Demands, DemandsError, Factor},
    denial::Denial,
    identity::IdentityHeaders,
    outcomes::{Kind, Outcomes},
};
use crate::{
    authority::{Authority, error::AuthorityError, validate::Question},
    domain::caller::Actor,
};

pub use crate::domain::{bearer, credential};

/// The settings of the answers to gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The name of the cookie that may hold the access token instead of `authorization: Bearer`;
    /// `None` if cookies are ignored.
    pub cookie: Option<String>,
    /// The headers that tell the application who sends a request.
    pub headers: IdentityHeaders,
    /// The maximum size of each of these headers, in bytes.
    pub max_header_bytes: usize,
    /// True if the token is to be removed from a request that passes. This is done only for
    /// gateways whose protocol allows it.
    pub remove_credential: bool,
}

/// A request that may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// The headers that tell the application who sends the request. A header whose value is `None`
    /// must be removed from the request, because the client may have sent it.
    pub identity: Vec<(&'a HeaderName, Option<HeaderValue>)>,
    /// The place where the token was found.
    pub found: Found,
}

/// The decision about a request.
#[derive(Debug)]
#[must_use]
pub enum Decision<'a> {
    /// The request may pass.
    Passed(Passed<'a>),
    /// The request may not pass.
    Denied(Denial),
    /// No decision can be made now.
    Unavailable(AuthorityError),
}

impl Decision<'_> {
    /// Returns the name of the outcome in metrics.
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Passed(_) => outcomes::PASSED,
            Self::Denied(denial) => denial.as_str(),
            Self::Unavailable(_) => outcomes::UNAVAILABLE,
        }
    }
}

/// Decides for gateways whether requests may pass.
#[derive(Debug)]
pub struct Gateway {
    settings: ArcSwap<Settings>,
    outcomes: Arc<Outcomes>,
}

impl Gateway {
    /// Creates a gateway with these settings. It counts its decisions in `outcomes`.
    pub fn new(settings: Settings, outcomes: Arc<Outcomes>) -> Self {
        Self { settings: ArcSwap::from_pointee(settings), outcomes }
    }

    /// Returns the settings in force. A request reads them once, so that it sees one version of
    /// them.
    pub fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Replaces the settings. Requests that have begun continue with the earlier ones.
    pub fn replace_settings(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Decides whether a request may pass that has this credential and these demands, and counts the
    /// outcome.
    pub async fn authorize<'a>(
        &self,
        kind: Kind,
        authority: &Authority,
        by: &Actor,
        settings: &'a Settings,
        asked: (Credential<'_>, Result<Demands, DemandsError>),
    ) -> Decision<'a> {
        let (credential, demands) = asked;
        let decision = settings.decide(authority, by, credential, demands).await;
        self.outcomes.count(kind, decision.as_str());
        decision
    }
}

impl Settings {
    async fn decide(
        &self,
        authority: &Authority,
        by: &Actor,
        credential: Credential<'_>,
        demands: Result<Demands, DemandsError>,
    ) -> Decision<'_> {
        let demands = match demands {
            Ok(demands) => demands,
            Err(error) => return Decision::Denied(Denial::Demands(error)),
        };
        let (token, found) = match credential {
            Credential::Token(token, found) => (token, found),
            Credential::None => return Decision::Denied(Denial::NoCredential(demands)),
            Credential::Several => return Decision::Denied(Denial::SeveralCredentials),
            Credential::ConflictingCookies => return Decision::Denied(Denial::ConflictingCookies),
        };
        let question = Question {
            access_token: token,
            audience: &demands.audience,
            scopes: &demands.scopes,
            acr_values: &demands.acr_values,
            max_authentication_age: demands.max_age,
            factors: demands.factors.iter().map(Factor::demand).collect(),
        };
        let answer = match authority.validation(by).validate(&question).await {
            Ok(answer) => answer,
            Err(error) => return Decision::Unavailable(error),
        };
        let token = match answer.outcome {
            Ok(token) => token,
            Err(reason) => return Decision::Denied(Denial::Inactive(reason, demands)),
        };
        match self.headers.of(&token.claims, self.max_header_bytes) {
            Ok(identity) => Decision::Passed(Passed { identity, found }),
            Err(error) => Decision::Denied(Denial::Identity(error)),
        }
    }
}
