//! A session, its end, and the tokens that it issues.

use countersign::proto::EndReason;
use countersign_test_support::refusal::Refusal;

use super::{
    Limits, Micros, Model, Policy, Reauthenticate, Scopes, Settings, Verified, create::Origin,
    to_second,
};

/// The owner of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whom {
    pub tenant: u8,
    pub subject: u8,
    pub client: u8,
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    /// The identifier that the service gave it. Sessions are ordered by it, because it begins with
    /// the millisecond of the creation.
    pub id: String,
    pub whom: Whom,
    pub policy: &'static Policy,
    pub limits: Limits,
    pub(super) origin: Origin,
    /// The idempotency key of the request that created it, or its identifier in another system; 0
    /// for none.
    pub(super) request_id: u8,
    pub created_at: Micros,
    /// The millisecond in its identifier, by which revocations of many sessions cover it.
    pub identified_at: Micros,
    /// The creation, or the last reauthentication that extended the session.
    pub(super) lifetime_began_at: Micros,
    pub refreshed_at: Micros,
    pub idle_expires_at: Micros,
    pub expires_at: Micros,
    pub acr: u8,
    pub amr: u8,
    pub verified_at: Verified,
    pub authenticated_at: Micros,
    pub scopes: Scopes,
    pub claims: u8,
    pub metadata: u8,
    pub label: u8,
    pub ended: Option<End>,
    /// Differs after each change.
    pub revision: u32,
    /// The number of reauthentications. A refresh token of an earlier number is invalid.
    pub(super) lineage: u32,
    /// The number of the current refresh token since the last reauthentication.
    pub(super) generation: u32,
    /// The number of times that all access tokens were revoked. One of an earlier number is
    /// inactive.
    pub(super) authentication: u32,
    /// The identifier of the access token of the last refresh.
    pub(super) access_token: usize,
    pub(super) last_reauthentication: Option<Reauthenticate>,
    pub(super) expiry_is_recorded: bool,
    pub(super) is_deleted: bool,
}

/// The end of a session other than by expiry.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub at: Micros,
    pub reason: EndReason,
    pub note: &'static str,
}

/// The content of an access token. Two access tokens are the same if and only if this is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessToken {
    pub session: usize,
    pub(super) id: usize,
    pub(super) authentication: u32,
    pub scopes: Scopes,
    pub claims: u8,
    pub acr: u8,
    pub amr: u8,
    pub verified_at: Verified,
    pub authenticated_at: Micros,
    pub issued_at: Micros,
    pub expires_at: Micros,
}

/// The content of a refresh token. Two refresh tokens are the same if and only if this is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct RefreshToken {
    pub session: usize,
    pub(super) lineage: u32,
    pub(super) generation: u32,
    /// The token of another system, if it is one; otherwise 0.
    pub(super) legacy: u8,
}

/// The tokens of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    pub access: AccessToken,
    pub refresh: RefreshToken,
    /// True for a refresh that repeats an earlier answer.
    pub replayed: bool,
}

impl Session {
    /// Returns the last instant at which the previous refresh token yields the current one.
    pub(super) fn last_replay(&self) -> Micros {
        self.refreshed_at + self.limits.replay_window()
    }

    /// Returns how the session has ended, or `None` while it is live.
    pub fn end(&self, now: Micros) -> Option<End> {
        if self.ended.is_some() {
            return self.ended.clone();
        }
        let reason = match self.idle_expires_at == self.expires_at {
            true => EndReason::ExpiredAbsolute,
            false => EndReason::ExpiredIdle,
        };
        let expired = End { at: self.idle_expires_at, reason, note: "" };
        (now >= expired.at).then_some(expired)
    }

    pub(super) fn is_live(&self, now: Micros) -> bool {
        self.end(now).is_none()
    }

    /// Refuses a call for a session that has ended.
    pub(super) fn require_live(&self, now: Micros) -> Result<(), Refusal> {
        self.end(now).map_or(Ok(()), |end| Err(end.refusal()))
    }

    /// Begins the idle time at an instant.
    pub(super) fn begin_idle_time(&mut self, at: Micros) {
        self.refreshed_at = at;
        self.idle_expires_at = self.expires_at.min(at + self.limits.idle_timeout);
    }

    pub(super) fn finish(&mut self, at: Micros, reason: EndReason, note: &'static str) {
        self.ended = Some(End { at, reason, note });
        self.revision += 1;
    }
}

impl End {
    /// Returns the error of a call for a session that has ended in this way.
    pub(super) fn refusal(&self) -> Refusal {
        Refusal::unauthenticated(match self.reason {
            EndReason::ExpiredIdle => "SESSION_EXPIRED_IDLE",
            EndReason::ExpiredAbsolute => "SESSION_EXPIRED_ABSOLUTE",
            _ => "SESSION_REVOKED",
        })
    }
}

impl Model {
    pub(super) fn new_token(&mut self) -> usize {
        self.last_token += 1;
        self.last_token
    }

    /// Returns a session under the limits of its policy, if these reach live sessions.
    pub(super) fn tightened(&self, session: &Session, settings: Settings) -> Session {
        let mut next = session.clone();
        if session.policy.applies_to_live {
            let limits = session.policy.limits(settings);
            let latest = session.lifetime_began_at + limits.absolute_lifetime;
            next.limits = session.limits.stricter(limits);
            next.expires_at = session.expires_at.min(latest);
            next.begin_idle_time(session.refreshed_at);
        }
        next
    }

    /// Requires that a session has not ended. One that has expired by stricter limits, which reach
    /// it now, ends now.
    pub(super) fn require_live(&mut self, index: usize) -> Result<(), Refusal> {
        let session = &self.sessions[index];
        session.require_live(self.now)?;
        let Some(end) = self.tightened(session, self.settings).end(self.now) else { return Ok(()) };
        self.sessions[index].finish(self.now, end.reason, "");
        Err(end.refusal())
    }

    /// Issues the tokens of a session. `access_token` is the identifier of the access token.
    pub(super) fn issue(
        &mut self,
        index: usize,
        access_token: usize,
        at: Micros,
        scopes: Scopes,
    ) -> Tokens {
        let session = &self.sessions[index];
        let expires_at =
            (to_second(at) + session.limits.access_token_ttl).min(session.idle_expires_at);
        let access = AccessToken {
            session: index,
            id: access_token,
            authentication: session.authentication,
            scopes: if scopes == 0 { session.scopes } else { scopes },
            claims: session.claims,
            acr: session.acr,
            amr: session.amr,
            verified_at: session.verified_at.map(|at| at.map(to_second)),
            authenticated_at: to_second(session.authenticated_at),
            issued_at: to_second(at),
            expires_at: to_second(expires_at),
        };
        let refresh = self.current(index);
        if !self.access_tokens.contains(&access) {
            self.access_tokens.push(access.clone());
        }
        if !self.refresh_tokens.contains(&refresh) {
            self.refresh_tokens.push(refresh.clone());
        }
        Tokens { access, refresh, replayed: false }
    }

    /// Issues the tokens of the last refresh again.
    pub(super) fn issue_again(&mut self, index: usize) -> Tokens {
        let session = &self.sessions[index];
        let (access_token, at) = (session.access_token, session.refreshed_at);
        self.issue(index, access_token, at, 0)
    }

    /// Returns the refresh token of a session.
    pub(super) fn current(&self, session: usize) -> RefreshToken {
        let Session { lineage, generation, .. } = self.sessions[session];
        RefreshToken { session, lineage, generation, legacy: 0 }
    }

    /// Returns a refresh token that the service has not issued yet. Only someone who has stolen the
    /// key could make it.
    pub fn forged(&self, session: usize) -> RefreshToken {
        let current = self.current(session);
        RefreshToken { generation: current.generation + 1, ..current }
    }
}
