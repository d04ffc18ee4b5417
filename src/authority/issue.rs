//! Issues a pair of tokens for a session.

use std::fmt;

use super::{Authority, error::AuthorityError, no_key};
use crate::{
    domain::{
        claims::AccessClaims,
        ids::TokenId,
        policy::OnRefresh,
        session::{EndReason, Session, State},
        text::Scope,
        time::Timestamp,
    },
    token::{
        access::{self, MAX_BYTES, Signer},
        refresh,
    },
};

/// A session and its newly issued tokens.
#[derive(Debug)]
pub struct Issued {
    /// The session.
    pub session: Session,
    /// The tokens.
    pub tokens: Tokens,
    /// The response shows the state that the session has at this instant.
    pub now: Timestamp,
}

/// A pair of tokens.
pub struct Tokens {
    /// The access token.
    pub access_token: String,
    /// The instant at which the access token expires, in whole seconds.
    pub access_token_expires_at: Timestamp,
    /// The refresh token.
    pub refresh_token: String,
    /// The instant at which the refresh token expires unless it is used before.
    pub refresh_token_expires_at: Timestamp,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Authority {
    /// Issues tokens for the session, with the content that the caller passes. `issued_at` is the
    /// `iat` of the access token.
    pub(super) fn issue(
        &self,
        session: &Session,
        token_id: TokenId,
        issued_at: Timestamp,
        scopes: &[Scope],
    ) -> Result<Tokens, AuthorityError> {
        let (access_token, access_token_expires_at) =
            self.issue_access_token(session, token_id, issued_at, scopes)?;
        let ring = self.keeper.ring();
        let Some(refresh_key) = ring.refresh(session.lineage.key) else {
            let (session, key) = (session.id, session.lineage.key);
            tracing::warn!(%session, %key, "the refresh key of a session was revoked");
            return Err(AuthorityError::RefreshTokenInvalid);
        };
        Ok(Tokens {
            access_token,
            access_token_expires_at,
            refresh_token: refresh::issue(session.id, &session.lineage, refresh_key),
            refresh_token_expires_at: session.idle_expires_at,
        })
    }

    /// Issues an access token for the session. Also returns the instant at which it expires.
    pub(super) fn issue_access_token(
        &self,
        session: &Session,
        token_id: TokenId,
        issued_at: Timestamp,
        scopes: &[Scope],
    ) -> Result<(String, Timestamp), AuthorityError> {
        let scopes = if scopes.is_empty() { &session.scopes } else { scopes };
        // A session keeps its policy, but the configured limit for all access tokens may have been
        // lowered since the session was created. Validate would refuse a token with a lifetime
        // above the limit.
        let settings = self.settings.load();
        let longest =
            issued_at.floor_to_second().plus(settings.max_access_token_ttl).floor_to_second();
        let expires_at =
            session.policy.access_token_expiry(issued_at, session.idle_expires_at).min(longest);
        let claims = AccessClaims {
            issuer: settings.issuer.clone(),
            session_id: session.id,
            token_id,
            authentication_id: session.authentication.id,
            subject: session.subject.to_string(),
            tenant: session.tenant.to_string(),
            client_id: session.client_id.to_string(),
            audience: session.audience.iter().map(ToString::to_string).collect(),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            issued_at: issued_at.floor_to_second(),
            expires_at,
            not_before: None,
            authenticated_at: session.authentication.at.floor_to_second(),
            acr: session.authentication.acr.to_string(),
            amr: session.authentication.amr.iter().map(ToString::to_string).collect(),
            amr_verified_at: session
                .authentication
                .amr_verified_at
                .iter()
                .map(|(method, at)| (method.to_string(), at.floor_to_second()))
                .collect(),
            custom: session.claims.object().clone(),
        };
        let ring = self.keeper.ring();
        let key = ring.signing().ok_or_else(no_key)?;
        let algorithm = key.pair.algorithm().as_str();
        let signer =
            Signer { kid: &key.kid, algorithm, sign: |message: &[u8]| key.pair.sign(message) };
        let access_token = access::sign(&claims, signer)?;
        if access_token.len() > MAX_BYTES {
            let problem = format!(
                "together with audience and scopes make an access token of {} bytes, at most \
                 {MAX_BYTES} are allowed",
                access_token.len()
            );
            return Err(AuthorityError::field("claims", problem));
        }
        Ok((access_token, expires_at))
    }

    /// Issues the current refresh token of a session once more, with an access token.
    ///
    /// If the policy revokes the previous access token at each refresh, the next refresh revokes
    /// only the `jti` in the row. So the access token is issued again with that `jti`. Under other
    /// policies, the access token has a new `jti`.
    pub(super) fn issue_again(
        &self,
        session: &Session,
        now: Timestamp,
        scopes: &[Scope],
    ) -> Result<Tokens, AuthorityError> {
        match session.policy.on_refresh {
            OnRefresh::KeepAccessToken => {
                self.issue(session, TokenId::new(self.random()?), now, scopes)
            }
            OnRefresh::RevokeAccessToken => {
                self.issue(session, session.access_token_id, session.refreshed_at, scopes)
            }
        }
    }
}

/// Returns an error if the session is not live at `now`.
pub(super) fn require_live(session: &Session, now: Timestamp) -> Result<(), AuthorityError> {
    match session.state(now) {
        State::Live => Ok(()),
        State::Ended { reason: EndReason::ExpiredIdle, .. } => {
            Err(AuthorityError::SessionExpiredIdle)
        }
        State::Ended { reason: EndReason::ExpiredAbsolute, .. } => {
            Err(AuthorityError::SessionExpiredAbsolute)
        }
        State::Ended { .. } => Err(AuthorityError::SessionRevoked),
    }
}
