//! Issuing a pair of tokens for a session.

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

/// A session and the tokens that its client uses from now on.
#[derive(Debug)]
pub struct Issued {
    /// The session.
    pub session: Session,
    /// Its tokens.
    pub tokens: Tokens,
    /// The instant for which the session is shown.
    pub now: Timestamp,
}

/// A pair of tokens.
pub struct Tokens {
    /// The access token.
    pub access_token: String,
    /// When it expires, in whole seconds.
    pub access_token_expires_at: Timestamp,
    /// The refresh token.
    pub refresh_token: String,
    /// When it expires unless it is used.
    pub refresh_token_expires_at: Timestamp,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Authority {
    /// Issues tokens for a session as it stands. The access token says that it was issued at
    /// `issued_at`.
    pub(super) fn issue(
        &self,
        session: &Session,
        token_id: TokenId,
        issued_at: Timestamp,
        scopes: &[Scope],
    ) -> Result<Tokens, AuthorityError> {
        let scopes = if scopes.is_empty() { &session.scopes } else { scopes };
        // A session keeps its policy, but the limit for all tokens may have been lowered since: a
        // token beyond it would not validate.
        let longest =
            issued_at.floor_to_second().plus(self.settings.max_access_token_ttl).floor_to_second();
        let expires_at =
            session.policy.access_token_expiry(issued_at, session.idle_expires_at).min(longest);
        let claims = AccessClaims {
            issuer: self.settings.issuer.clone(),
            session_id: session.id,
            token_id,
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
        let Some(refresh_key) = ring.refresh(session.lineage.key) else {
            let (session, key) = (session.id, session.lineage.key);
            tracing::warn!(%session, %key, "the refresh key of a session was revoked");
            return Err(AuthorityError::RefreshTokenInvalid);
        };
        Ok(Tokens {
            access_token,
            access_token_expires_at: expires_at,
            refresh_token: refresh::issue(session.id, &session.lineage, refresh_key),
            refresh_token_expires_at: session.idle_expires_at,
        })
    }

    /// Issues the current tokens of a session once more: the same refresh token, and an access
    /// token.
    ///
    /// Where a refresh revokes the access token before it, there must be only one to revoke: so the
    /// same one is repeated, with the `jti` that stands in the row. Elsewhere it is a fresh one.
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

/// Refuses a session that does not live.
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
