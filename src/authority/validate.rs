//! Validate: decides whether an access token is valid now. This is the hot path, so it uses neither
//! the database nor a lock that all calls share.

use std::{sync::Arc, time::Duration};

use super::{Authority, Settings, error::AuthorityError};
use crate::{
    domain::{
        caller::{Actor, Reach},
        claims::AccessClaims,
        factors::FactorDemand,
        inactive::InactiveReason,
        time::Timestamp,
    },
    instruments::times::{Part, part},
    keys::ring::{Found, VerifyingKey},
    revocation::lease::Held,
    token::{
        access::{Expectations, MAX_BYTES, Unverified},
        verified_cache::{TokenDigest, VerifiedToken},
    },
};

/// A token, and the caller's demands. Texts are borrowed, and few calls demand factors, so usually
/// nothing is allocated.
pub struct Question<'a> {
    /// The access token.
    pub access_token: &'a str,
    /// The demanded audience; empty for no demand.
    pub audience: &'a str,
    /// The demanded scopes. The token must have all of them.
    pub scopes: &'a [String],
    /// The accepted values of `acr`; empty for no demand.
    pub acr_values: &'a [String],
    /// The longest time since the user authenticated, or `None` for no demand.
    pub max_authentication_age: Option<Duration>,
    /// The demanded authentication methods. The token must meet all of these demands.
    pub factors: Vec<FactorDemand<'a>>,
}

/// The answer for one instant.
#[derive(Debug)]
pub struct Answer {
    /// The verified token, or the reason why it is inactive.
    pub outcome: Result<Arc<VerifiedToken>, InactiveReason>,
    /// The instant for which the outcome is valid.
    pub checked_at: Timestamp,
}

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
        let looked_up = self.authenticate_under(&settings, question.access_token).map(|token| {
            let is_revoked = self.is_revoked(&token.claims);
            (token, is_revoked)
        });
        // The time is read after the look-up. If an entry was dropped from the index before the
        // look-up, all its tokens have expired, so the check of the time refuses them.
        let checked_at = self.replica.check(held)?;
        let outcome = looked_up.and_then(|(token, is_revoked)| {
            if !reach.has_tenant(&token.claims.tenant) {
                return Err(InactiveReason::ForeignTenant);
            }
            self.check_time(&settings, &token.claims, checked_at)?;
            if is_revoked {
                return Err(InactiveReason::Revoked);
            }
            if !token.claims.audience.iter().any(|audience| reach.has_audience(audience)) {
                return Err(InactiveReason::WrongAudience);
            }
            check_demands(&token.claims, question, checked_at)?;
            Ok(token)
        });
        self.counts.validations.count(outcome.as_ref().err().copied());
        Some(Answer { outcome, checked_at })
    }

    /// Checks the form of a token, and checks its signature with the key that the token names.
    /// Checks neither the time nor revocations.
    pub(super) fn authenticate(&self, token: &str) -> Result<Arc<VerifiedToken>, InactiveReason> {
        self.authenticate_under(&self.settings.load(), token)
    }

    fn authenticate_under(
        &self,
        settings: &Settings,
        token: &str,
    ) -> Result<Arc<VerifiedToken>, InactiveReason> {
        let expected =
            Expectations { issuer: &settings.issuer, max_ttl: settings.max_access_token_ttl };
        if token.len() > MAX_BYTES {
            return Err(InactiveReason::Malformed);
        }
        let digest = TokenDigest::of(token);
        let ring = self.keeper.ring();
        if let Some(known) = self.verified.get(&digest) {
            usable(ring.verifying(&known.kid))?;
            // The settings may have changed since the token was verified.
            expected.check_lifetime(&known.claims)?;
            return Ok(known);
        }
        let unverified = Unverified::parse(token)?;
        let key = usable(ring.verifying(&unverified.kid))?;
        let claims = unverified.verify(key.algorithm, &key.decoding, &expected)?;
        let verified = Arc::new(VerifiedToken { kid: unverified.kid, claims });
        self.verified.insert(digest, verified.clone());
        Ok(verified)
    }

    fn check_time(
        &self,
        settings: &Settings,
        claims: &AccessClaims,
        now: Timestamp,
    ) -> Result<(), InactiveReason> {
        if now >= claims.expires_at
            || self.replica.index().is_below_purge_watermark(claims.expires_at)
        {
            return Err(InactiveReason::Expired);
        }
        // A token that was issued by a replica whose clock is ahead must be valid at once. So this
        // check allows for differences between clocks, and no other check does.
        let begins = claims
            .not_before
            .map_or(claims.issued_at, |not_before| not_before.max(claims.issued_at));
        if begins > now.plus(settings.most_ahead()) {
            return Err(InactiveReason::NotYetValid);
        }
        Ok(())
    }

    fn is_revoked(&self, claims: &AccessClaims) -> bool {
        self.replica.index().stops(&claims.into(), claims.token_id, claims.authentication_id)
    }
}

fn usable(found: Found<'_>) -> Result<&VerifyingKey, InactiveReason> {
    match found {
        Found::Good(key) => Ok(key),
        Found::Revoked => Err(InactiveReason::Revoked),
        Found::Unknown => Err(InactiveReason::UnknownKey),
    }
}

fn check_demands(
    claims: &AccessClaims,
    question: &Question<'_>,
    now: Timestamp,
) -> Result<(), InactiveReason> {
    if !question.audience.is_empty()
        && !claims.audience.iter().any(|audience| audience == question.audience)
    {
        return Err(InactiveReason::WrongAudience);
    }
    if !question.scopes.iter().all(|scope| claims.scopes.contains(scope)) {
        return Err(InactiveReason::InsufficientScope);
    }
    if !question.acr_values.is_empty() && !question.acr_values.contains(&claims.acr) {
        return Err(InactiveReason::StepUpRequired);
    }
    if question.max_authentication_age.is_some_and(|age| now.since(claims.authenticated_at) > age) {
        return Err(InactiveReason::StepUpRequired);
    }
    if !question.factors.iter().all(|factor| factor.is_met_by(claims, now)) {
        return Err(InactiveReason::StepUpRequired);
    }
    Ok(())
}
