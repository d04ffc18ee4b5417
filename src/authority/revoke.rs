//! Revoke: ends sessions, or revokes one access token. It answers once no replica accepts the
//! tokens any more.

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

/// The longest token that is accepted for revocation, in bytes.
pub const MAX_TOKEN_BYTES: usize = access::MAX_BYTES;

/// A request to revoke something.
pub struct RevokeOrder {
    /// The target of the revocation.
    pub target: RevokeTarget,
    /// The reason.
    pub reason: EndReason,
    /// A A note that explains the revocation to people who ask later.
    pub note: Note,
}

/// The target of a revocation.
pub enum RevokeTarget {
    /// The session of a token, or only that access token.
    Token {
        /// An access or a refresh token.
        token: String,
        /// Whether to revoke only the token itself, which must be an access token then.
        token_only: bool,
    },
    /// A session.
    Session(SessionId),
    /// All sessions of a subject, or all but one.
    Subject {
        /// The subject's tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The session that stays.
        except: Option<SessionId>,
    },
    /// All sessions of a tenant.
    Tenant(Tenant),
}

/// The result of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// The number of live sessions that ended.
    pub sessions: i64,
    /// The instant from which none of the revoked tokens is accepted.
    pub effective_at: Timestamp,
}

impl Authority {
    /// Revokes a token, a session, or all sessions of a subject or a tenant. An authentic token
    /// identifies its session even after it has expired. Only an unexpired token or a live session
    /// adds a row to the blacklist.
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
                // The tenant of a session never changes, so it can be checked before the
                // revocation.
                if reach.tenants.is_some() {
                    let session = self.confirmed_session(id).await?;
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
                // The row of the session was lost, but its access tokens may still be valid.
                fallback_entry = (!is_there).then(|| self.entry_without_session(id, &ended));
                RevocationTarget::Session(id)
            }
            RevokeTarget::Token { token, token_only } => {
                let token = self.authenticate(&token).map_err(|_| not_authentic())?;
                let claims = &token.claims;
                if !reach.has_tenant(&claims.tenant) {
                    return Err(AuthorityError::SessionNotFound);
                }
                // Only `exp` counts, because a token that is not valid yet must be revocable before
                // it becomes valid. It must have expired by every clock: ours may be ahead by the
                // largest skew, and another may be behind by as much.
                let behind = now.minus(self.settings.max_clock_skew.saturating_mul(2));
                let has_expired = behind >= claims.expires_at;
                if has_expired && token_only {
                    // Without a lease, our clock may be wrong.
                    self.ensure_current().await?;
                    return nothing;
                }
                let entry = self.fallback_entry(claims, token_only, &ended)?;
                (record.tenant, record.subject) =
                    (Some(entry.tenant.clone()), entry.subject.clone());
                record.session_id = Some(claims.session_id);
                // An expired token still ends its session, if that is live. It adds no entry for
                // any other session, because old tokens can be found in logs and backups.
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
        self.wait_until_acknowledged(epoch, outcome.position).await?;
        if by_id && !outcome.found {
            return Err(AuthorityError::SessionNotFound);
        }
        Ok(Revocations { sessions: outcome.sessions, effective_at: self.clock.now() })
    }

    /// Writes a revocation, and records it if it has changed something. A revocation that changes
    /// nothing may still write its entry again, so that the caller can wait until every replica has
    /// applied it. The record is made before the acknowledgement, because the revocation is
    /// committed by then.
    ///
    /// This runs in a task of its own, which goes on if the caller disconnects. Otherwise the
    /// revocation might never be recorded, because a repeated call finds nothing left to change.
    async fn write_and_record(
        &self,
        revocation: Revocation,
        mut record: AuditRecord,
    ) -> Result<RevocationOutcome, AuthorityError> {
        let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
        let writing = tokio::spawn(async move {
            let outcome = store.revoke(revocation).await?;
            if outcome.changed {
                // If the target was a session identifier, the tenant and the subject are known
                // only now.
                if let (None, Some((tenant, subject))) = (&record.tenant, &outcome.whose) {
                    (record.tenant, record.subject) = (Some(tenant.clone()), Some(subject.clone()));
                }
                audit.record(AuditRecord { sessions: Some(outcome.sessions), ..record });
            }
            Ok::<_, StoreError>(outcome)
        });
        Ok(writing.await.map_err(|_| AuthorityError::Internal)??)
    }

    /// Returns the entry that stops a token, or its session, in case the database has no such live
    /// session.
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
            // The expiry of its other tokens is not known, so the longest lifetime of any
            // configuration is assumed.
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

    /// Returns the entry that stops a session without a row. Its tenant and subject are not known.
    /// Its access tokens are assumed to have the longest configured lifetime.
    fn entry_without_session(&self, id: SessionId, ended: &Ended) -> BlacklistEntry {
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

    /// Returns the session of an authentic refresh token of any generation that was issued, and
    /// whether the session has a row. Without a row the tenant is not known, so the holder of the
    /// token may revoke the session.
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
            // The row was only read. After a failover in between, the new primary may have another
            // state, so it is asked again.
            self.wait_until_confirmed().await?;
            if self.replica.timeline() == timeline {
                return Err(not_authentic());
            }
        }
    }

    /// Returns a session. Returns `None` only if the current primary has no such session.
    async fn confirmed_session(&self, id: SessionId) -> Result<Option<Session>, AuthorityError> {
        loop {
            let timeline = self.replica.timeline();
            if let Some(session) = self.store.session(id).await? {
                return Ok(Some(session));
            }
            self.wait_until_confirmed().await?;
            if self.replica.timeline() == timeline {
                return Ok(None);
            }
        }
    }
}

fn not_authentic() -> AuthorityError {
    AuthorityError::field("token", "is not an authentic token of this service")
}
