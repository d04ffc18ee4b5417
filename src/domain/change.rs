//! Decides what a reauthentication or an update does to a session.

use std::sync::Arc;

use super::{
    caller::Reach,
    claims::CustomClaims,
    factors::FactorTimes,
    ids::{AuthenticationId, SessionId, TokenId},
    key::RefreshKeyId,
    live_policy::LivePolicies,
    metadata::Metadata,
    refresh::{RefreshAttempt, RefreshRefusal, RefreshVerdict},
    revocation::BlacklistEntry,
    session::{
        Authentication, Device, EndReason, Ended, IdentifiedRequest, Lineage, LineageSecret,
        Session, State,
    },
    text::{Acr, Amr, DeviceLabel, Note, Scope},
    time::Timestamp,
};

/// A change of a live session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionChange {
    /// The session.
    pub session_id: SessionId,
    /// The tenants and audiences that the caller is limited to.
    pub reach: Arc<Reach>,
    /// The instant of the change.
    pub now: Timestamp,
    /// True if the blacklist has room for another entry.
    pub may_add: bool,
    /// The policies whose limits reach live sessions. They do so when the user authenticates again.
    pub live_policies: Arc<LivePolicies>,
    /// The change.
    pub kind: ChangeKind,
}

/// The kind of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeKind {
    /// The user has authenticated again.
    Reauthenticate(Box<Reauthentication>),
    /// The caller changes data of the session.
    Update(Box<Update>),
}

/// A new authentication of the session's user.
#[derive(Clone, Debug, PartialEq)]
pub struct Reauthentication {
    /// The refresh token that the caller presented, if it named the session by one.
    pub presented: Option<Presented>,
    /// The authentication context class reference.
    pub acr: Acr,
    /// The authentication methods references.
    pub amr: Vec<Amr>,
    /// The times at which the methods were verified, as far as they are known.
    pub amr_verified_at: FactorTimes,
    /// The instant at which the user authenticated; none if it was just now.
    pub at: Option<Timestamp>,
    /// True if the new `acr` may be weaker than that of the session.
    pub allow_weaker: bool,
    /// The order of `acr` values, from the weakest to the strongest.
    pub acr_order: Arc<[Acr]>,
    /// The new custom claims; none if the session keeps its claims.
    pub claims: Option<CustomClaims>,
    /// The new scopes; empty if the session keeps its scopes.
    pub scopes: Vec<Scope>,
    /// The current data of the device, if the request has any.
    pub device: Option<Device>,
    /// The request, if it has an idempotency key.
    pub request: Option<IdentifiedRequest>,
    /// The new identifiers and secrets.
    pub next: NextTokens,
}

/// An authentic refresh token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Presented {
    /// The generation that the token names.
    pub generation: u32,
    /// The secret that the token carries.
    pub secret: LineageSecret,
}

/// The values that the tokens after a reauthentication are made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NextTokens {
    /// The `jti` of the access token.
    pub access_token_id: TokenId,
    /// The authentication that the access tokens rest on.
    pub authentication_id: AuthenticationId,
    /// The secret of the refresh tokens.
    pub secret: LineageSecret,
    /// The key of the refresh token.
    pub key: RefreshKeyId,
}

/// An update of a session. Fields that are `None` do not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// The revision that the session must have, if the caller demands one.
    pub revision: Option<u32>,
    /// The new metadata.
    pub metadata: Option<Metadata>,
    /// The new name of the device.
    pub label: Option<DeviceLabel>,
    /// The new custom claims.
    pub claims: Option<CustomClaims>,
    /// The new scopes, which must be some of the session's scopes.
    pub scopes: Option<Vec<Scope>>,
    /// If set, all present access tokens are revoked, and later ones rest on this authentication.
    pub revoke_access_tokens: Option<AuthenticationId>,
}

/// The decision about a change.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeDecision {
    /// The session changes.
    Change {
        /// The session after the change.
        session: Box<Session>,
        /// The entry that stops the earlier access tokens, if they are revoked.
        entry: Option<BlacklistEntry>,
    },
    /// The change was made before by the same request, or changes nothing.
    Keep {
        /// The session.
        session: Box<Session>,
        /// True if the earlier change wrote a blacklist entry, which may not have reached every
        /// replica yet.
        may_have_entry: bool,
    },
    /// The session ends: the refresh token had been used before, or the session has expired by
    /// stricter limits that reach it now.
    End {
        /// The session after its end.
        session: Box<Session>,
        /// The entry that stops its tokens.
        entry: BlacklistEntry,
    },
    /// The change is refused, and nothing changes.
    Refuse(ChangeRefusal),
}

/// The reason why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeRefusal {
    /// There is no such session, or the caller is limited to other tenants or audiences, or the
    /// presented refresh token is not the session's.
    Unknown,
    /// The presented refresh token has a generation that was never issued.
    NeverIssued {
        /// The session's current generation.
        current: u32,
    },
    /// The session was ended.
    Ended,
    /// The session was not refreshed in time.
    ExpiredIdle,
    /// The session reached the end of its lifetime.
    ExpiredAbsolute,
    /// The change needs a blacklist entry, and there is no room for another one.
    BlacklistFull,
    /// Another request had the same idempotency key.
    RequestIdReused,
    /// The request was made before, and the session has been refreshed since.
    RefreshedSince,
    /// The session has a later authentication.
    Older,
    /// The new `acr` is weaker than the session's, which the variant holds.
    Weaker(Acr),
    /// The session has another revision than the caller demands.
    OtherRevision,
    /// The session does not have this scope.
    ScopeNotGranted(Scope),
}

impl SessionChange {
    /// Returns the refresh token by which the caller named the session, if it did so.
    pub fn presented(&self) -> Option<Presented> {
        match &self.kind {
            ChangeKind::Reauthenticate(change) => change.presented,
            ChangeKind::Update(_) => None,
        }
    }

    /// Decides the change of a session. `is_covered` says whether a cut-off covers the session as it
    /// is. Such a session has ended, although its row may not say so yet. So a later authentication
    /// does not bring back a session that a cut-off by authentication covers.
    pub fn decide<E>(
        &self,
        session: Option<Session>,
        is_covered: impl FnOnce(&Session) -> Result<bool, E>,
    ) -> Result<ChangeDecision, E> {
        let Some(session) = session else {
            return Ok(ChangeDecision::Refuse(ChangeRefusal::Unknown));
        };
        let decision = match &self.kind {
            ChangeKind::Reauthenticate(change) => self.reauthenticate(change, &session),
            ChangeKind::Update(update) => self.update(update, &session),
        };
        let decision = decision.unwrap_or_else(ChangeDecision::Refuse);
        if !matches!(decision, ChangeDecision::Refuse(_)) && is_covered(&session)? {
            return Ok(ChangeDecision::Refuse(ChangeRefusal::Ended));
        }
        Ok(match decision {
            ChangeDecision::Change { entry: Some(_), .. } if !self.may_add => {
                ChangeDecision::Refuse(ChangeRefusal::BlacklistFull)
            }
            decision => decision,
        })
    }

    /// Checks that the caller may see the session, and that the session is live.
    fn check(&self, session: &Session) -> Result<(), ChangeRefusal> {
        if !self.reach.has_tenant(&session.tenant)
            || !session.audience.iter().all(|audience| self.reach.has_audience(audience))
        {
            return Err(ChangeRefusal::Unknown);
        }
        match session.state(self.now) {
            State::Live => Ok(()),
            State::Ended { reason: EndReason::ExpiredIdle, .. } => Err(ChangeRefusal::ExpiredIdle),
            State::Ended { reason: EndReason::ExpiredAbsolute, .. } => {
                Err(ChangeRefusal::ExpiredAbsolute)
            }
            State::Ended { .. } => Err(ChangeRefusal::Ended),
        }
    }

    fn reauthenticate(
        &self,
        change: &Reauthentication,
        session: &Session,
    ) -> Result<ChangeDecision, ChangeRefusal> {
        let repeated = change.request.as_ref().zip(session.reauthentication.as_ref());
        let repeated = repeated.filter(|(asked, earlier)| asked.id == earlier.id);
        // A refresh token from before the last authentication reveals nothing about its session,
        // not even that it has ended. Only a repeated request may present one, because it has
        // replaced that token itself.
        if repeated.is_none()
            && change.presented.is_some_and(|token| token.secret != session.lineage.secret)
        {
            return Err(ChangeRefusal::Unknown);
        }
        self.check(session)?;
        let stricter = session.tightened(&self.live_policies, self.now);
        if let Some(State::Ended { reason, .. }) =
            stricter.as_ref().map(|stricter| stricter.state(self.now))
        {
            return Ok(self.end(session, reason));
        }
        if let Some((asked, earlier)) = repeated {
            return match (asked.fingerprint == earlier.fingerprint, session.lineage.generation) {
                (true, 1) => Ok(ChangeDecision::Keep {
                    session: Box::new(session.clone()),
                    may_have_entry: true,
                }),
                // The client has certainly received the tokens, and nobody else may get the current
                // ones.
                (true, _) => Err(ChangeRefusal::RefreshedSince),
                (false, _) => Err(ChangeRefusal::RequestIdReused),
            };
        }
        if let Some(presented) = change.presented {
            match session.judge_refresh(&self.attempt(presented, &change.next)) {
                RefreshVerdict::Rotate(_) | RefreshVerdict::Replay => {}
                RefreshVerdict::Reuse => {
                    return Ok(self.end(session, EndReason::RefreshTokenReused));
                }
                RefreshVerdict::Expire(reason) => return Ok(self.end(session, reason)),
                RefreshVerdict::Refuse(refusal) => return Err(from_refresh_refusal(refusal)),
            }
        }
        if change.at.is_some_and(|at| at < session.authentication.at) {
            return Err(ChangeRefusal::Older);
        }
        if !change.allow_weaker
            && is_weaker(&change.acr, &session.authentication.acr, &change.acr_order)
        {
            return Err(ChangeRefusal::Weaker(session.authentication.acr.clone()));
        }
        Ok(ChangeDecision::Change {
            session: Box::new(change.applied_to(stricter.as_ref().unwrap_or(session), self.now)),
            entry: Some(BlacklistEntry::for_access_tokens(session, self.now)),
        })
    }

    fn end(&self, session: &Session, reason: EndReason) -> ChangeDecision {
        let ended = Ended { at: self.now, reason, note: Note::default() };
        let (session, entry) = BlacklistEntry::end(session.clone(), ended);
        ChangeDecision::End { session: Box::new(session), entry }
    }

    /// Returns an attempt to refresh the session with the presented token. It is only judged, so
    /// its values for the next tokens are not used.
    fn attempt(&self, presented: Presented, next: &NextTokens) -> RefreshAttempt {
        RefreshAttempt {
            session_id: self.session_id,
            generation: presented.generation,
            secret: presented.secret,
            scopes: vec![],
            device: None,
            reach: Arc::clone(&self.reach),
            now: self.now,
            next_access_token_id: next.access_token_id,
            next_key: next.key,
            live_policies: Arc::clone(&self.live_policies),
        }
    }

    fn update(&self, update: &Update, session: &Session) -> Result<ChangeDecision, ChangeRefusal> {
        self.check(session)?;
        if update.revision.is_some_and(|revision| revision != session.revision) {
            return Err(ChangeRefusal::OtherRevision);
        }
        let added = update.scopes.iter().flatten().find(|scope| !session.scopes.contains(scope));
        if let Some(scope) = added {
            return Err(ChangeRefusal::ScopeNotGranted(scope.clone()));
        }
        let next = update.applied_to(session);
        if next == *session {
            return Ok(ChangeDecision::Keep { session: Box::new(next), may_have_entry: false });
        }
        let stops_tokens = update.revoke_access_tokens.is_some();
        let entry = stops_tokens.then(|| BlacklistEntry::for_access_tokens(session, self.now));
        let revision = next.revision.saturating_add(1);
        Ok(ChangeDecision::Change { session: Box::new(Session { revision, ..next }), entry })
    }
}

impl Update {
    /// Returns a session with the new data, in the same revision.
    pub fn applied_to(&self, session: &Session) -> Session {
        let mut next = session.clone();
        next.metadata = self.metadata.clone().unwrap_or(next.metadata);
        next.device.label = self.label.clone().unwrap_or(next.device.label);
        next.claims = self.claims.clone().unwrap_or(next.claims);
        next.scopes = self.scopes.clone().unwrap_or(next.scopes);
        next.authentication.id = self.revoke_access_tokens.or(next.authentication.id);
        next
    }
}

impl Reauthentication {
    /// Returns a session after the reauthentication at `now`. Its refresh tokens carry another
    /// secret, so that no earlier one is accepted any more.
    pub fn applied_to(&self, session: &Session, now: Timestamp) -> Session {
        let mut next = session.clone();
        next.authentication = Authentication {
            id: Some(self.next.authentication_id),
            acr: self.acr.clone(),
            amr: self.amr.clone(),
            amr_verified_at: self.amr_verified_at.clone(),
            // Of two replicas, one may have a clock that is a little behind.
            at: self.at.unwrap_or_else(|| now.max(session.authentication.at)),
        };
        next.access_token_id = self.next.access_token_id;
        next.lineage = Lineage { generation: 1, secret: self.next.secret, key: self.next.key };
        next.refreshed_at = now;
        if let Some(lifetime) = next.policy.reauthentication_lifetime {
            let expires_at = now.plus(lifetime);
            if expires_at > next.expires_at {
                (next.extended_at, next.expires_at) = (Some(now), expires_at);
            }
        }
        next.idle_expires_at = next.policy.idle_expiry(now, next.expires_at);
        next.claims = self.claims.clone().unwrap_or(next.claims);
        if !self.scopes.is_empty() {
            next.scopes.clone_from(&self.scopes);
        }
        if let Some(device) = &self.device {
            next.device = session.device.described_as(device);
        }
        next.reauthentication.clone_from(&self.request);
        next.revision = next.revision.saturating_add(1);
        next
    }
}

/// Returns whether an `acr` is weaker than the present one. An empty `acr` is weaker than any
/// other. Two values of which one is not in the order cannot be compared.
fn is_weaker(acr: &Acr, present: &Acr, order: &[Acr]) -> bool {
    let rank = |acr: &Acr| order.iter().position(|known| known == acr);
    match (rank(acr), rank(present)) {
        (Some(new), Some(present)) => new < present,
        _ => acr.is_empty() && !present.is_empty(),
    }
}

fn from_refresh_refusal(refusal: RefreshRefusal) -> ChangeRefusal {
    match refusal {
        RefreshRefusal::Unknown => ChangeRefusal::Unknown,
        RefreshRefusal::NeverIssued { current } => ChangeRefusal::NeverIssued { current },
        RefreshRefusal::Ended => ChangeRefusal::Ended,
        RefreshRefusal::ExpiredIdle => ChangeRefusal::ExpiredIdle,
        RefreshRefusal::ExpiredAbsolute => ChangeRefusal::ExpiredAbsolute,
        RefreshRefusal::ScopeNotGranted(scope) => ChangeRefusal::ScopeNotGranted(scope),
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
