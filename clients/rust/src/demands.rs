//! The demands that a route makes on a session.

use std::time::Duration;

use countersign_verification::{factors::FactorDemand, validate::Question};

use crate::proto;

/// The demands that a route makes on the session of a request. Without any, every live session
/// passes.
///
/// ```
/// # use std::time::Duration;
/// # use countersign_client::Demands;
/// let demands = Demands::new()
///     .audience("https://orders.example")
///     .scope("orders:write")
///     .max_authentication_age(Duration::from_secs(300))
///     .factor("hwk");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    pub(crate) audience: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) acr_values: Vec<String>,
    pub(crate) max_authentication_age: Option<Duration>,
    pub(crate) factors: Vec<Factor>,
}

/// A demand for an authentication method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    pub(crate) method: String,
    pub(crate) max_age: Option<Duration>,
}

impl Demands {
    /// Demands nothing but a live session.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token must be meant for this audience (`aud`). A service should always demand its own.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = audience.into();
        self
    }

    /// The token must carry this scope, besides the others that are demanded.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// The authentication context class (`acr`) must be one of these. A session that lacks it is
    /// asked to step up (RFC 9470).
    #[must_use]
    pub fn acr_values<T: Into<String>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.acr_values = values.into_iter().map(Into::into).collect();
        self
    }

    /// The user must have authenticated within this time. Otherwise the session is asked to step up
    /// (RFC 9470).
    #[must_use]
    pub fn max_authentication_age(mut self, age: Duration) -> Self {
        self.max_authentication_age = Some(age);
        self
    }

    /// The user must have used this authentication method (`amr`, RFC 8176).
    #[must_use]
    pub fn factor(mut self, method: impl Into<String>) -> Self {
        self.factors.push(Factor { method: method.into(), max_age: None });
        self
    }

    /// The user must have used this authentication method within this time.
    #[must_use]
    pub fn recent_factor(mut self, method: impl Into<String>, max_age: Duration) -> Self {
        self.factors.push(Factor { method: method.into(), max_age: Some(max_age) });
        self
    }

    /// Returns the shortest of the demanded times since an authentication.
    pub(crate) fn shortest_age(&self) -> Option<Duration> {
        let ages = self.factors.iter().filter_map(|factor| factor.max_age);
        ages.chain(self.max_authentication_age).min()
    }

    /// Asks these demands of a token.
    pub(crate) fn question<'a>(&'a self, access_token: &'a str) -> Question<'a> {
        let factors = self.factors.iter();
        Question {
            access_token,
            audience: &self.audience,
            scopes: &self.scopes,
            acr_values: &self.acr_values,
            max_authentication_age: self.max_authentication_age,
            factors: factors
                .map(|factor| FactorDemand { method: &factor.method, max_age: factor.max_age })
                .collect(),
        }
    }

    /// Asks the service the same.
    pub(crate) fn request(&self, access_token: &str) -> proto::ValidateRequest {
        let duration = |span: Duration| prost_types::Duration::try_from(span).ok();
        proto::ValidateRequest {
            access_token: access_token.to_owned(),
            audience: self.audience.clone(),
            scopes: self.scopes.clone(),
            acr_values: self.acr_values.clone(),
            max_authentication_age: self.max_authentication_age.and_then(duration),
            view: proto::ValidateView::Full.into(),
            factors: self
                .factors
                .iter()
                .map(|factor| proto::FactorDemand {
                    method: factor.method.clone(),
                    max_age: factor.max_age.and_then(duration),
                })
                .collect(),
            include_metadata: false,
        }
    }
}
