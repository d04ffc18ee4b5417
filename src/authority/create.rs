//! CreateSession: creates a session for a subject whom the caller has authenticated.

use std::time::Duration;

use super::{
    Authority, Settings,
    authentication_times::check_times,
    error::AuthorityError,
    fingerprint::fingerprint,
    issue::{Issued, require_live},
    new_session::NewSession,
    note_session,
};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        ids::{SessionId, TokenId},
        permission::Operation,
        policies::{AudienceError, Policies},
        policy::{self, Policy, SessionPolicy},
        session::{Authentication, EndReason, Lineage, LineageSecret, Session},
        text::Audience,
        time::{Timestamp, brief},
    },
    store::{Created, Creation, Eviction},
};

impl Authority {
    /// Creates a session and issues its first tokens.
    pub async fn create_session(
        &self,
        by: &Actor,
        new: NewSession,
    ) -> Result<Issued, AuthorityError> {
        let settings = self.settings();
        let operation = Operation::CreateSession;
        let audience = self.permitted_audience(by, operation, &new, &settings)?;
        let fingerprint = new.request_id.as_ref().map(|_| fingerprint(&by.caller.name, &new));
        self.ensure_current().await?;
        let (now, gives_authentication) = (self.clock.now(), new.authenticated_at.is_some());
        let policy = policy_of(&new, &settings.policies)?;
        check_times(new.authenticated_at, &new.amr_verified_at, now, settings.leeway)?;
        let mut session = Session {
            request_fingerprint: fingerprint,
            created_by: Some(by.into()),
            ..self.new_session(new, audience, policy, now)?
        };
        note_session(Some(&session.tenant), Some(session.id));
        loop {
            // The tokens are issued before the row is written, so that a failure to issue them
            // leaves no session behind.
            let tokens = self.issue(&session, session.access_token_id, now, &[])?;
            let creation = Creation {
                session: session.clone(),
                max_sessions: policy.max_sessions_per_subject,
                on_quota: policy.on_quota,
                legacy_token: None,
            };
            let epoch = self.replica.epoch();
            match self.store.create_session(creation).await? {
                Created::New { eviction } => {
                    self.record_creation(by, &session, eviction.as_ref());
                    if let Some(eviction) = eviction {
                        self.wait_until_acknowledged(epoch, eviction.position).await?;
                    }
                    return Ok(Issued { session, tokens, now });
                }
                Created::Repeated(earlier) => {
                    self.wait_until_confirmed().await?;
                    return self.repeat(by, *earlier, now);
                }
                // A session that is not imported has no token of another system.
                Created::RequestIdReused | Created::LegacyTokenTaken => {
                    self.wait_until_confirmed().await?;
                    return Err(AuthorityError::RequestIdReused);
                }
                Created::QuotaExceeded => return Err(quota_exceeded(policy)),
                Created::AuthenticationRevoked { .. } if gives_authentication => {
                    return Err(authentication_revoked());
                }
                // The clock is behind that of the replica which has revoked authentications.
                Created::AuthenticationRevoked { up_to } => {
                    session.authentication.at = up_to.plus(Duration::from_micros(1));
                }
                // Sessions were revoked in this millisecond, or the clock has been set back since.
                // The identifier contains the time of creation, which must be later than the
                // revocation. Each iteration uses a later time, so the loop ends.
                Created::Revoked { up_to } => {
                    let at = up_to.plus(Duration::from_millis(1));
                    session.id = SessionId::of_subject(
                        at,
                        &session.tenant,
                        &session.subject,
                        self.random()?,
                    );
                }
            }
        }
    }

    /// Returns the audience of a new session. Fails if the tenant or the audience is out of the
    /// caller's reach.
    pub(super) fn permitted_audience(
        &self,
        by: &Actor,
        operation: Operation,
        new: &NewSession,
        settings: &Settings,
    ) -> Result<Vec<Audience>, AuthorityError> {
        if !by.reach().has_tenant(&new.tenant) {
            return Err(self.not_allowed(by, operation, "tenant is not among its tenants"));
        }
        let audience = audience_of(new, &settings.policies)?;
        match audience.iter().position(|audience| !by.reach().has_audience(audience)) {
            None => Ok(audience),
            Some(index) => {
                let problem = format!("audience[{index}] is not among its audiences");
                Err(self.not_allowed(by, operation, problem))
            }
        }
    }

    /// Returns a session that begins at `now`, without its creator and the fingerprint of its
    /// request.
    pub(super) fn new_session(
        &self,
        new: NewSession,
        audience: Vec<Audience>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Session, AuthorityError> {
        let session_policy = session_policy(&new, policy)?;
        let lifetime = shorten("max_lifetime", new.max_lifetime, policy.absolute_lifetime)?;
        let session_policy = SessionPolicy {
            reauthentication_lifetime: policy.reauthentication_extends.then_some(lifetime),
            ..session_policy
        };
        let expires_at = now.plus(lifetime);
        let access_token_id = TokenId::new(self.random()?);
        Ok(Session {
            id: SessionId::of_subject(now, &new.tenant, &new.subject, self.random()?),
            audience,
            tenant: new.tenant,
            subject: new.subject,
            client_id: new.client_id,
            scopes: new.scopes,
            claims: new.claims,
            authentication: Authentication {
                id: None,
                acr: new.acr,
                amr: new.amr,
                amr_verified_at: new.amr_verified_at,
                at: new.authenticated_at.unwrap_or(now),
            },
            metadata: new.metadata,
            device: new.device,
            idle_expires_at: session_policy.idle_expiry(now, expires_at),
            policy: session_policy,
            created_at: now,
            created_by: None,
            extended_at: None,
            refreshed_at: now,
            expires_at,
            earlier_tokens_expire_at: None,
            lineage: Lineage {
                generation: 1,
                secret: LineageSecret(self.random()?),
                key: self.refresh_key()?,
            },
            access_token_id,
            request_id: new.request_id,
            request_fingerprint: None,
            reauthentication: None,
            ended: None,
            expiry_recorded: false,
            revision: 1,
        })
    }

    /// Records that a session was created, and that other sessions were evicted for it.
    fn record_creation(&self, by: &Actor, session: &Session, eviction: Option<&Eviction>) {
        let now = session.created_at;
        for evicted in eviction.iter().flat_map(|eviction| &eviction.sessions) {
            let record = AuditRecord::by(by, AuditAction::SessionEvicted, now);
            self.audit.record(AuditRecord {
                session_id: Some(*evicted),
                reason: Some(EndReason::QuotaEvicted),
                sessions: Some(1),
                ..record.about(session)
            });
        }
        self.audit.record(AuditRecord::by(by, AuditAction::SessionCreated, now).about(session));
    }

    /// Answers a repeated request with the session that it created before.
    fn repeat(
        &self,
        by: &Actor,
        earlier: Session,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        // The caller may have lost the right to an audience since then. Moreover, a row that an
        // older version wrote does not say which caller created the session.
        if !earlier.audience.iter().all(|audience| by.reach().has_audience(audience)) {
            return Err(AuthorityError::RequestIdReused);
        }
        require_live(&earlier, now)?;
        // If the session has been refreshed, the client has certainly received its first tokens,
        // and nobody else may get the current refresh token.
        if earlier.lineage.generation != 1 || earlier.authentication.id.is_some() {
            let problem = "was used for a session that has been refreshed or reauthenticated \
                           since, or whose access tokens were revoked: use a new one for a new \
                           session";
            return Err(AuthorityError::field("request_id", problem));
        }
        let tokens = self.issue(&earlier, earlier.access_token_id, earlier.refreshed_at, &[])?;
        Ok(Issued { session: earlier, tokens, now })
    }
}

/// Returns the policy of a new session.
pub(super) fn policy_of<'a>(
    new: &NewSession,
    policies: &'a Policies,
) -> Result<&'a Policy, AuthorityError> {
    policies
        .choose(new.policy.as_ref(), &new.tenant, &new.client_id)
        .map_err(|unknown| AuthorityError::field("policy", unknown))
}

fn audience_of(new: &NewSession, policies: &Policies) -> Result<Vec<Audience>, AuthorityError> {
    policies.audience(&new.audience, &new.tenant, &new.client_id).map_err(|error| match error {
        AudienceError::NotAllowed { index, .. } => {
            AuthorityError::field(format!("audience[{index}]"), error)
        }
        AudienceError::NoneInCommon => AuthorityError::field("audience", error),
    })
}

fn quota_exceeded(policy: &Policy) -> AuthorityError {
    AuthorityError::SessionQuotaExceeded {
        limit: policy.max_sessions_per_subject,
        policy: policy.session.name.to_string(),
    }
}

fn authentication_revoked() -> AuthorityError {
    AuthorityError::field(
        "authenticated_at",
        "lies before an instant before which all authentications of the tenant or client were \
         revoked: the user must authenticate again",
    )
}

/// Returns the part of the policy that a new session keeps, with the lifetime of access tokens that
/// the request asks for.
fn session_policy(new: &NewSession, policy: &Policy) -> Result<SessionPolicy, AuthorityError> {
    let access_token_ttl =
        shorten("access_token_ttl", new.access_token_ttl, policy.session.access_token_ttl)?;
    Ok(SessionPolicy {
        access_token_ttl,
        refresh_grace: policy.session.refresh_grace.min(policy::longest_grace(access_token_ttl)),
        ..policy.session.clone()
    })
}

/// Returns the requested span, or the limit if none is requested. A request may ask for less than
/// the limit, but not for more.
fn shorten(
    field: &str,
    asked: Option<Duration>,
    limit: Duration,
) -> Result<Duration, AuthorityError> {
    match asked {
        None => Ok(limit),
        Some(asked) if asked < Duration::from_secs(1) => {
            Err(AuthorityError::field(field, "must be at least 1s"))
        }
        Some(asked) if asked > limit => Err(AuthorityError::field(
            field,
            format!("must not be longer than the policy's {}", brief(limit)),
        )),
        Some(asked) => Ok(asked),
    }
}
