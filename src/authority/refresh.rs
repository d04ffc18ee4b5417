//! Refresh: exchanges a refresh token for the next pair of tokens.

use super::{
    Authority,
    error::AuthorityError,
    issue::Issued,
    note_session,
    refresh_token::{PresentedToken, end_error, never_issued, record_end},
};
use crate::{
    domain::{
        caller::Actor,
        ids::TokenId,
        refresh::{RefreshAttempt, RefreshRefusal},
        session::Device,
        text::Scope,
    },
    revocation::replica::Epoch,
    store::Refreshed,
};

/// A request to exchange a refresh token.
pub struct Exchange {
    /// The token.
    pub refresh_token: String,
    /// The scopes of the next access token; empty for all scopes of the session.
    pub scopes: Vec<Scope>,
    /// The current data of the device, if the request has any.
    pub device: Option<Device>,
}

/// The result of the exchange.
#[derive(Debug)]
pub struct Exchanged {
    /// The session and its tokens.
    pub issued: Issued,
    /// True if the previous refresh token was presented. Then this answer repeats an earlier one.
    pub replayed: bool,
}

impl Authority {
    /// Exchanges a refresh token. A token of this service without a valid MAC is refused without
    /// access to the database.
    pub async fn refresh(
        &self,
        by: &Actor,
        exchange: Exchange,
    ) -> Result<Exchanged, AuthorityError> {
        let token = self
            .read_refresh_token(&exchange.refresh_token)
            .await?
            .ok_or(AuthorityError::RefreshTokenInvalid)?;
        let PresentedToken { session_id, presented, is_legacy } = token;
        note_session(None, Some(session_id));
        self.ensure_current().await?;
        let now = self.clock.now();
        let scopes = exchange.scopes.clone();
        let attempt = RefreshAttempt {
            session_id,
            generation: presented.generation,
            secret: presented.secret,
            scopes: exchange.scopes,
            device: exchange.device,
            reach: by.reach().clone(),
            now,
            next_access_token_id: TokenId::new(self.random()?),
            next_key: self.refresh_key()?,
            live_policies: self.settings().live_policies.clone(),
        };
        let (epoch, refreshed) = self.exchange(attempt).await?;
        if let Refreshed::Rotated { session, .. }
        | Refreshed::Replayed { session, .. }
        | Refreshed::Ended { session, .. } = &refreshed
        {
            note_session(Some(&session.tenant), None);
        }
        match refreshed {
            Refreshed::Rotated { session, position } => {
                if is_legacy {
                    self.counts.legacy_exchanges.inc();
                }
                if let Some(superseded) = position {
                    self.wait_until_acknowledged(epoch, superseded).await?;
                }
                let tokens = self.issue(&session, session.access_token_id, now, &scopes)?;
                Ok(Exchanged { issued: Issued { session: *session, tokens, now }, replayed: false })
            }
            Refreshed::Replayed { session, position } => {
                if let Some(superseded) = position {
                    self.wait_until_acknowledged(epoch, superseded).await?;
                }
                let tokens = self.issue_again(&session, now, &scopes)?;
                Ok(Exchanged { issued: Issued { session: *session, tokens, now }, replayed: true })
            }
            Refreshed::Ended { session, position } => {
                record_end(&self.audit, by, now, &session, Some(presented.generation));
                self.wait_until_acknowledged(epoch, position).await?;
                Err(end_error(&session))
            }
            Refreshed::Refused(refusal) => Err(refused(refusal, &token)),
        }
    }

    /// Lets the database decide about the attempt, and returns the epoch in which the decision was
    /// made. A decision that rests only on reads must come from the current primary. If a failover
    /// has happened meanwhile, the new primary decides again.
    async fn exchange(
        &self,
        attempt: RefreshAttempt,
    ) -> Result<(Epoch, Refreshed), AuthorityError> {
        loop {
            let (epoch, timeline) = (self.replica.epoch(), self.replica.timeline());
            let refreshed = self.store.refresh_session(attempt.clone()).await?;
            let was_read = matches!(
                refreshed,
                Refreshed::Replayed { .. }
                    | Refreshed::Refused(
                        RefreshRefusal::Unknown | RefreshRefusal::NeverIssued { .. }
                    )
            );
            if was_read {
                self.wait_until_confirmed().await?;
            }
            if !was_read || self.replica.timeline() == timeline {
                return Ok((epoch, refreshed));
            }
        }
    }
}

/// Returns the error for a refused attempt.
fn refused(refusal: RefreshRefusal, token: &PresentedToken) -> AuthorityError {
    match refusal {
        RefreshRefusal::Unknown => AuthorityError::RefreshTokenInvalid,
        RefreshRefusal::NeverIssued { current } => {
            never_issued(token.session_id, Some(token.presented.generation), current)
        }
        RefreshRefusal::Ended => AuthorityError::SessionRevoked,
        RefreshRefusal::ExpiredIdle => AuthorityError::SessionExpiredIdle,
        RefreshRefusal::ExpiredAbsolute => AuthorityError::SessionExpiredAbsolute,
        RefreshRefusal::ScopeNotGranted(scope) => AuthorityError::field(
            "scopes",
            format!("asks for {:?}, which the session does not have", &*scope),
        ),
    }
}
