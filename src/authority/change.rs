//! Reauthenticate and UpdateSession: change a live session.

use std::sync::Arc;

use super::{
    Authority,
    authentication_times::check_times,
    error::AuthorityError,
    fingerprint,
    issue::Issued,
    new_authentication::{NamedSession, NewAuthentication},
    note_session,
    refresh_token::{end_error, never_issued, record_end},
};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        change::{
            ChangeKind, ChangeRefusal, NextTokens, Presented, Reauthentication, SessionChange,
            Update,
        },
        claims::CustomClaims,
        ids::{AuthenticationId, SessionId, TokenId},
        metadata::Metadata,
        session::{IdentifiedRequest, LineageSecret, Session},
        text::{DeviceLabel, Scope},
        time::Timestamp,
    },
    instruments::times::in_own_task,
    revocation::replica::Epoch,
    store::{Changed, StoreError},
};

/// A request that changes data of a session. Fields that are `None` do not change.
pub struct SessionUpdate {
    /// The session.
    pub session_id: SessionId,
    /// The revision that the session must have, if the caller demands one.
    pub revision: Option<u32>,
    /// The new metadata.
    pub metadata: Option<Metadata>,
    /// The new name of the device.
    pub label: Option<DeviceLabel>,
    /// The new custom claims.
    pub claims: Option<CustomClaims>,
    /// The new scopes, which must be some of the session's scopes.
    pub scopes: Option<Vec<Scope>>,
    /// True to make all present access tokens inactive.
    pub revoke_access_tokens: bool,
}

impl Authority {
    /// Records that the user of a session has authenticated again. All earlier tokens of the
    /// session are invalid on every replica before this returns the new ones.
    pub async fn reauthenticate(
        &self,
        by: &Actor,
        new: NewAuthentication,
    ) -> Result<Issued, AuthorityError> {
        let (session_id, presented) = match &new.session {
            NamedSession::Id(id) => (*id, None),
            NamedSession::RefreshToken(token) => {
                let token = self.read_refresh_token(token).await?;
                let token = token.ok_or(AuthorityError::RefreshTokenInvalid)?;
                (token.session_id, Some(token.presented))
            }
        };
        note_session(None, Some(session_id));
        self.ensure_current().await?;
        let now = self.clock.now();
        let settings = self.settings();
        check_times(new.authenticated_at, &new.amr_verified_at, now, settings.leeway)?;
        let request = new.request_id.clone().map(|id| IdentifiedRequest {
            id,
            fingerprint: fingerprint::of_reauthentication(&by.caller.name, session_id, &new),
        });
        let change = Reauthentication {
            presented,
            acr: new.acr,
            amr: new.amr,
            amr_verified_at: new.amr_verified_at,
            at: new.authenticated_at,
            allow_weaker: new.allow_weaker,
            acr_order: Arc::clone(&settings.acr_order),
            claims: new.claims,
            scopes: new.scopes,
            device: new.device,
            request,
            next: NextTokens {
                access_token_id: TokenId::new(self.random()?),
                authentication_id: AuthenticationId::new(self.random()?),
                secret: LineageSecret(self.random()?),
                key: self.refresh_key()?,
            },
        };
        let next = |session: &Session| change.applied_to(session, now);
        self.ensure_tokens_fit(by, session_id, next, now).await?;
        let kind = ChangeKind::Reauthenticate(Box::new(change));
        let change = self.session_change(by, session_id, now, kind);
        let session = self.change(by, change, AuditAction::SessionReauthenticated).await?;
        let tokens = self.issue(&session, session.access_token_id, session.refreshed_at, &[])?;
        Ok(Issued { session, tokens, now })
    }

    fn session_change(
        &self,
        by: &Actor,
        session_id: SessionId,
        now: Timestamp,
        kind: ChangeKind,
    ) -> SessionChange {
        let settings = self.settings();
        SessionChange {
            session_id,
            reach: by.reach().clone(),
            now,
            may_add: self.replica.index().len() < settings.max_blacklist_entries,
            live_policies: settings.live_policies.clone(),
            kind,
        }
    }

    /// Checks that access tokens of the session can be issued after a change. If issuing failed
    /// only after the change, the session would be left without any valid token.
    async fn ensure_tokens_fit(
        &self,
        by: &Actor,
        session_id: SessionId,
        after_change: impl FnOnce(&Session) -> Session,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let session = self.store.session(session_id).await?;
        // A session that does not exist, or that the caller may not see, is refused when the change
        // is decided.
        let Some(session) = session.filter(|session| by.reach().has_tenant(&session.tenant)) else {
            return Ok(());
        };
        let next = after_change(&session);
        self.issue_access_token(&next, next.access_token_id, now, &[]).map(drop)
    }

    /// Changes data of a session. Returns the session, and the instant for which its state holds.
    pub async fn update_session(
        &self,
        by: &Actor,
        update: SessionUpdate,
    ) -> Result<(Session, Timestamp), AuthorityError> {
        let session_id = update.session_id;
        note_session(None, Some(session_id));
        self.ensure_current().await?;
        let now = self.clock.now();
        let revoke_access_tokens = match update.revoke_access_tokens {
            true => Some(AuthenticationId::new(self.random()?)),
            false => None,
        };
        let update = Update {
            revision: update.revision,
            metadata: update.metadata,
            label: update.label,
            claims: update.claims,
            scopes: update.scopes,
            revoke_access_tokens,
        };
        if update.claims.is_some() || revoke_access_tokens.is_some() {
            let next = |session: &Session| update.applied_to(session);
            self.ensure_tokens_fit(by, session_id, next, now).await?;
        }
        let kind = ChangeKind::Update(Box::new(update));
        let change = self.session_change(by, session_id, now, kind);
        let session = self.change(by, change, AuditAction::SessionUpdated).await?;
        Ok((session, now))
    }

    /// Lets the database decide and write a change, records it, and waits until every replica knows
    /// the revocation that it may have made. Returns the session after the change.
    async fn change(
        &self,
        by: &Actor,
        change: SessionChange,
        action: AuditAction,
    ) -> Result<Session, AuthorityError> {
        let (session_id, presented) = (change.session_id, change.presented());
        let (epoch, changed) = self.decide(by, change, action).await?;
        if let Changed::Changed { session, .. }
        | Changed::Kept { session, .. }
        | Changed::Ended { session, .. } = &changed
        {
            note_session(Some(&session.tenant), None);
        }
        let (session, position) = match changed {
            Changed::Changed { session, position } | Changed::Kept { session, position } => {
                (session, position)
            }
            Changed::Ended { session, position } => {
                self.wait_until_acknowledged(epoch, position).await?;
                return Err(end_error(&session));
            }
            Changed::Refused(refusal) => {
                return Err(self.refusal_error(refusal, session_id, presented));
            }
        };
        if let Some(position) = position {
            self.wait_until_acknowledged(epoch, position).await?;
        }
        Ok(*session)
    }

    /// Lets the database decide and write a change, and records it. Returns the epoch in which the
    /// decision was made. A decision that rests only on reads must come from the current primary.
    /// If a failover has happened meanwhile, the new primary decides again.
    async fn decide(
        &self,
        by: &Actor,
        change: SessionChange,
        action: AuditAction,
    ) -> Result<(Epoch, Changed), AuthorityError> {
        loop {
            let (epoch, timeline) = (self.replica.epoch(), self.replica.timeline());
            let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
            let (attempt, by) = (change.clone(), by.clone());
            // The work runs in a task of its own, so that the change, or the end of the session, is
            // recorded even if the caller disconnects.
            let changing = in_own_task(async move {
                let (now, presented) = (attempt.now, attempt.presented());
                let changed = store.change_session(attempt).await?;
                match &changed {
                    // If a request is repeated because its answer was lost, it may not have been
                    // recorded.
                    Changed::Changed { session, .. }
                    | Changed::Kept { session, position: Some(_) } => {
                        audit.record(AuditRecord::by(&by, action, now).about(session));
                    }
                    Changed::Ended { session, .. } => {
                        let generation = presented.map(|presented| presented.generation);
                        record_end(&audit, &by, now, session, generation);
                    }
                    Changed::Kept { .. } | Changed::Refused(_) => {}
                }
                Ok::<_, StoreError>(changed)
            });
            let changed = changing.await.map_err(|_| AuthorityError::Internal)??;
            let was_read = matches!(changed, Changed::Kept { .. } | Changed::Refused(_));
            if was_read {
                self.wait_until_confirmed().await?;
            }
            if !was_read || self.replica.timeline() == timeline {
                return Ok((epoch, changed));
            }
        }
    }

    /// Returns the error for a change that was not made. `presented` is the refresh token by which
    /// the caller named the session, if it did so.
    fn refusal_error(
        &self,
        refusal: ChangeRefusal,
        session_id: SessionId,
        presented: Option<Presented>,
    ) -> AuthorityError {
        match refusal {
            ChangeRefusal::NeverIssued { current } => {
                never_issued(session_id, presented.map(|presented| presented.generation), current)
            }
            ChangeRefusal::Unknown if presented.is_some() => AuthorityError::RefreshTokenInvalid,
            ChangeRefusal::Unknown => AuthorityError::SessionNotFound,
            ChangeRefusal::Ended => AuthorityError::SessionRevoked,
            ChangeRefusal::ExpiredIdle => AuthorityError::SessionExpiredIdle,
            ChangeRefusal::ExpiredAbsolute => AuthorityError::SessionExpiredAbsolute,
            ChangeRefusal::BlacklistFull => {
                AuthorityError::BlacklistFull { limit: self.settings().max_blacklist_entries }
            }
            ChangeRefusal::RequestIdReused => AuthorityError::RequestIdReused,
            ChangeRefusal::RefreshedSince => AuthorityError::field(
                "request_id",
                "was used for a reauthentication after which the session has been refreshed: use a \
                 new one for a new reauthentication",
            ),
            ChangeRefusal::Older => AuthorityError::field(
                "authenticated_at",
                "is before the last authentication of the session",
            ),
            ChangeRefusal::Weaker(present) => AuthorityError::field(
                "acr",
                format!(
                    "is weaker than the session's {:?}: set allow_weaker if this is intended",
                    &*present
                ),
            ),
            ChangeRefusal::OtherRevision => AuthorityError::EtagMismatch,
            ChangeRefusal::ScopeNotGranted(scope) => AuthorityError::field(
                "scopes",
                format!("adds {:?}, which the session does not have: use Reauthenticate", &*scope),
            ),
        }
    }
}
