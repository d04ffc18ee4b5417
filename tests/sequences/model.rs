//! The rules of a session's life, as a pure model.
//!
//! It is written from the README, `docs/sessions.md`, `docs/guarantees.md` and the comments of the
//! `.proto` files, and uses none of the rules in `src/domain`. Each call has one method, which
//! changes the model and returns the answer that the service must give. The model knows neither
//! messages nor token strings: a token is the content that the string stands for.

use std::collections::BTreeSet;

use countersign::proto::{
    EndReason,
    InactiveReason::{self, *},
};
use countersign_test_support::refusal::Refusal;
use tonic::Code;

/// An instant or a span, in microseconds.
pub type Micros = i64;

pub const SECOND: Micros = 1_000_000;

/// How far in the future an authentication may be: `tokens.leeway`.
pub const LEEWAY: Micros = 5 * SECOND;

/// The sweeper records an expiry once it is further back than this.
pub const RECORDING_DELAY: Micros = 60 * SECOND;

/// How long the row of a session is kept after its end: `sweeper.session_retention`.
pub const RETENTION: Micros = 900 * SECOND;

/// The values of `acr` from the weakest to the strongest. The last one is not in
/// `tokens.acr_order`, so it cannot be compared with others.
pub const ACRS: [&str; 4] = ["", "low", "high", "other"];
const INCOMPARABLE: u8 = 3;

/// A set of scopes, one bit for each.
pub type Scopes = u8;

/// Returns whether a set has scopes that another set lacks.
fn exceeds(scopes: Scopes, granted: Scopes) -> bool {
    scopes & !granted != 0
}

/// A policy.
#[derive(Debug, PartialEq)]
pub struct Policy {
    pub name: &'static str,
    pub access_token_ttl: Micros,
    pub idle_timeout: Micros,
    pub absolute_lifetime: Micros,
    pub refresh_grace: Micros,
    /// With `replay = "until_used"`, the replay limit.
    pub until_used: Option<Micros>,
    pub revokes_access_token: bool,
    pub reauthentication_extends: bool,
    /// The maximum number of live sessions of a subject; 0 for no limit.
    pub max_sessions: usize,
    /// True if the quota refuses a session instead of evicting the oldest.
    pub refuses: bool,
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    /// The identifier that the service gave it. Sessions are ordered by it, because it begins with
    /// the millisecond of the creation.
    pub id: String,
    pub request: Create,
    pub created_at: Micros,
    pub refreshed_at: Micros,
    pub idle_expires_at: Micros,
    pub expires_at: Micros,
    pub acr: u8,
    pub amr: u8,
    pub authenticated_at: Micros,
    pub scopes: Scopes,
    pub claims: u8,
    pub metadata: u8,
    pub label: u8,
    pub ended: Option<End>,
    /// Differs after each change.
    pub revision: u32,
    /// The number of reauthentications. A refresh token of an earlier number is invalid.
    lineage: u32,
    /// The number of the current refresh token since the last reauthentication.
    generation: u32,
    /// The number of times that all access tokens were revoked. One of an earlier number is
    /// inactive.
    authentication: u32,
    /// The identifier of the access token of the last rotation.
    access_token: usize,
    last_reauthentication: Option<Reauthenticate>,
    expiry_is_recorded: bool,
    is_deleted: bool,
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
    id: usize,
    authentication: u32,
    pub scopes: Scopes,
    pub claims: u8,
    pub acr: u8,
    pub amr: u8,
    pub authenticated_at: Micros,
    pub issued_at: Micros,
    pub expires_at: Micros,
}

/// The content of a refresh token. Two refresh tokens are the same if and only if this is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct RefreshToken {
    pub session: usize,
    lineage: u32,
    generation: u32,
}

/// The tokens of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    pub access: AccessToken,
    pub refresh: RefreshToken,
    /// True for a refresh that repeats an earlier answer.
    pub replayed: bool,
}

/// A request for a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    pub tenant: u8,
    pub subject: u8,
    pub client: u8,
    pub policy: &'static Policy,
    pub scopes: Scopes,
    pub claims: u8,
    pub metadata: u8,
    pub acr: u8,
    pub amr: u8,
    pub authenticated_at: Option<Micros>,
    pub access_token_ttl: Option<Micros>,
    pub max_lifetime: Option<Micros>,
    /// 0 for none.
    pub request_id: u8,
}

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
    pub acr: u8,
    pub amr: u8,
    pub authenticated_at: Option<Micros>,
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

/// The demands on a token. 0 demands nothing.
#[derive(Clone, Debug)]
pub struct Demands {
    /// True to demand an audience that no token has.
    pub foreign_audience: bool,
    pub scopes: Scopes,
    /// A value of `acr` that the token must have.
    pub acr: Option<u8>,
    pub max_age: Option<Micros>,
}

/// The target of a revocation.
#[derive(Clone, Debug)]
pub enum Target {
    AccessToken { token: AccessToken, only: bool },
    RefreshToken(Option<RefreshToken>),
    Session(usize),
    Subject { tenant: u8, subject: u8, except: Option<usize> },
    Tenant(u8),
}

/// A search for sessions.
#[derive(Clone, Debug)]
pub struct Search {
    pub tenant: u8,
    pub subject: Option<u8>,
    pub client: Option<u8>,
    /// True for live sessions, false for those that are recorded as ended.
    pub live: Option<bool>,
    pub oldest_first: bool,
}

/// What the service keeps.
#[derive(Debug, Default)]
pub struct Model {
    pub now: Micros,
    pub sessions: Vec<Session>,
    /// Every access token that was issued, in this order.
    pub access_tokens: Vec<AccessToken>,
    /// Every refresh token that was issued, in this order.
    pub refresh_tokens: Vec<RefreshToken>,
    /// The identifiers of the access tokens that were revoked alone.
    revoked_tokens: BTreeSet<usize>,
    /// The last identifier of an access token.
    last_token: usize,
}

fn to_second(instant: Micros) -> Micros {
    instant.div_euclid(SECOND) * SECOND
}

impl Session {
    pub fn access_token_ttl(&self) -> Micros {
        self.request.access_token_ttl.unwrap_or(self.request.policy.access_token_ttl)
    }

    pub fn lifetime(&self) -> Micros {
        self.request.max_lifetime.unwrap_or(self.request.policy.absolute_lifetime)
    }

    /// A replay at the end of the grace must be able to repeat an access token, and its expiry is
    /// rounded down to a second.
    pub fn refresh_grace(&self) -> Micros {
        self.request.policy.refresh_grace.min(self.access_token_ttl() - SECOND)
    }

    /// Returns the last instant at which the previous refresh token yields the current one.
    fn last_replay(&self) -> Micros {
        let limit = self.request.policy.until_used.unwrap_or_default();
        self.refreshed_at + self.refresh_grace().max(limit)
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

    fn is_live(&self, now: Micros) -> bool {
        self.end(now).is_none()
    }

    /// Refuses a call for a session that has ended.
    fn require_live(&self, now: Micros) -> Result<(), Refusal> {
        let reason = match self.end(now) {
            None => return Ok(()),
            Some(End { reason: EndReason::ExpiredIdle, .. }) => "SESSION_EXPIRED_IDLE",
            Some(End { reason: EndReason::ExpiredAbsolute, .. }) => "SESSION_EXPIRED_ABSOLUTE",
            Some(_) => "SESSION_REVOKED",
        };
        Err(Refusal::unauthenticated(reason))
    }

    fn begin_idle_time(&mut self, now: Micros) {
        self.refreshed_at = now;
        self.idle_expires_at = self.expires_at.min(now + self.request.policy.idle_timeout);
    }

    fn finish(&mut self, at: Micros, reason: EndReason, note: &'static str) {
        self.ended = Some(End { at, reason, note });
        self.revision += 1;
    }
}

fn invalid_token() -> Refusal {
    Refusal::unauthenticated("REFRESH_TOKEN_INVALID")
}

pub fn not_found() -> Refusal {
    Refusal::of(Code::NotFound, "SESSION_NOT_FOUND")
}

/// The meaning of an authentic refresh token for its live session.
enum Use {
    Current,
    Previous,
    Reuse,
}

impl Model {
    /// Returns the model of a service that has no session.
    pub fn at(now: Micros) -> Self {
        Self { now, ..Self::default() }
    }

    fn new_token(&mut self) -> usize {
        self.last_token += 1;
        self.last_token
    }

    /// Returns a session that has a row.
    pub fn row(&self, session: usize) -> Option<&Session> {
        Some(&self.sessions[session]).filter(|session| !session.is_deleted)
    }

    /// Issues the tokens of a session. `access_token` is the identifier of the access token.
    fn issue(&mut self, index: usize, access_token: usize, at: Micros, scopes: Scopes) -> Tokens {
        let session = &self.sessions[index];
        let expires_at = (to_second(at) + session.access_token_ttl()).min(session.idle_expires_at);
        let access = AccessToken {
            session: index,
            id: access_token,
            authentication: session.authentication,
            scopes: if scopes == 0 { session.scopes } else { scopes },
            claims: session.claims,
            acr: session.acr,
            amr: session.amr,
            authenticated_at: to_second(session.authenticated_at),
            issued_at: to_second(at),
            expires_at: to_second(expires_at),
        };
        let (lineage, generation) = (session.lineage, session.generation);
        let refresh = RefreshToken { session: index, lineage, generation };
        if !self.access_tokens.contains(&access) {
            self.access_tokens.push(access.clone());
        }
        if !self.refresh_tokens.contains(&refresh) {
            self.refresh_tokens.push(refresh.clone());
        }
        Tokens { access, refresh, replayed: false }
    }

    /// Issues the tokens of the last rotation again.
    fn issue_again(&mut self, index: usize) -> Tokens {
        let session = &self.sessions[index];
        let (access_token, at) = (session.access_token, session.refreshed_at);
        self.issue(index, access_token, at, 0)
    }

    /// CreateSession.
    pub fn create(&mut self, request: &Create) -> Result<Tokens, Refusal> {
        let (now, policy) = (self.now, request.policy);
        let authenticated_at = request.authenticated_at.unwrap_or(now);
        if authenticated_at > now + LEEWAY {
            return Err(Refusal::field("authenticated_at"));
        }
        for (field, asked, limit) in [
            ("access_token_ttl", request.access_token_ttl, policy.access_token_ttl),
            ("max_lifetime", request.max_lifetime, policy.absolute_lifetime),
        ] {
            if asked.is_some_and(|asked| asked < SECOND || asked > limit) {
                return Err(Refusal::field(field));
            }
        }
        if let Some(earlier) = self.created_by(request) {
            return self.create_again(earlier, request);
        }
        self.make_room(request)?;
        let mut session = Session {
            id: String::new(),
            request: request.clone(),
            created_at: now,
            refreshed_at: now,
            idle_expires_at: now,
            expires_at: now,
            acr: request.acr,
            amr: request.amr,
            authenticated_at,
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
        session.expires_at = now + session.lifetime();
        session.begin_idle_time(now);
        self.sessions.push(session);
        Ok(self.issue_again(self.sessions.len() - 1))
    }

    /// Returns the session that was created by a request with the same idempotency key.
    fn created_by(&self, request: &Create) -> Option<usize> {
        let same = |session: &Session| {
            let earlier = &session.request;
            !session.is_deleted
                && (earlier.tenant, earlier.request_id) == (request.tenant, request.request_id)
        };
        (0..self.sessions.len())
            .find(|&index| request.request_id != 0 && same(&self.sessions[index]))
    }

    fn create_again(&mut self, index: usize, request: &Create) -> Result<Tokens, Refusal> {
        let session = &self.sessions[index];
        if session.request != *request {
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
            subject: Some(request.subject),
            client: None,
            live: Some(true),
            oldest_first: true,
            tenant: request.tenant,
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

    /// Judges a refresh token. Only the reuse of a token changes anything: it ends the session.
    fn present(&mut self, token: &RefreshToken) -> Result<Use, Refusal> {
        let now = self.now;
        let session = self.row(token.session).ok_or_else(invalid_token)?;
        // A reauthentication makes all earlier refresh tokens invalid.
        if token.lineage != session.lineage {
            return Err(invalid_token());
        }
        session.require_live(now)?;
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
        let token = token.ok_or_else(invalid_token)?;
        let index = token.session;
        let used = self.present(token)?;
        // The reuse of a token counts even if the request is wrong in another way.
        if matches!(used, Use::Reuse) {
            return Err(Refusal::unauthenticated("REFRESH_TOKEN_REUSED"));
        }
        if exceeds(scopes, self.sessions[index].scopes) {
            return Err(Refusal::field("scopes"));
        }
        let revokes = self.sessions[index].request.policy.revokes_access_token;
        if matches!(used, Use::Previous) {
            // If a refresh revokes the access token before it, a replay repeats that token, so that
            // the next refresh revokes every copy.
            let (id, at) = match revokes {
                true => (self.sessions[index].access_token, self.sessions[index].refreshed_at),
                false => (self.new_token(), self.now),
            };
            return Ok(Tokens { replayed: true, ..self.issue(index, id, at, scopes) });
        }
        let next = self.new_token();
        let session = &mut self.sessions[index];
        let previous = std::mem::replace(&mut session.access_token, next);
        session.generation += 1;
        session.revision += 1;
        session.begin_idle_time(self.now);
        if revokes {
            self.revoked_tokens.insert(previous);
        }
        Ok(self.issue(index, next, self.now, scopes))
    }

    /// Reauthenticate.
    pub fn reauthenticate(&mut self, request: &Reauthenticate) -> Result<Tokens, Refusal> {
        let (index, token) = match &request.session {
            Named::ById(session) => (*session, None),
            Named::ByToken(token) => {
                let token = token.as_ref().ok_or_else(invalid_token)?;
                (token.session, Some(token))
            }
        };
        if request.authenticated_at.is_some_and(|at| at > self.now + LEEWAY) {
            return Err(Refusal::field("authenticated_at"));
        }
        let unknown = if token.is_some() { invalid_token() } else { not_found() };
        let session = self.row(index).ok_or(unknown)?;
        let earlier = session
            .last_reauthentication
            .as_ref()
            .filter(|earlier| request.request_id != 0 && earlier.request_id == request.request_id);
        if let Some(earlier) = earlier {
            session.require_live(self.now)?;
            if earlier != request {
                return Err(Refusal::request_id_reused());
            }
            if session.generation != 1 {
                return Err(Refusal::field("request_id"));
            }
            return Ok(self.issue_again(index));
        }
        match token {
            None => session.require_live(self.now)?,
            Some(token) if matches!(self.present(token)?, Use::Reuse) => {
                return Err(Refusal::unauthenticated("REFRESH_TOKEN_REUSED"));
            }
            Some(_) => {}
        }
        self.authenticate(index, request)
    }

    /// Applies a reauthentication to a live session.
    fn authenticate(&mut self, index: usize, new: &Reauthenticate) -> Result<Tokens, Refusal> {
        let now = self.now;
        let access_token = self.new_token();
        let session = &mut self.sessions[index];
        if new.authenticated_at.is_some_and(|at| at < session.authenticated_at) {
            return Err(Refusal::field("authenticated_at"));
        }
        let comparable = new.acr == 0 || ![new.acr, session.acr].contains(&INCOMPARABLE);
        if comparable && new.acr < session.acr && !new.allow_weaker {
            return Err(Refusal::field("acr"));
        }
        session.acr = new.acr;
        session.amr = new.amr;
        session.authenticated_at =
            new.authenticated_at.unwrap_or(now.max(session.authenticated_at));
        session.claims = new.claims.unwrap_or(session.claims);
        if new.scopes != 0 {
            session.scopes = new.scopes;
        }
        if session.request.policy.reauthentication_extends {
            session.expires_at = session.expires_at.max(now + session.lifetime());
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

    /// Validate, with the reason if the token is inactive.
    pub fn validate(&self, token: &AccessToken, demands: &Demands) -> Result<(), InactiveReason> {
        let session = &self.sessions[token.session];
        let is_revoked = session.ended.is_some()
            || session.authentication != token.authentication
            || self.revoked_tokens.contains(&token.id);
        let is_too_old = |age| self.now - token.authenticated_at > age;
        for (holds, reason) in [
            (self.now >= token.expires_at, Expired),
            (is_revoked, Revoked),
            (demands.foreign_audience, WrongAudience),
            (exceeds(demands.scopes, token.scopes), InsufficientScope),
            (demands.acr.is_some_and(|acr| acr != token.acr), StepUpRequired),
            (demands.max_age.is_some_and(is_too_old), StepUpRequired),
        ] {
            if holds {
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Revoke. Returns the number of sessions that ended.
    pub fn revoke(
        &mut self,
        target: &Target,
        reason: EndReason,
        note: &'static str,
    ) -> Result<usize, Refusal> {
        let is_of = |session: &Session, tenant: u8| session.request.tenant == tenant;
        let affected: Vec<usize> = match target {
            Target::AccessToken { token, only: true } => {
                self.revoked_tokens.insert(token.id);
                vec![]
            }
            Target::AccessToken { token, .. } => vec![token.session],
            Target::RefreshToken(token) => {
                let token = token.as_ref().ok_or_else(|| Refusal::field("token"))?;
                let issued = self.row(token.session).is_none_or(|session| {
                    token.lineage == session.lineage && token.generation <= session.generation
                });
                if !issued {
                    return Err(Refusal::field("token"));
                }
                vec![token.session]
            }
            Target::Session(session) => {
                self.row(*session).ok_or_else(not_found)?;
                vec![*session]
            }
            Target::Subject { tenant, subject, except } => (0..self.sessions.len())
                .filter(|&index| is_of(&self.sessions[index], *tenant))
                .filter(|&index| self.sessions[index].request.subject == *subject)
                .filter(|&index| Some(index) != *except)
                .collect(),
            Target::Tenant(tenant) => (0..self.sessions.len())
                .filter(|&index| is_of(&self.sessions[index], *tenant))
                .collect(),
        };
        let now = self.now;
        let live: Vec<_> =
            affected.into_iter().filter(|&index| self.sessions[index].is_live(now)).collect();
        for &index in &live {
            self.sessions[index].finish(now, reason, note);
        }
        Ok(live.len())
    }

    /// ListSessions and CountSessions. No index serves the client, so such a search must name a
    /// subject.
    pub fn search(&self, search: &Search) -> Result<Vec<usize>, Refusal> {
        match (search.client, search.subject) {
            (Some(_), None) => Err(Refusal::field("filter")),
            _ => Ok(self.list(search)),
        }
    }

    /// Returns the sessions that a search finds. An expired session is neither live, nor ended
    /// before a sweep has recorded its expiry.
    fn list(&self, search: &Search) -> Vec<usize> {
        let passes = |session: &Session| {
            let request = &session.request;
            let is_live = session.is_live(self.now);
            let is_ended = session.ended.is_some() || session.expiry_is_recorded;
            !session.is_deleted
                && request.tenant == search.tenant
                && search.subject.is_none_or(|subject| subject == request.subject)
                && search.client.is_none_or(|client| client == request.client)
                && search.live.is_none_or(|live| if live { is_live } else { is_ended })
        };
        let mut found: Vec<_> =
            (0..self.sessions.len()).filter(|&index| passes(&self.sessions[index])).collect();
        found.sort_by_key(|&index| &self.sessions[index].id);
        if !search.oldest_first {
            found.reverse();
        }
        found
    }

    /// The sweeper records expiries, and deletes the sessions that ended long ago.
    pub fn sweep(&mut self) {
        let now = self.now;
        for session in &mut self.sessions {
            let Some(end) = session.end(now) else { continue };
            if session.ended.is_none() && end.at < now - RECORDING_DELAY {
                session.expiry_is_recorded = true;
            }
            let is_recorded = session.ended.is_some() || session.expiry_is_recorded;
            session.is_deleted |= is_recorded && end.at < now - RETENTION;
        }
    }

    /// Returns the future instants at which some rule changes its answer.
    pub fn edges(&self) -> Vec<Micros> {
        let of_session = |session: &Session| {
            let over = session.end(self.now).map_or(session.idle_expires_at, |end| end.at);
            let kept = [over + RECORDING_DELAY, over + RETENTION];
            [session.idle_expires_at, session.expires_at, session.last_replay()]
                .into_iter()
                .chain(kept)
        };
        let rows = self.sessions.iter().filter(|session| !session.is_deleted);
        let of_tokens = self.access_tokens.iter().map(|token| token.expires_at);
        let edges: BTreeSet<_> = rows.flat_map(of_session).chain(of_tokens).collect();
        edges.into_iter().filter(|&edge| edge > self.now).collect()
    }

    /// Returns a refresh token that the service has not issued yet. Only someone who has stolen the
    /// key could make it.
    pub fn forged(&self, session: usize) -> RefreshToken {
        let Session { lineage, generation, .. } = self.sessions[session];
        RefreshToken { session, lineage, generation: generation + 1 }
    }
}
