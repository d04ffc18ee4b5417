//! Validate: decides whether an access token is valid now. This is the hot path, so it uses neither
//! the database nor a lock that all calls share. The decision itself is made by the crate
//! `countersign-verification`.

use std::sync::Arc;

use countersign_verification::validate::{Authenticator, ClockTolerance, Verifier};

pub use countersign_verification::validate::{Answer, Question};

use super::{Authority, Settings, error::AuthorityError};
use crate::{
    domain::{
        caller::{Actor, Reach},
        inactive::InactiveReason,
    },
    instruments::times::{Part, part},
    keys::ring::KeyRing,
    revocation::lease::Held,
    token::{access::Expectations, verified_cache::VerifiedToken},
};

/// The validation of the tokens of one call.
pub struct Validation<'a> {
    authority: &'a Authority,
    /// The tenants and audiences that the caller is limited to.
    reach: &'a Reach,
    /// The result of a renewal that was sent after the call arrived, if the call had to wait for
    /// one. The remaining tokens of the call then need no other lease.
    renewed: Option<Held>,
}

impl Validation<'_> {
    /// Validates a token. If there is no lease, waits for a renewal first. Fails only if the
    /// renewal fails.
    pub async fn validate(&mut self, question: &Question<'_>) -> Result<Answer, AuthorityError> {
        let replica = &self.authority.replica;
        let held = self.renewed.unwrap_or_else(|| replica.lease().load());
        if let Some(answer) = self.authority.answer_under(self.reach, question, held) {
            return Ok(answer);
        }
        let held =
            part(Part::Renewal, replica.renewed()).await.map_err(|_| AuthorityError::NotCurrent)?;
        self.renewed = Some(held);
        self.authority.answer_under(self.reach, question, held).ok_or(AuthorityError::NotCurrent)
    }
}

impl Authority {
    /// Starts the validation of the tokens of one call.
    pub fn validation<'a>(&'a self, by: &'a Actor) -> Validation<'a> {
        Validation { authority: self, reach: by.reach(), renewed: None }
    }

    /// Validates a token under a lease that was loaded before this call. Returns `None` if the
    /// lease has ended meanwhile.
    fn answer_under(&self, reach: &Reach, question: &Question<'_>, held: Held) -> Option<Answer> {
        let settings = self.settings.load();
        let ring = self.keeper.ring();
        let verifier = Verifier {
            authenticator: self.authenticator(&settings, &ring),
            index: self.replica.index(),
            reach,
            clocks: ClockTolerance {
                leeway: settings.leeway,
                max_clock_skew: settings.max_clock_skew,
            },
        };
        let answer = verifier.answer(question, held, |held| self.replica.check(held))?;
        self.counts.validations.count(answer.outcome.as_ref().err().copied());
        Some(answer)
    }

    /// Checks the form of a token, and checks its signature with the key that the token names.
    /// Checks neither the time nor revocations.
    pub(super) fn authenticate(&self, token: &str) -> Result<Arc<VerifiedToken>, InactiveReason> {
        self.authenticator(&self.settings.load(), &self.keeper.ring()).authenticate(token)
    }

    fn authenticator<'a>(
        &'a self,
        settings: &'a Settings,
        ring: &'a KeyRing,
    ) -> Authenticator<'a, KeyRing> {
        let expected =
            Expectations { issuer: &settings.issuer, max_ttl: settings.max_access_token_ttl };
        Authenticator { expected, keys: ring, cache: &self.verified }
    }
}
