//! Revoke: ends sessions, or stops one access token. It answers once no replica accepts them any
//! more.

use std::sync::Arc;

use super::{Authority, error::AuthorityError};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::{Actor, Reach},
        claims::AccessClaims,
        ids::SessionId,
        permission::Operation,
        policy::LONGEST_ACCESS_TOKEN_TTL,
        revocation::{BlacklistEntry, RETENTION_MARGIN, Revocation, RevocationTarget, Revoked},
        session::{EndReason, Ended, Session},
        text::{Note, Subject, Tenant},
        time::Timestamp,
    },
    store::{RevocationOutcome, StoreError},
    token::{access, refresh::PREFIX},
};

/// Longest token taken for revocation, in bytes.
pub const MAX_TOKEN_BYTES: usize = access::MAX_BYTES;

/// What to revoke, and why.
pub struct RevokeOrder {
    /// What.
    pub target: RevokeTarget,
    /// Why.
    pub reason: EndReason,
    /// For those who ask later.
    pub note: Note,
}

/// What to revoke.
pub enum RevokeTarget {
    /// The session of a token, or that access token alone.
    Token {
        /// An access or a refresh token.
        token: String,
        /// Only the token itself, if it is an access token.
        token_only: bool,
    },
    /// A session.
    Session(SessionId),
    /// A subject's sessions, but one perhaps.
    Subject {
        /// The subject's tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The session that stays.
        except: Option<SessionId>,
    },
    /// A tenant's sessions.
    Tenant(Tenant),
}

/// What was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// How many live sessions ended.
    pub sessions: i64,
    /// Since when no token of them is active.
    pub effective_at: Timestamp,
}

impl Authority {
    /// Revokes. An authentic token names its session whatever its age. Only an unexpired token or a
    /// live session adds a row.
    pub async fn revoke(
        &self,
        by: &Actor,
        order: RevokeOrder,
    ) -> Result<Revocations, AuthorityError> {
        let reach = by.reach();
        let now = self.clock.now();
        let nothing = Ok(Revocations { sessions: 0, effective_at: now });
        let by_id = matches!(order.target, RevokeTarget::Session(_));
        let ended = Ended { at: now, reason: order.reason, note: order.note.clone() };
        let mut fallback_entry = None;
        let mut record = AuditRecord {
            reason: Some(order.reason),
            note: order.note,
            ..AuditRecord::by(by, AuditAction::SessionRevoked, now)
        };
        let target = match order.target {
            RevokeTarget::Tenant(_) if !by.caller.may(Operation::RevokeTenant) => {
                return Err(self.not_allowed(
                    by,
                    Operation::RevokeTenant,
                    "all of a tenant is for the role admin",
                ));
            }
            RevokeTarget::Subject { tenant, .. } | RevokeTarget::Tenant(tenant)
                if !reach.has_tenant(&tenant) =>
            {
                return Err(self.not_allowed(
                    by,
                    Operation::Revoke,
                    "tenant is not among its tenants",
                ));
            }
            RevokeTarget::Session(id) => {
                // The tenant of a session never changes, so it may be looked at before.
                if reach.tenants.is_some() {
                    let session = self.certain_session(id).await?;
                    session
                        .filter(|session| reach.has_tenant(&session.tenant))
                        .ok_or(AuthorityError::SessionNotFound)?;
                }
                record.session_id = Some(id);
                RevocationTarget::Session(id)
            }
            RevokeTarget::Subject { tenant, subject, except } => {
                record.action = AuditAction::SubjectRevoked;
                (record.tenant, record.subject) = (Some(tenant.clone()), Some(subject.clone()));
                RevocationTarget::Subject { tenant, subject, except }
            }
            RevokeTarget::Tenant(tenant) => {
                record.action = AuditAction::TenantRevoked;
                record.tenant = Some(tenant.clone());
                RevocationTarget::Tenant(tenant)
            }
            RevokeTarget::Token { token, token_only } if token.starts_with(PREFIX) => {
                if token_only {
                    return Err(AuthorityError::field(
                        "extent",
                        "TOKEN_ONLY goes with an access token only",
                    ));
                }
                let (id, is_there) = self.session_of_refresh_token(reach, &token).await?;
                record.session_id = Some(id);
                // Its row was lost, and its access tokens live on.
                fallback_entry = (!is_there).then(|| self.lost_session(id, &ended));
                RevocationTarget::Session(id)
            }
            RevokeTarget::Token { token, token_only } => {
                let token = self.authenticate(&token).map_err(|_| not_authentic())?;
                let claims = &token.claims;
                if !reach.has_tenant(&claims.tenant) {
                    return Err(AuthorityError::SessionNotFound);
                }
                // Only the end counts: a token whose time has not come yet is to be stopped before
                // it does. And it must have ended for everybody: others may be behind the time by
                // as much as we are ahead of it.
                let behind = now.minus(self.settings.max_clock_skew.saturating_mul(2));
                let has_expired = behind >= claims.expires_at;
                if has_expired && token_only {
                    // Not by a clock that is not to be trusted.
                    self.current().await?;
                    return nothing;
                }
                let entry = self.fallback_entry(claims, token_only, &ended)?;
                (record.tenant, record.subject) =
                    (Some(entry.tenant.clone()), entry.subject.clone());
                record.session_id = Some(claims.session_id);
                // An expired token still names its session, which ends if it lives. Old tokens are
                // found in logs and backups, so they add no entry for a session that does not.
                fallback_entry = (!has_expired).then_some(entry);
                if token_only {
                    record.action = AuditAction::TokenRevoked;
                    let (token, session_id, expires_at) =
                        (claims.token_id, claims.session_id, claims.expires_at);
                    RevocationTarget::Token { token, session_id, expires_at }
                } else {
                    RevocationTarget::Session(claims.session_id)
                }
            }
        };
        let limit = self.settings.max_blacklist_entries;
        let may_add = self.replica.index().len() < limit;
        let longest_token = self.settings.max_access_token_ttl;
        let epoch = self.replica.epoch();
        let outcome = self
            .write_and_record(
                Revocation { target, ended, may_add, longest_token, fallback_entry },
                record,
            )
            .await?;
        if outcome.full {
            return Err(AuthorityError::BlacklistFull { limit });
        }
        self.acknowledged(epoch, outcome.position).await?;
        if by_id && !outcome.found {
            return Err(AuthorityError::SessionNotFound);
        }
        Ok(Revocations { sessions: outcome.sessions, effective_at: self.clock.now() })
    }

    /// Writes a revocation, and records it if it has changed something: what was stopped before may
    /// be written once more, for everybody to wait for. It is recorded before it is acknowledged,
    /// because it has been done.
    ///
    /// This goes on if the caller goes away. Whoever asks again finds nothing left to change, so it
    /// would never be recorded.
    async fn write_and_record(
        &self,
        revocation: Revocation,
        mut record: AuditRecord,
    ) -> Result<RevocationOutcome, AuthorityError> {
        let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
        let writing = tokio::spawn(async move {
            let outcome = store.revoke(revocation).await?;
            if outcome.changed {
                // A session that was named by its identifier tells now whose it was.
                if let (None, Some((tenant, subject))) = (&record.tenant, &outcome.whose) {
                    (record.tenant, record.subject) = (Some(tenant.clone()), Some(subject.clone()));
                }
                audit.record(AuditRecord { sessions: Some(outcome.sessions), ..record });
            }
            Ok::<_, StoreError>(outcome)
        });
        Ok(writing.await.map_err(|_| AuthorityError::Internal)??)
    }

    /// The entry that stops a token, or its session, if the database does not know that the session
    /// lives.
    fn fallback_entry(
        &self,
        claims: &AccessClaims,
        token_only: bool,
        ended: &Ended,
    ) -> Result<BlacklistEntry, AuthorityError> {
        let damaged = |_| AuthorityError::Internal;
        let (revoked, last_expiry) = if token_only {
            (Revoked::Token(claims.token_id), claims.expires_at)
        } else {
            // Of its other tokens nothing is known, so none lives longer than any configuration
            // allows.
            let longest = ended.at.max(claims.issued_at).plus(LONGEST_ACCESS_TOKEN_TTL);
            (Revoked::Session(claims.session_id), longest)
        };
        Ok(BlacklistEntry {
            revoked,
            tenant: Tenant::try_from(claims.tenant.clone()).map_err(damaged)?,
            subject: Some(Subject::try_from(claims.subject.clone()).map_err(damaged)?),
            session_id: Some(claims.session_id),
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: last_expiry.plus(RETENTION_MARGIN),
            unfinished: false,
        })
    }

    /// The entry that stops a session of which there is no row. Its tenant and subject are not
    /// known, and none of its access tokens lives longer than any may.
    fn lost_session(&self, id: SessionId, ended: &Ended) -> BlacklistEntry {
        BlacklistEntry {
            revoked: Revoked::Session(id),
            tenant: Tenant::default(),
            subject: None,
            session_id: Some(id),
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: ended.at.plus(self.settings.max_access_token_ttl).plus(RETENTION_MARGIN),
            unfinished: false,
        }
    }

    /// The session of an authentic refresh token of any generation that was issued, and whether
    /// there is a row of it. If there is none, whoever holds the token may revoke the session,
    /// whatever its tenant was.
    async fn session_of_refresh_token(
        &self,
        reach: &Reach,
        token: &str,
    ) -> Result<(SessionId, bool), AuthorityError> {
        let claims = self.read_refresh_token(token).ok_or_else(not_authentic)?;
        loop {
            let timeline = self.replica.timeline();
            let Some(session) = self.store.session(claims.session_id).await? else {
                return Ok((claims.session_id, false));
            };
            let is_of_session = claims.lineage.secret == session.lineage.secret;
            if is_of_session && claims.lineage.generation <= session.lineage.generation {
                let is_in_reach = reach.has_tenant(&session.tenant);
                return if is_in_reach {
                    Ok((session.id, true))
                } else {
                    Err(AuthorityError::SessionNotFound)
                };
            }
            // It was only read: if the database has been replaced meanwhile, the one in its place
            // may know better.
            self.confirmed().await?;
            if self.replica.timeline() == timeline {
                return Err(not_authentic());
            }
        }
    }

    /// A session, and none only if the database in charge has none.
    async fn certain_session(&self, id: SessionId) -> Result<Option<Session>, AuthorityError> {
        loop {
            let timeline = self.replica.timeline();
            if let Some(session) = self.store.session(id).await? {
                return Ok(Some(session));
            }
            self.confirmed().await?;
            if self.replica.timeline() == timeline {
                return Ok(None);
            }
        }
    }
}

fn not_authentic() -> AuthorityError {
    AuthorityError::field("token", "is not an authentic token of this service")
}
