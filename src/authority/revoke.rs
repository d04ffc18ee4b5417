//! The use case Revoke, which ends sessions or revokes one access token. The call returns once no
//! replica accepts the revoked tokens any more. What is particular to the targets with many sessions
//! is in `wide_revoke`.

use std::sync::Arc;

use super::{
    Authority, error::AuthorityError, note_session, refresh_token::PresentedToken,
    sessions_target::SessionsTarget,
};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::{Actor, Reach},
        claims::AccessClaims,
        cut_off::CutOffKey,
        ids::SessionId,
        permission::Operation,
        policy::LONGEST_ACCESS_TOKEN_TTL,
        revocation::{BlacklistEntry, RETENTION_MARGIN, Revocation, RevocationTarget, Revoked},
        session::{EndReason, Ended, Session},
        text::{Note, Subject, Tenant},
        time::Timestamp,
    },
    instruments::times::in_own_task,
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
    /// A note that explains the revocation to people who ask later.
    pub note: Note,
    /// The text by which an earlier dry run confirms the revocation; empty without one.
    pub confirmation: String,
}

/// The target of a revocation.
pub enum RevokeTarget {
    /// The session of a token, or only that access token.
    Token {
        /// An access or a refresh token.
        token: String,
        /// True to revoke only the token itself. The token must be an access token then.
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
        /// The session that is spared, if any.
        except: Option<SessionId>,
    },
    /// All sessions of several subjects.
    Subjects {
        /// The tenant of the subjects.
        tenant: Tenant,
        /// The subjects, all different.
        subjects: Vec<Subject>,
    },
    /// All sessions of a tenant.
    Tenant(Tenant),
    /// Sessions by their client, or by a time.
    Sessions(SessionsTarget),
}

/// The result of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocations {
    /// The cut-offs that the revocation has made, in the order of the subjects if there are several.
    pub cut_offs: Vec<CutOffKey>,
    /// The number of live sessions that ended, as far as they are counted before the
    /// acknowledgement.
    pub sessions: i64,
    /// The instant from which none of the revoked tokens is accepted.
    pub effective_at: Timestamp,
}

/// A revocation that the caller is allowed to make, and its audit records.
pub(super) struct RevocationPlan {
    pub(super) target: RevocationTarget,
    /// One record, or one for each of several subjects.
    pub(super) records: Vec<AuditRecord>,
    /// The entry to be added if the session is not live in the database.
    fallback_entry: Option<BlacklistEntry>,
}

impl RevocationPlan {
    fn for_session(
        id: SessionId,
        fallback_entry: Option<BlacklistEntry>,
        record: AuditRecord,
    ) -> Self {
        let record = AuditRecord { session_id: Some(id), ..record };
        Self { target: RevocationTarget::Session(id), records: vec![record], fallback_entry }
    }

    fn for_subject(
        tenant: Tenant,
        subject: Subject,
        except: Option<SessionId>,
        record: AuditRecord,
    ) -> Self {
        let records = vec![of_subject(&tenant, &subject, record)];
        Self::of_cut_off(RevocationTarget::Subject { tenant, subject, except }, records)
    }

    fn for_subjects(tenant: Tenant, subjects: Vec<Subject>, record: &AuditRecord) -> Self {
        let records = subjects.iter().map(|subject| of_subject(&tenant, subject, record.clone()));
        let records = records.collect();
        Self::of_cut_off(RevocationTarget::Subjects { tenant, subjects }, records)
    }

    pub(super) fn of_cut_off(target: RevocationTarget, records: Vec<AuditRecord>) -> Self {
        Self { target, records, fallback_entry: None }
    }
}

/// Completes the record of the revocation of a subject.
fn of_subject(tenant: &Tenant, subject: &Subject, record: AuditRecord) -> AuditRecord {
    AuditRecord {
        action: AuditAction::SubjectRevoked,
        tenant: Some(tenant.clone()),
        subject: Some(subject.clone()),
        ..record
    }
}

impl Authority {
    /// Revokes a token, a session, or the sessions that a wider target names. An authentic token
    /// identifies its session even after the token has expired. But an access token that has
    /// expired adds a row to the blacklist only if its session is live.
    pub async fn revoke(
        &self,
        by: &Actor,
        order: RevokeOrder,
    ) -> Result<Revocations, AuthorityError> {
        let now = self.clock.now();
        let by_id = matches!(order.target, RevokeTarget::Session(_));
        let ended = Ended { at: now, reason: order.reason, note: order.note.clone() };
        let record = AuditRecord {
            reason: Some(order.reason),
            note: order.note,
            ..AuditRecord::by(by, AuditAction::SessionRevoked, now)
        };
        let plan = match order.target {
            RevokeTarget::Session(id) => self.plan_for_session(by.reach(), id, record).await?,
            RevokeTarget::Token { token, token_only } => {
                let plan = self.plan_for_token(by.reach(), &token, token_only, &ended, record);
                let Some(plan) = plan.await? else {
                    // The token has expired by our clock. While this replica holds no lease, its
                    // clock may be wrong.
                    self.ensure_current().await?;
                    return Ok(Revocations { cut_offs: vec![], sessions: 0, effective_at: now });
                };
                plan
            }
            target => {
                let mut plan = self.plan_for_many(by, target, record)?;
                self.check_confirmation(by, &mut plan, &order.confirmation, now)?;
                plan
            }
        };
        self.write_plan(plan, ended, by_id).await
    }

    /// Writes a revocation and waits until it holds on every replica.
    async fn write_plan(
        &self,
        plan: RevocationPlan,
        ended: Ended,
        by_id: bool,
    ) -> Result<Revocations, AuthorityError> {
        let settings = self.settings();
        let limit = settings.max_blacklist_entries;
        let RevocationPlan { target, records, fallback_entry } = plan;
        if let Some(record) = records.first() {
            note_session(record.tenant.as_deref(), record.session_id);
        }
        let cut_offs = target.cut_off_keys();
        let revocation = Revocation {
            target,
            ended,
            room: limit.saturating_sub(self.replica.index().len()),
            longest_token: settings.longest_token,
            fallback_entry,
        };
        let epoch = self.replica.epoch();
        let outcome = self.write_and_record(revocation, records).await?;
        if outcome.full {
            return Err(AuthorityError::BlacklistFull { limit });
        }
        self.wait_until_acknowledged(epoch, outcome.position).await?;
        if by_id && !outcome.found {
            return Err(AuthorityError::SessionNotFound);
        }
        Ok(Revocations { cut_offs, sessions: outcome.sessions, effective_at: self.clock.now() })
    }

    /// Checks that the caller may revoke a target with many sessions.
    pub(super) fn plan_for_many(
        &self,
        by: &Actor,
        target: RevokeTarget,
        record: AuditRecord,
    ) -> Result<RevocationPlan, AuthorityError> {
        match target {
            RevokeTarget::Tenant(tenant) => self.plan_for_tenant(by, tenant, record),
            RevokeTarget::Subject { tenant, subject, except } => {
                self.check_tenant(by, &tenant)?;
                Ok(RevocationPlan::for_subject(tenant, subject, except, record))
            }
            RevokeTarget::Subjects { tenant, subjects } => {
                self.check_tenant(by, &tenant)?;
                Ok(RevocationPlan::for_subjects(tenant, subjects, &record))
            }
            RevokeTarget::Sessions(target) => self.plan_for_sessions(by, target, record),
            RevokeTarget::Token { .. } | RevokeTarget::Session(_) => Err(AuthorityError::field(
                "dry_run",
                "does not go with a token or a session: give a subject, a tenant, or sessions",
            )),
        }
    }

    /// Fails if a tenant is out of the caller's reach.
    fn check_tenant(&self, by: &Actor, tenant: &Tenant) -> Result<(), AuthorityError> {
        if by.reach().has_tenant(tenant) {
            return Ok(());
        }
        Err(self.not_allowed(by, Operation::Revoke, "tenant is not among its tenants"))
    }

    /// Fails if the caller may not revoke the sessions of many subjects of a tenant.
    pub(super) fn check_whole_tenant(
        &self,
        by: &Actor,
        tenant: &Tenant,
    ) -> Result<(), AuthorityError> {
        if !by.caller.may(Operation::RevokeTenant) {
            return Err(self.not_allowed(
                by,
                Operation::RevokeTenant,
                "only the role admin may revoke all sessions of a tenant",
            ));
        }
        self.check_tenant(by, tenant)
    }

    fn plan_for_tenant(
        &self,
        by: &Actor,
        tenant: Tenant,
        record: AuditRecord,
    ) -> Result<RevocationPlan, AuthorityError> {
        self.check_whole_tenant(by, &tenant)?;
        let record = AuditRecord {
            action: AuditAction::TenantRevoked,
            tenant: Some(tenant.clone()),
            ..record
        };
        Ok(RevocationPlan::of_cut_off(RevocationTarget::Tenant(tenant), vec![record]))
    }

    async fn plan_for_session(
        &self,
        reach: &Reach,
        id: SessionId,
        record: AuditRecord,
    ) -> Result<RevocationPlan, AuthorityError> {
        // The tenant of a session never changes, so it can be checked before the revocation.
        if reach.tenants.is_some() {
            let session = self.confirmed_session(id).await?;
            session
                .filter(|session| reach.has_tenant(&session.tenant))
                .ok_or(AuthorityError::SessionNotFound)?;
        }
        Ok(RevocationPlan::for_session(id, None, record))
    }

    /// Returns `None` if only the token is to be revoked and it has expired.
    async fn plan_for_token(
        &self,
        reach: &Reach,
        token: &str,
        token_only: bool,
        ended: &Ended,
        record: AuditRecord,
    ) -> Result<Option<RevocationPlan>, AuthorityError> {
        let is_refresh_token = token.starts_with(PREFIX);
        if is_refresh_token && token_only {
            let problem = "TOKEN_ONLY goes with an access token only";
            return Err(AuthorityError::field("extent", problem));
        }
        if !is_refresh_token {
            match self.plan_for_access_token(reach, token, token_only, ended, record.clone()) {
                // It is no access token of this service, but may be a refresh token of another.
                Err(AuthorityError::InvalidField { .. }) if !token_only => {}
                plan => return plan,
            }
        }
        self.plan_for_refresh_token(reach, token, ended, record).await.map(Some)
    }

    async fn plan_for_refresh_token(
        &self,
        reach: &Reach,
        token: &str,
        ended: &Ended,
        record: AuditRecord,
    ) -> Result<RevocationPlan, AuthorityError> {
        let (id, has_row) = self.session_of_refresh_token(reach, token).await?;
        // The row of the session was lost, but its access tokens may still be valid.
        let fallback_entry = (!has_row).then(|| self.entry_without_session(id, ended));
        Ok(RevocationPlan::for_session(id, fallback_entry, record))
    }

    /// Returns `None` if only the token is to be revoked and it has expired.
    fn plan_for_access_token(
        &self,
        reach: &Reach,
        token: &str,
        token_only: bool,
        ended: &Ended,
        record: AuditRecord,
    ) -> Result<Option<RevocationPlan>, AuthorityError> {
        let token = self.authenticate(token).map_err(|_| not_authentic())?;
        let claims = &token.claims;
        if !reach.has_tenant(&claims.tenant) {
            return Err(AuthorityError::SessionNotFound);
        }
        // Only `exp` counts, because a token that is not valid yet must be revocable before it
        // becomes valid. The token must have expired by the clock of every replica: our clock may
        // be ahead by the largest skew, and another clock may be behind by as much.
        let slowest_clock = ended.at.minus(self.settings.load().max_clock_skew.saturating_mul(2));
        let has_expired = slowest_clock >= claims.expires_at;
        if has_expired && token_only {
            return Ok(None);
        }
        let entry = self.fallback_entry(claims, token_only, ended)?;
        let record = AuditRecord {
            tenant: Some(entry.tenant.clone()),
            subject: entry.subject.clone(),
            session_id: Some(claims.session_id),
            ..record
        };
        // An expired token still ends its session if the session is live. If the session is not
        // live, the token adds no entry, because old tokens can be found in logs and backups.
        let fallback_entry = (!has_expired).then_some(entry);
        if !token_only {
            return Ok(Some(RevocationPlan::for_session(
                claims.session_id,
                fallback_entry,
                record,
            )));
        }
        let target = RevocationTarget::Token {
            token: claims.token_id,
            session_id: claims.session_id,
            expires_at: claims.expires_at,
        };
        let record = AuditRecord { action: AuditAction::TokenRevoked, ..record };
        Ok(Some(RevocationPlan { target, records: vec![record], fallback_entry }))
    }

    /// Writes a revocation, and records it if it has changed something. A revocation that changes
    /// nothing may still write its entry again, so that the caller can wait until every replica has
    /// applied it. The record is made before the revocation is acknowledged, because the revocation
    /// has been committed by then.
    ///
    /// The work runs in a task of its own, which continues if the caller disconnects. Otherwise the
    /// revocation might be committed and never recorded, because a repeated call finds nothing left
    /// to change.
    async fn write_and_record(
        &self,
        revocation: Revocation,
        records: Vec<AuditRecord>,
    ) -> Result<RevocationOutcome, AuthorityError> {
        let (store, audit) = (Arc::clone(&self.store), self.audit.clone());
        let is_counted = revocation.target.is_counted();
        let writing = in_own_task(async move {
            let outcome = store.revoke(revocation).await?;
            for mut record in records.into_iter().filter(|_| outcome.changed) {
                // If the target was a session identifier, the tenant and the subject are known
                // only now.
                if let (None, Some((tenant, subject))) = (&record.tenant, &outcome.owner) {
                    (record.tenant, record.subject) = (Some(tenant.clone()), Some(subject.clone()));
                }
                if is_counted {
                    record.sessions = Some(outcome.sessions);
                }
                audit.record(record);
            }
            Ok::<_, StoreError>(outcome)
        });
        Ok(writing.await.map_err(|_| AuthorityError::Internal)??)
    }

    /// Returns the entry that stops a token, or its session. The entry is written if the session is
    /// not live in the database.
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
            // The expiry of the session's other tokens is not known, so the longest lifetime that
            // any configuration allows is assumed.
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

    /// Returns the entry that stops a session without a row. The tenant and the subject of the
    /// session are not known. Its access tokens are assumed to have the longest lifetime that the
    /// settings have allowed.
    fn entry_without_session(&self, id: SessionId, ended: &Ended) -> BlacklistEntry {
        BlacklistEntry {
            revoked: Revoked::Session(id),
            tenant: Tenant::default(),
            subject: None,
            session_id: Some(id),
            reason: ended.reason,
            note: ended.note.clone(),
            revoked_at: ended.at,
            expires_at: ended.at.plus(self.settings.load().longest_token).plus(RETENTION_MARGIN),
            unfinished: false,
        }
    }

    /// Returns the session of an authentic refresh token of any generation that was issued, and
    /// whether the session has a row. Without a row, the tenant is not known, so any caller that
    /// presents the token may revoke the session.
    async fn session_of_refresh_token(
        &self,
        reach: &Reach,
        token: &str,
    ) -> Result<(SessionId, bool), AuthorityError> {
        let PresentedToken { session_id, presented, .. } =
            self.read_refresh_token(token).await?.ok_or_else(not_authentic)?;
        loop {
            let timeline = self.replica.timeline();
            let Some(session) = self.store.session(session_id).await? else {
                return Ok((session_id, false));
            };
            let is_of_session = presented.secret == session.lineage.secret;
            if is_of_session && presented.generation <= session.lineage.generation {
                let is_in_reach = reach.has_tenant(&session.tenant);
                return if is_in_reach {
                    Ok((session.id, true))
                } else {
                    Err(AuthorityError::SessionNotFound)
                };
            }
            // The read may have been answered by a primary that has been replaced since. If a
            // renewal shows that there was a failover, the new primary may have a different row, so
            // the row is read again.
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
