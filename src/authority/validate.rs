//! Validate: whether an access token is good now. The hot path: no database, no lock that all calls
//! share.

use std::{sync::Arc, time::Duration};

use super::{Authority, error::AuthorityError};
use crate::{
    domain::{
        caller::{Actor, Reach},
        claims::AccessClaims,
        time::Timestamp,
    },
    keys::ring::{Found, VerifyingKey},
    mutants::broken,
    revocation::lease::Held,
    token::{
        access::{MAX_BYTES, Rejection, Unverified},
        verified_cache::{TokenDigest, VerifiedToken},
    },
};

/// A token, and what the caller demands of it. Borrowed, so that asking costs nothing.
pub struct Question<'a> {
    /// The access token.
    pub access_token: &'a str,
    /// It must be meant for this audience; empty demands nothing.
    pub audience: &'a str,
    /// It must carry each of these scopes.
    pub scopes: &'a [String],
    /// Its acr must be one of these; empty demands nothing.
    pub acr_values: &'a [String],
    /// The user must have authenticated within this time.
    pub max_authentication_age: Option<Duration>,
}

/// The answer, for one instant.
#[derive(Debug)]
pub struct Answer {
    /// What is said of the token, or why it is inactive.
    pub outcome: Result<Arc<VerifiedToken>, InactiveReason>,
    /// The instant for which this holds.
    pub checked_at: Timestamp,
}

/// Why a token is inactive. If several reasons apply, the order is: form and signature, tenant,
/// time, revocation, audience and demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InactiveReason {
    /// Not a JWT of the form that this service issues.
    Malformed,
    /// Not signed by the named key.
    BadSignature,
    /// The named key is not in the ring.
    UnknownKey,
    /// Not an access token.
    WrongType,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Of another issuer.
    WrongIssuer,
    /// Not meant for the demanded audience.
    WrongAudience,
    /// A demanded scope is missing.
    InsufficientScope,
    /// Authentication too weak or too old for the demand.
    StepUpRequired,
    /// Stopped by the blacklist, or its key has been revoked.
    Revoked,
    /// Of a tenant that the caller may not see.
    ForeignTenant,
}

impl InactiveReason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::BadSignature,
        Self::UnknownKey,
        Self::WrongType,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::InsufficientScope,
        Self::StepUpRequired,
        Self::Revoked,
        Self::ForeignTenant,
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::WrongType => "wrong_type",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::InsufficientScope => "insufficient_scope",
            Self::StepUpRequired => "step_up_required",
            Self::Revoked => "revoked",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

impl From<Rejection> for InactiveReason {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Malformed => Self::Malformed,
            Rejection::WrongType => Self::WrongType,
            Rejection::BadSignature => Self::BadSignature,
            Rejection::WrongIssuer => Self::WrongIssuer,
        }
    }
}

/// The tokens of one call being validated.
pub struct Validation<'a> {
    authority: &'a Authority,
    /// What the caller may see.
    reach: &'a Reach,
    /// Set once a renewal has been waited for, which was sent after the call came: the rest needs
    /// no lease.
    renewed: Option<Held>,
}

impl Validation<'_> {
    /// Validates a token: at once under the lease, or, if there is none, after a renewal. Fails
    /// only if that does not come.
    pub async fn validate(&mut self, question: &Question<'_>) -> Result<Answer, AuthorityError> {
        let replica = &self.authority.replica;
        let held = self.renewed.unwrap_or_else(|| replica.lease().load());
        if let Some(answer) = self.authority.answer_under(self.reach, question, held) {
            return Ok(answer);
        }
        let held = replica.renewed().await.map_err(|_| AuthorityError::NotCurrent)?;
        self.renewed = Some(held);
        self.authority.answer_under(self.reach, question, held).ok_or(AuthorityError::NotCurrent)
    }
}

impl Authority {
    /// Begins to validate the tokens of one call.
    pub fn validation<'a>(&'a self, by: &'a Actor) -> Validation<'a> {
        Validation { authority: self, reach: by.reach(), renewed: None }
    }

    /// Answers under a lease that was loaded before. None if it has ended meanwhile.
    fn answer_under(&self, reach: &Reach, question: &Question<'_>, held: Held) -> Option<Answer> {
        let looked_up = self.authenticate(question.access_token).map(|token| {
            let revocation = self.check_revocation(&token.claims);
            (token, revocation)
        });
        // After the look-up: an entry that is dropped in between, because its token must have
        // expired, is one that the check of the time knows of.
        let checked_at = self.replica.check(held)?;
        let outcome = looked_up.and_then(|(token, revocation)| {
            if !reach.has_tenant(&token.claims.tenant) {
                return Err(InactiveReason::ForeignTenant);
            }
            self.check_time(&token.claims, checked_at)?;
            revocation?;
            if !token.claims.audience.iter().any(|audience| reach.has_audience(audience)) {
                return Err(InactiveReason::WrongAudience);
            }
            check_demands(&token.claims, question, checked_at)?;
            Ok(token)
        });
        Some(Answer { outcome, checked_at })
    }

    /// A token with a good signature of a key in the ring, whatever its time and session.
    pub(super) fn authenticate(&self, token: &str) -> Result<Arc<VerifiedToken>, InactiveReason> {
        if token.len() > MAX_BYTES {
            return Err(InactiveReason::Malformed);
        }
        let digest = TokenDigest::of(token);
        let ring = self.keeper.ring();
        if let Some(known) = self.verified.get(&digest) {
            usable(ring.verifying(&known.kid))?;
            return Ok(known);
        }
        let unverified = Unverified::parse(token)?;
        let key = usable(ring.verifying(&unverified.kid))?;
        let claims = unverified.verify(key.algorithm, &key.decoding, &self.expectations)?;
        let verified = Arc::new(VerifiedToken { kid: unverified.kid, claims });
        self.verified.insert(digest, verified.clone());
        Ok(verified)
    }

    fn check_time(&self, claims: &AccessClaims, now: Timestamp) -> Result<(), InactiveReason> {
        if now >= claims.expires_at
            || (self.replica.index().is_below_purge_watermark(claims.expires_at)
                && !broken("purge-at-expiry"))
        {
            return Err(InactiveReason::Expired);
        }
        // Only here clocks may differ: a token of a replica whose clock is ahead must be good at
        // once. The signature is ours, so no clock that made it was further off than any replica's
        // may be.
        let begins = claims
            .not_before
            .map_or(claims.issued_at, |not_before| not_before.max(claims.issued_at));
        let ahead = self.settings.leeway.max(self.settings.max_clock_skew.saturating_mul(2));
        if begins > now.plus(ahead) {
            return Err(InactiveReason::NotYetValid);
        }
        Ok(())
    }

    fn check_revocation(&self, claims: &AccessClaims) -> Result<(), InactiveReason> {
        if self.replica.index().stops(
            claims.session_id,
            claims.token_id,
            &claims.tenant,
            &claims.subject,
        ) {
            return Err(InactiveReason::Revoked);
        }
        Ok(())
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
    Ok(())
}
