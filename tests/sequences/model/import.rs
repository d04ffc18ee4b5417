//! ImportSessions, and the refresh tokens of the other system.

use super::{
    Authentication, LEEWAY, Micros, Model, Policy, RECORDING_DELAY, RefreshToken, Scopes, Session,
    Settings, Whom, create::Origin, to_millisecond,
};

/// A session of another system.
#[derive(Clone, Debug)]
pub struct Import {
    /// Its identifier in the other system; 0 for none.
    pub legacy_id: u8,
    /// The refresh token that its client has; 0 for none.
    pub legacy_token: u8,
    pub whom: Whom,
    pub policy: &'static Policy,
    pub scopes: Scopes,
    pub claims: u8,
    pub metadata: u8,
    pub authentication: Authentication,
    pub created_at: Micros,
    pub refreshed_at: Option<Micros>,
    pub expires_at: Option<Micros>,
}

/// The outcome of an import.
#[derive(Clone, Debug, PartialEq)]
pub enum Imported {
    New(usize),
    Before(usize),
    Valid,
    Expired,
    Revoked,
    /// A field is wrong.
    Rejected(&'static str),
}

/// The session that a refresh token of the other system stands for.
#[derive(Clone, Debug)]
pub(super) struct LegacyToken {
    session: usize,
    /// The end of the session's lifetime at the import.
    expires_at: Micros,
}

/// The times of a session of another system.
struct Times {
    created_at: Micros,
    refreshed_at: Micros,
    authenticated_at: Micros,
}

impl Import {
    /// Returns the times, or the name of a wrong field. The clock of the other system may be ahead
    /// by the leeway.
    fn times(&self, now: Micros) -> Result<Times, &'static str> {
        let past = |field, at: Micros| if at > now + LEEWAY { Err(field) } else { Ok(at.min(now)) };
        let created_at = past("created_at", self.created_at)?;
        let refreshed_at = past("refreshed_at", self.refreshed_at.unwrap_or(created_at))?;
        if refreshed_at < created_at {
            return Err("refreshed_at");
        }
        let authenticated_at = self.authentication.at.unwrap_or(created_at);
        let authenticated_at = past("authenticated_at", authenticated_at)?;
        if self.authentication.verified_at.iter().flatten().any(|at| *at > authenticated_at) {
            return Err("amr_verified_at");
        }
        Ok(Times { created_at, refreshed_at, authenticated_at })
    }
}

impl Model {
    /// ImportSessions, for one session.
    pub fn import(&mut self, import: &Import, validate_only: bool) -> Imported {
        if import.legacy_id == 0 {
            return Imported::Rejected("legacy_id");
        }
        if import.authentication.check_methods().is_err() {
            return Imported::Rejected("amr_verified_at");
        }
        let times = match import.times(self.now) {
            Ok(times) => times,
            Err(field) => return Imported::Rejected(field),
        };
        let session = self.imported_session(import, &times);
        if !session.is_live(self.now) {
            return Imported::Expired;
        }
        if validate_only {
            return Imported::Valid;
        }
        if let Some(earlier) = self.created_by(import.whom.tenant, import.legacy_id) {
            let Session { whom, origin, .. } = &self.sessions[earlier];
            return match *origin == Origin::Import && whom.subject == import.whom.subject {
                true => Imported::Before(earlier),
                false => Imported::Rejected("legacy_id"),
            };
        }
        if self.is_revoked(import.whom, session.identified_at, session.authenticated_at) {
            return Imported::Revoked;
        }
        let token = (import.legacy_token != 0).then_some(import.legacy_token);
        if token.is_some_and(|token| self.legacy_tokens.contains_key(&token)) {
            return Imported::Rejected("legacy_refresh_token_hash");
        }
        let (index, expires_at) = (self.sessions.len(), session.expires_at);
        self.sessions.push(session);
        if let Some(token) = token {
            self.legacy_tokens.insert(token, LegacyToken { session: index, expires_at });
            self.refresh_tokens.push(RefreshToken { legacy: token, ..self.current(index) });
        }
        Imported::New(index)
    }

    /// Both time-outs of the policy count from the times of the other system.
    fn imported_session(&mut self, import: &Import, times: &Times) -> Session {
        let limits = import.policy.limits(self.settings);
        let latest = times.created_at + limits.absolute_lifetime;
        let expires_at = import.expires_at.map_or(latest, |at| at.min(latest));
        let limits = limits.shortened(None, Some((expires_at - times.created_at).max(0)));
        let mut session = Session {
            id: String::new(),
            whom: import.whom,
            policy: import.policy,
            limits,
            origin: Origin::Import,
            request_id: import.legacy_id,
            created_at: times.created_at,
            identified_at: to_millisecond(times.created_at),
            lifetime_began_at: times.created_at,
            refreshed_at: times.refreshed_at,
            idle_expires_at: expires_at,
            expires_at,
            acr: import.authentication.acr,
            amr: import.authentication.amr,
            verified_at: import.authentication.verified_at,
            authenticated_at: times.authenticated_at,
            scopes: import.scopes,
            claims: import.claims,
            metadata: import.metadata,
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
        session.begin_idle_time(times.refreshed_at);
        session
    }

    /// Returns the token that a refresh token stands for; none if it is unknown. One of the other
    /// system stands for the first refresh token of its session.
    pub(super) fn known(&self, token: Option<&RefreshToken>) -> Option<RefreshToken> {
        let token = token?;
        if token.legacy == 0 {
            return Some(token.clone());
        }
        let legacy = self.legacy_tokens.get(&token.legacy)?;
        (self.settings == Settings::Usual).then_some(RefreshToken {
            session: legacy.session,
            lineage: 0,
            generation: 1,
            legacy: 0,
        })
    }

    /// Deletes the tokens of the other system whose sessions could not live any more.
    pub(super) fn sweep_legacy_tokens(&mut self) {
        let until = self.now - RECORDING_DELAY;
        self.legacy_tokens.retain(|_, token| token.expires_at >= until);
    }
}
