//! The decision whether an access token is active. The server makes it for its callers, and a client
//! that verifies tokens itself makes it for itself.

use std::{sync::Arc, time::Duration};

use crate::{
    access::{Expectations, MAX_BYTES, Unverified},
    claims::AccessClaims,
    factors::FactorDemand,
    inactive::InactiveReason,
    index::Index,
    keys::{Found, VerifyingKey, VerifyingKeys},
    lease::Held,
    reach::Reach,
    time::Timestamp,
    verified_cache::{TokenDigest, VerifiedCache, VerifiedToken},
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

/// The tolerated differences between clocks.
#[derive(Clone, Copy, Debug)]
pub struct ClockTolerance {
    /// The time by which the clock of an issuer may be ahead of the clock of a verifier.
    pub leeway: Duration,
    /// The time by which the clock of an issuer or a verifier may differ from the clock of the
    /// database; zero if there is only one process.
    pub max_clock_skew: Duration,
}

impl ClockTolerance {
    /// Returns the time by which `iat` and `nbf` of a token may be later than the clock. The token
    /// was signed by the service, so the clock that set them was within the skew that replicas may
    /// have.
    pub fn most_ahead(&self) -> Duration {
        self.leeway.max(self.max_clock_skew.saturating_mul(2))
    }
}

/// Checks the form and the signature of tokens, but neither the time nor revocations.
pub struct Authenticator<'a, K> {
    /// The requirements that the claims of every token must meet.
    pub expected: Expectations<'a>,
    /// The keys.
    pub keys: &'a K,
    /// The tokens whose signature has been verified.
    pub cache: &'a VerifiedCache,
}

impl<K: VerifyingKeys> Authenticator<'_, K> {
    /// Checks the form of a token, and checks its signature with the key that the token names.
    pub fn authenticate(&self, token: &str) -> Result<Arc<VerifiedToken>, InactiveReason> {
        if token.len() > MAX_BYTES {
            return Err(InactiveReason::Malformed);
        }
        let digest = TokenDigest::of(token);
        if let Some(known) = self.cache.get(&digest) {
            usable(self.keys.verifying(&known.kid))?;
            // The expectations may have changed since the token was verified.
            self.expected.check_lifetime(&known.claims)?;
            return Ok(known);
        }
        let unverified = Unverified::parse(token)?;
        let key = usable(self.keys.verifying(&unverified.kid))?;
        let claims = unverified.verify(key, &self.expected)?;
        let verified = Arc::new(VerifiedToken { kid: unverified.kid, claims });
        self.cache.insert(digest, verified.clone());
        Ok(verified)
    }
}

/// Everything that decides whether a token is active.
pub struct Verifier<'a, K> {
    /// Checks the form and the signature.
    pub authenticator: Authenticator<'a, K>,
    /// The revocations.
    pub index: &'a Index,
    /// The tenants and audiences that the caller is limited to.
    pub reach: &'a Reach,
    /// The tolerance for clocks.
    pub clocks: ClockTolerance,
}

impl<K: VerifyingKeys> Verifier<'_, K> {
    /// Answers a question under `held`, the lease that was loaded before this call. `check` returns
    /// the time if that lease is still valid. It is called after the look-up, and if it returns
    /// `None`, there is no answer.
    pub fn answer(
        &self,
        question: &Question<'_>,
        held: Held,
        check: impl FnOnce(Held) -> Option<Timestamp>,
    ) -> Option<Answer> {
        let authenticated = self.authenticator.authenticate(question.access_token);
        let looked_up = authenticated.map(|token| {
            let is_revoked = self.is_revoked(&token.claims);
            (token, is_revoked)
        });
        // The time is read after the look-up. If an entry was dropped from the index before the
        // look-up, all its tokens have expired, so the check of the time refuses them.
        let checked_at = check(held)?;
        let outcome = looked_up.and_then(|(token, is_revoked)| {
            if !self.reach.has_tenant(&token.claims.tenant) {
                return Err(InactiveReason::ForeignTenant);
            }
            self.check_time(&token.claims, checked_at)?;
            if is_revoked {
                return Err(InactiveReason::Revoked);
            }
            if !token.claims.audience.iter().any(|audience| self.reach.has_audience(audience)) {
                return Err(InactiveReason::WrongAudience);
            }
            check_demands(&token.claims, question, checked_at)?;
            Ok(token)
        });
        Some(Answer { outcome, checked_at })
    }

    fn check_time(&self, claims: &AccessClaims, now: Timestamp) -> Result<(), InactiveReason> {
        if now >= claims.expires_at || self.index.is_below_purge_watermark(claims.expires_at) {
            return Err(InactiveReason::Expired);
        }
        // A token that was issued by a replica whose clock is ahead must be valid at once. So this
        // check allows for differences between clocks, and no other check does.
        let begins = claims
            .not_before
            .map_or(claims.issued_at, |not_before| not_before.max(claims.issued_at));
        if begins > now.plus(self.clocks.most_ahead()) {
            return Err(InactiveReason::NotYetValid);
        }
        Ok(())
    }

    fn is_revoked(&self, claims: &AccessClaims) -> bool {
        self.index.stops(&claims.into(), claims.token_id, claims.authentication_id)
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

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
