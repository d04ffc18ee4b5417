//! Validate.

use countersign::proto::InactiveReason::{self, *};

use super::{AccessToken, Micros, Model, Scopes, exceeds};

/// The demands on a token. 0 demands nothing.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// True to demand an audience that no token has.
    pub foreign_audience: bool,
    pub scopes: Scopes,
    /// A value of `acr` that the token must have.
    pub acr: Option<u8>,
    pub max_age: Option<Micros>,
    pub factors: Vec<Factor>,
}

/// A demand for a method.
#[derive(Clone, Debug)]
pub struct Factor {
    pub method: u8,
    pub max_age: Option<Micros>,
}

impl Factor {
    /// Returns whether a token meets the demand. A method without a time is never recent.
    fn is_met_by(&self, token: &AccessToken, now: Micros) -> bool {
        let verified_at = token.verified_at.get(usize::from(self.method)).copied().flatten();
        let is_recent = |age| verified_at.is_some_and(|at| now - at <= age);
        self.method < token.amr && self.max_age.is_none_or(is_recent)
    }
}

impl Model {
    /// Validate, with the reason if the token is inactive.
    pub fn validate(&self, token: &AccessToken, demands: &Demands) -> Result<(), InactiveReason> {
        let session = &self.sessions[token.session];
        let is_revoked = session.ended.is_some()
            || session.authentication != token.authentication
            || self.revoked_tokens.contains(&token.id);
        let is_too_old = |age| self.now - token.authenticated_at > age;
        let is_missing = |factor: &Factor| !factor.is_met_by(token, self.now);
        for (holds, reason) in [
            (self.now >= token.expires_at, Expired),
            (is_revoked, Revoked),
            (demands.foreign_audience, WrongAudience),
            (exceeds(demands.scopes, token.scopes), InsufficientScope),
            (demands.acr.is_some_and(|acr| acr != token.acr), StepUpRequired),
            (demands.max_age.is_some_and(is_too_old), StepUpRequired),
            (demands.factors.iter().any(is_missing), StepUpRequired),
        ] {
            if holds {
                return Err(reason);
            }
        }
        Ok(())
    }
}
