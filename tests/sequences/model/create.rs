//! CreateSession.

use countersign::proto::EndReason;
use countersign_test_support::refusal::Refusal;

use super::{Authentication, Micros, Model, Policy, SECOND, Scopes, Search, Session, Tokens, Whom};

/// A request for a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    pub whom: Whom,
    pub policy: &'static Policy,
    pub scopes: Scopes,
    pub claims: u8,
    pub metadata: u8,
    pub authentication: Authentication,
    pub access_token_ttl: Option<Micros>,
    pub max_lifetime: Option<Micros>,
    /// 0 for none.
    pub request_id: u8,
}

/// The call that made a session.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    Create(Create),
    Import,
}

impl Model {
    /// CreateSession.
    pub fn create(&mut self, request: &Create) -> Result<Tokens, Refusal> {
        let limits = request.policy.limits(self.settings);
        request.authentication.check_methods()?;
        request.authentication.check_times(self.now)?;
        for (field, asked, limit) in [
            ("access_token_ttl", request.access_token_ttl, limits.access_token_ttl),
            ("max_lifetime", request.max_lifetime, limits.absolute_lifetime),
        ] {
            if asked.is_some_and(|asked| asked < SECOND || asked > limit) {
                return Err(Refusal::field(field));
            }
        }
        if let Some(earlier) = self.created_by(request.whom.tenant, request.request_id) {
            return self.create_again(earlier, request);
        }
        let (whom, identified_at) = (request.whom, self.identified_at(request.whom));
        let authenticated_at = request.authentication.at;
        if authenticated_at.is_some_and(|at| self.is_revoked(whom, identified_at, at)) {
            return Err(Refusal::field("authenticated_at"));
        }
        self.make_room(request)?;
        let session = self.new_session(request);
        self.sessions.push(session);
        Ok(self.issue_again(self.sessions.len() - 1))
    }

    fn new_session(&mut self, request: &Create) -> Session {
        let now = self.now;
        let limits = request.policy.limits(self.settings);
        let limits = limits.shortened(request.access_token_ttl, request.max_lifetime);
        let authentication = &request.authentication;
        let mut session = Session {
            id: String::new(),
            whom: request.whom,
            policy: request.policy,
            origin: Origin::Create(request.clone()),
            request_id: request.request_id,
            created_at: now,
            identified_at: self.identified_at(request.whom),
            lifetime_began_at: now,
            refreshed_at: now,
            idle_expires_at: now,
            expires_at: now + limits.absolute_lifetime,
            limits,
            acr: authentication.acr,
            amr: authentication.amr,
            verified_at: authentication.verified_at,
            authenticated_at: authentication.at.unwrap_or(now),
            scopes: request.scopes,
            claims: request.claims,
            metadata: request.metadata,
            label: 0,
            ended: None,
            revision: 1,
            lineage: 0,
            generation: 1,
            authentication: 0,
            access_token: self.new_token(),
            last_reauthentication: None,
            expiry_is_recorded: false,
            is_deleted: false,
        };
        session.begin_idle_time(now);
        session
    }

    /// Returns the session of a tenant that has this idempotency key.
    pub(super) fn created_by(&self, tenant: u8, request_id: u8) -> Option<usize> {
        let is_same = |session: &Session| {
            !session.is_deleted && (session.whom.tenant, session.request_id) == (tenant, request_id)
        };
        self.sessions.iter().position(is_same).filter(|_| request_id != 0)
    }

    fn create_again(&mut self, index: usize, request: &Create) -> Result<Tokens, Refusal> {
        let session = &self.sessions[index];
        if session.origin != Origin::Create(request.clone()) {
            return Err(Refusal::request_id_reused());
        }
        session.require_live(self.now)?;
        // Refreshed or reauthenticated, or its access tokens were revoked.
        if (session.generation, session.authentication) != (1, 0) {
            return Err(Refusal::field("request_id"));
        }
        Ok(self.issue_again(index))
    }

    /// Makes room for one more session of a subject.
    fn make_room(&mut self, request: &Create) -> Result<(), Refusal> {
        let search = Search {
            tenant: request.whom.tenant,
            subject: Some(request.whom.subject),
            client: None,
            live: Some(true),
            oldest_first: true,
        };
        let live = self.list(&search);
        let surplus = (live.len() + 1).saturating_sub(request.policy.max_sessions);
        if request.policy.max_sessions == 0 || surplus == 0 {
            return Ok(());
        }
        if request.policy.refuses {
            let policy = format!("policy:{}", request.policy.name);
            return Err(Refusal::quota("SESSION_QUOTA_EXCEEDED", &policy));
        }
        for evicted in live.into_iter().take(surplus) {
            self.sessions[evicted].finish(self.now, EndReason::QuotaEvicted, "");
        }
        Ok(())
    }
}
