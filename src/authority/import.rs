//! ImportSessions: takes over live sessions of another system.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{
    Authority, Settings, authentication_times::check_times, create::policy_of,
    error::AuthorityError, fingerprint::of_import, new_session::NewSession,
};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        ids::SessionId,
        import::{ImportedTimes, Lifetime},
        legacy_token::LegacyTokenHash,
        permission::Operation,
        policy::{OnQuota, Policy, SessionPolicy},
        session::{Authentication, Session},
        text::{Audience, RequestId},
        time::Timestamp,
    },
    instruments::times::in_own_task,
    store::{Created, Creation, StoreError},
};

/// The number of imports that may write at the same time. The sessions of an import wait in the
/// same queue as those that users wait for, so there must be few.
pub const IMPORTS_AT_ONCE: usize = 2;

/// The access token of a session with fewer bytes of texts is certainly not too long, even if all
/// of them must be escaped.
const SMALL_TEXTS: usize = 2048;

/// A live session of another system.
#[derive(Clone, Debug)]
pub struct ImportedSession {
    /// The identifier in the other system.
    pub legacy_id: RequestId,
    /// The content of the session. Its request id and its lifetimes are not set, and neither is the
    /// time of its authentication.
    pub content: NewSession,
    /// The times of the session.
    pub times: ImportedTimes,
    /// The refresh token that the client of the session has.
    pub legacy_token: Option<LegacyTokenHash>,
}

/// What became of a session of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// The session was created.
    Imported(SessionId),
    /// The session was created by an earlier import.
    AlreadyImported(SessionId),
    /// The session could be created.
    Valid,
    /// The session has ended by the limits of its policy, or by its own.
    Expired,
    /// A revocation of many sessions covers the session.
    Revoked,
    /// A field is wrong.
    Rejected {
        /// The name of the field.
        field: String,
        /// The problem with it.
        problem: String,
    },
}

impl ImportOutcome {
    fn rejected(field: &str, problem: &str) -> Self {
        Self::Rejected { field: field.to_owned(), problem: problem.to_owned() }
    }
}

/// A session of an import before it is written.
enum Checked {
    /// The session can be written.
    Writable(Box<Creation>),
    /// The session is not written.
    Done(ImportOutcome),
}

impl Authority {
    /// Imports sessions, each of which is given as the session or as the error of its conversion.
    /// Returns one outcome for each, in the same order. With `validate_only`, nothing is written.
    ///
    /// Quotas are not enforced, because an import must not sign anybody out.
    pub async fn import_sessions(
        &self,
        by: &Actor,
        sessions: Vec<Result<ImportedSession, AuthorityError>>,
        validate_only: bool,
    ) -> Result<Vec<ImportOutcome>, AuthorityError> {
        self.ensure_current().await?;
        let _turn = self.imports.acquire().await.map_err(|_| AuthorityError::Internal)?;
        let (now, settings) = (self.clock.now(), self.settings());
        let mut checked = Vec::with_capacity(sessions.len());
        for session in sessions {
            let checking =
                session.and_then(|session| self.check_import(by, session, &settings, now));
            checked.push(match checking {
                Ok(checked) => checked,
                Err(AuthorityError::InvalidField { field, problem }) => {
                    Checked::Done(ImportOutcome::Rejected { field, problem })
                }
                Err(error) => return Err(error),
            });
        }
        if validate_only {
            let outcome = |checked| match checked {
                Checked::Writable(_) => ImportOutcome::Valid,
                Checked::Done(outcome) => outcome,
            };
            return Ok(checked.into_iter().map(outcome).collect());
        }
        // Each session makes a record of the audit. If the table is too slow, the import waits for
        // it, and not the records of others.
        self.audit.has_room().await;
        let timeline = self.replica.timeline();
        let outcomes = join_all(checked.into_iter().map(|checked| async move {
            match checked {
                Checked::Writable(creation) => self.write_import(by, *creation, now).await,
                Checked::Done(outcome) => Ok(outcome),
            }
        }))
        .await;
        let outcomes = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
        if outcomes.iter().any(|outcome| !matches!(outcome, ImportOutcome::Imported(_))) {
            // After a failover, the new primary may lack sessions that the old one had imported.
            self.wait_until_confirmed().await?;
            if self.replica.timeline() != timeline {
                return Err(AuthorityError::StoreUnavailable);
            }
        }
        Ok(outcomes)
    }

    /// Checks all that can be checked without the database.
    fn check_import(
        &self,
        by: &Actor,
        imported: ImportedSession,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Checked, AuthorityError> {
        let ImportedSession { legacy_id, content, times, legacy_token } = imported;
        let operation = Operation::ImportSessions;
        let audience = match self.permitted_audience(by, operation, &content, settings) {
            Ok(audience) => audience,
            Err(AuthorityError::CallerNotAllowed { .. }) => {
                let has_tenant = by.reach().has_tenant(&content.tenant);
                let field = if has_tenant { "audience" } else { "tenant" };
                let problem = "is not within those that the caller is limited to";
                return Ok(Checked::Done(ImportOutcome::rejected(field, problem)));
            }
            Err(error) => return Err(error),
        };
        let policy = policy_of(&content, &settings.policies)?;
        let lifetime = times
            .under(policy, now, settings.leeway)
            .map_err(|(field, problem)| AuthorityError::field(field, problem))?;
        let (authenticated_at, times) = (lifetime.authenticated_at, &content.amr_verified_at);
        check_times(Some(authenticated_at), times, now, settings.leeway)?;
        if !lifetime.is_live(now) {
            return Ok(Checked::Done(ImportOutcome::Expired));
        }
        let content = NewSession { request_id: Some(legacy_id), ..content };
        let session = self.imported_session(by, content, audience, policy, lifetime)?;
        if text_bytes(&session) > SMALL_TEXTS {
            self.issue_access_token(&session, session.access_token_id, now, &[])?;
        }
        Ok(Checked::Writable(Box::new(Creation {
            session,
            max_sessions: 0,
            on_quota: OnQuota::Refuse,
            legacy_token,
        })))
    }

    fn imported_session(
        &self,
        by: &Actor,
        content: NewSession,
        audience: Vec<Audience>,
        policy: &Policy,
        lifetime: Lifetime,
    ) -> Result<Session, AuthorityError> {
        let Lifetime { created_at, refreshed_at, authenticated_at, idle_expires_at, expires_at } =
            lifetime;
        let fingerprint = of_import(&content.subject);
        let session = self.new_session(content, audience, policy, created_at)?;
        let granted = expires_at.since(created_at);
        let extension = session.policy.reauthentication_lifetime.map(|span| span.min(granted));
        Ok(Session {
            authentication: Authentication { at: authenticated_at, ..session.authentication },
            policy: SessionPolicy { reauthentication_lifetime: extension, ..session.policy },
            created_by: Some(by.into()),
            request_fingerprint: Some(fingerprint),
            refreshed_at,
            idle_expires_at,
            expires_at,
            ..session
        })
    }

    /// Writes and records a session. Both happen in a task of their own, so that a session that was
    /// written is recorded even if the caller disconnects.
    async fn write_import(
        &self,
        by: &Actor,
        creation: Creation,
        now: Timestamp,
    ) -> Result<ImportOutcome, AuthorityError> {
        let (store, audit, by) = (Arc::clone(&self.store), self.audit.clone(), by.clone());
        let reach = by.reach().clone();
        let writing = in_own_task(async move {
            let session = creation.session.clone();
            let created = store.create_session(creation).await?;
            if let Created::New { .. } = created {
                let record = AuditRecord::by(&by, AuditAction::SessionImported, now);
                audit.record(record.about(&session));
            }
            Ok::<_, StoreError>((session.id, created))
        });
        let (id, created) = writing.await.map_err(|_| AuthorityError::Internal)??;
        Ok(match created {
            Created::New { .. } => ImportOutcome::Imported(id),
            Created::Repeated(earlier)
                if earlier.audience.iter().all(|audience| reach.has_audience(audience)) =>
            {
                ImportOutcome::AlreadyImported(earlier.id)
            }
            Created::Repeated(_) | Created::RequestIdReused => ImportOutcome::rejected(
                "legacy_id",
                "is the legacy_id or the request_id of another session of the tenant",
            ),
            Created::LegacyTokenTaken => ImportOutcome::rejected(
                "legacy_refresh_token_hash",
                "is that of another session: a refresh token belongs to one session only",
            ),
            Created::Revoked { .. } | Created::AuthenticationRevoked { .. } => {
                ImportOutcome::Revoked
            }
            // An import has no quota.
            Created::QuotaExceeded => return Err(AuthorityError::Internal),
        })
    }
}

/// Returns the number of bytes of all texts of a session that its access tokens carry.
fn text_bytes(session: &Session) -> usize {
    let lists = session.audience.iter().map(|text| text.len());
    let lists = lists.chain(session.scopes.iter().map(|text| text.len()));
    let lists = lists.chain(session.authentication.amr.iter().map(|text| text.len()));
    // Each time is a number of some ten digits.
    let times = session.authentication.amr_verified_at.iter();
    let lists = lists.chain(times.map(|(method, _)| method.len() + 10));
    let texts: [&str; 5] = [
        &session.tenant,
        &session.subject,
        &session.client_id,
        &session.authentication.acr,
        session.claims.object().as_str(),
    ];
    // Each entry of a list has two quotes and a comma.
    lists.map(|bytes| bytes + 3).sum::<usize>() + texts.map(str::len).iter().sum::<usize>()
}
