//! Refresh, Reauthenticate and UpdateSession.

use std::mem;

use countersign::proto::EndReason;
use countersign_test_support::refusal::Refusal;
use tonic::Code;

use super::{
    Authentication, Model, RefreshToken, Scopes, Session, Tokens, authentication::is_weaker,
    exceeds, not_found,
};

/// The session of a reauthentication.
#[derive(Clone, Debug, PartialEq)]
pub enum Named {
    ById(usize),
    /// By a refresh token; none for a text that is not one.
    ByToken(Option<RefreshToken>),
}

/// A reauthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct Reauthenticate {
    pub session: Named,
    pub authentication: Authentication,
    pub claims: Option<u8>,
    /// 0 to keep those of the session.
    pub scopes: Scopes,
    pub allow_weaker: bool,
    /// 0 for none.
    pub request_id: u8,
}

/// A change of data.
#[derive(Clone, Debug)]
pub struct Update {
    pub session: usize,
    /// The revision whose etag is sent.
    pub revision: Option<u32>,
    pub metadata: Option<u8>,
    pub label: Option<u8>,
    pub claims: Option<u8>,
    pub scopes: Option<Scopes>,
    pub revoke_access_tokens: bool,
}

/// The meaning of an authentic refresh token for its live session.
enum Use {
    Current,
    Previous,
    Reuse,
}

fn invalid_token() -> Refusal {
    Refusal::unauthenticated("REFRESH_TOKEN_INVALID")
}

fn reused_token() -> Refusal {
    Refusal::unauthenticated("REFRESH_TOKEN_REUSED")
}

impl Model {
    /// Judges a refresh token. Only the reuse of a token changes anything: it ends the session.
    fn present(&mut self, token: &RefreshToken) -> Result<Use, Refusal> {
        let now = self.now;
        let session = self.row(token.session).ok_or_else(invalid_token)?;
        // A reauthentication makes all earlier refresh tokens invalid.
        if token.lineage != session.lineage {
            return Err(invalid_token());
        }
        self.require_live(token.session)?;
        let session = &self.sessions[token.session];
        // Nobody but a thief of a key can have such a token.
        if token.generation > session.generation {
            return Err(invalid_token());
        }
        if token.generation == session.generation {
            return Ok(Use::Current);
        }
        if token.generation + 1 == session.generation && now <= session.last_replay() {
            return Ok(Use::Previous);
        }
        self.sessions[token.session].finish(now, EndReason::RefreshTokenReused, "");
        Ok(Use::Reuse)
    }

    /// Refresh. `token` is none for a text that is not a refresh token.
    pub fn refresh(
        &mut self,
        token: Option<&RefreshToken>,
        scopes: Scopes,
    ) -> Result<Tokens, Refusal> {
        let token = self.known(token).ok_or_else(invalid_token)?;
        let index = token.session;
        let used = self.present(&token)?;
        // The reuse of a token counts even if the request is wrong in another way.
        if matches!(used, Use::Reuse) {
            return Err(reused_token());
        }
        if exceeds(scopes, self.sessions[index].scopes) {
            return Err(Refusal::field("scopes"));
        }
        if matches!(used, Use::Previous) {
            // If a refresh revokes the access token before it, a replay repeats that token, so that
            // the next refresh revokes every copy.
            let session = &self.sessions[index];
            let (id, at) = match session.limits.revokes_access_token {
                true => (session.access_token, session.refreshed_at),
                false => (self.new_token(), self.now),
            };
            return Ok(Tokens { replayed: true, ..self.issue(index, id, at, scopes) });
        }
        let next = self.new_token();
        // The previous token is judged by the limits under which the current one was issued, so
        // stricter limits reach a session only here.
        self.sessions[index] = self.tightened(&self.sessions[index], self.settings);
        let session = &mut self.sessions[index];
        let previous = mem::replace(&mut session.access_token, next);
        session.generation += u32::from(!session.limits.reuses);
        session.revision += 1;
        session.begin_idle_time(self.now);
        if session.limits.revokes_access_token {
            self.revoked_tokens.insert(previous);
        }
        Ok(self.issue(index, next, self.now, scopes))
    }

    /// Reauthenticate.
    pub fn reauthenticate(&mut self, request: &Reauthenticate) -> Result<Tokens, Refusal> {
        request.authentication.check_methods()?;
        let (index, token) = match &request.session {
            Named::ById(session) => (*session, None),
            Named::ByToken(token) => {
                let token = self.known(token.as_ref()).ok_or_else(invalid_token)?;
                (token.session, Some(token))
            }
        };
        request.authentication.check_times(self.now)?;
        let unknown = if token.is_some() { invalid_token() } else { not_found() };
        let earlier = self.row(index).ok_or(unknown)?.last_reauthentication.clone();
        let same_id = |earlier: &Reauthenticate| earlier.request_id == request.request_id;
        if let Some(earlier) = earlier.filter(same_id) {
            return self.authenticate_again(index, &earlier, request);
        }
        match token {
            None => self.require_live(index)?,
            Some(token) if matches!(self.present(&token)?, Use::Reuse) => {
                return Err(reused_token());
            }
            Some(_) => {}
        }
        self.authenticate(index, request)
    }

    fn authenticate_again(
        &mut self,
        index: usize,
        earlier: &Reauthenticate,
        request: &Reauthenticate,
    ) -> Result<Tokens, Refusal> {
        self.require_live(index)?;
        if earlier != request {
            return Err(Refusal::request_id_reused());
        }
        if self.sessions[index].generation != 1 {
            return Err(Refusal::field("request_id"));
        }
        Ok(self.issue_again(index))
    }

    /// Applies a reauthentication to a live session.
    fn authenticate(&mut self, index: usize, new: &Reauthenticate) -> Result<Tokens, Refusal> {
        let now = self.now;
        let access_token = self.new_token();
        let session = &self.sessions[index];
        let Authentication { acr, amr, verified_at, at } = new.authentication;
        if at.is_some_and(|at| at < session.authenticated_at) {
            return Err(Refusal::field("authenticated_at"));
        }
        if is_weaker(acr, session.acr) && !new.allow_weaker {
            return Err(Refusal::field("acr"));
        }
        self.sessions[index] = self.tightened(session, self.settings);
        let session = &mut self.sessions[index];
        (session.acr, session.amr, session.verified_at) = (acr, amr, verified_at);
        session.authenticated_at = at.unwrap_or(now.max(session.authenticated_at));
        session.claims = new.claims.unwrap_or(session.claims);
        if new.scopes != 0 {
            session.scopes = new.scopes;
        }
        let extended = now + session.limits.absolute_lifetime;
        if session.limits.reauthentication_extends && extended > session.expires_at {
            (session.lifetime_began_at, session.expires_at) = (now, extended);
        }
        session.begin_idle_time(now);
        session.last_reauthentication = (new.request_id != 0).then(|| new.clone());
        session.revision += 1;
        session.lineage += 1;
        session.generation = 1;
        session.authentication += 1;
        session.access_token = access_token;
        Ok(self.issue_again(index))
    }

    /// UpdateSession.
    pub fn update(&mut self, update: &Update) -> Result<(), Refusal> {
        let Update { metadata, label, claims, scopes, .. } = *update;
        let is_empty = (metadata, label, claims, scopes) == (None, None, None, None);
        if is_empty && !update.revoke_access_tokens {
            return Err(Refusal::field("update_mask"));
        }
        let session = self.row(update.session).ok_or_else(not_found)?;
        session.require_live(self.now)?;
        if update.revision.is_some_and(|revision| revision != session.revision) {
            return Err(Refusal::of(Code::Aborted, "ETAG_MISMATCH"));
        }
        if exceeds(scopes.unwrap_or_default(), session.scopes) {
            return Err(Refusal::field("scopes"));
        }
        let session = &mut self.sessions[update.session];
        let data = |of: &Session| (of.metadata, of.label, of.claims, of.scopes);
        let before = data(session);
        session.metadata = metadata.unwrap_or(session.metadata);
        session.label = label.unwrap_or(session.label);
        session.claims = claims.unwrap_or(session.claims);
        session.scopes = scopes.unwrap_or(session.scopes);
        if data(session) != before || update.revoke_access_tokens {
            session.revision += 1;
        }
        session.authentication += u32::from(update.revoke_access_tokens);
        Ok(())
    }
}
