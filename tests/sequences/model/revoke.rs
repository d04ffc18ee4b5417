//! Revoke, and the cut-offs that revocations of many sessions leave behind.

use countersign::proto::EndReason;
use countersign_test_support::refusal::Refusal;

use super::{AccessToken, Micros, Model, RefreshToken, SECOND, Session, Whom, not_found};

/// A millisecond, which is the unit in which creations are compared.
pub const MILLISECOND: Micros = 1000;

/// The target of a revocation.
#[derive(Clone, Debug)]
pub enum Target {
    AccessToken { token: AccessToken, only: bool },
    RefreshToken(Option<RefreshToken>),
    Session(usize),
    Subject { tenant: u8, subject: u8, except: Option<usize> },
    Subjects { tenant: u8, subjects: Vec<u8> },
    Tenant(u8),
    Sessions { tenant: Option<u8>, client: Option<u8>, boundary: Boundary },
}

/// The sessions of a scope that are revoked.
#[derive(Clone, Copy, Debug)]
pub enum Boundary {
    /// Those that exist.
    Now,
    CreatedBefore(Micros),
    AuthenticatedBefore(Micros),
}

/// The owners of sessions. None is all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scope {
    tenant: Option<u8>,
    subject: Option<u8>,
    client: Option<u8>,
}

impl Scope {
    fn has(&self, whom: Whom) -> bool {
        self.tenant.is_none_or(|tenant| tenant == whom.tenant)
            && self.subject.is_none_or(|subject| subject == whom.subject)
            && self.client.is_none_or(|client| client == whom.client)
    }
}

/// The sessions of a scope from before an instant.
#[derive(Clone, Copy, Debug)]
pub struct CutOff {
    scope: Scope,
    before: Before,
}

/// The first instant that a cut-off does not cover.
#[derive(Clone, Copy, Debug)]
pub enum Before {
    /// Of a creation, in whole milliseconds.
    Created(Micros),
    Authenticated(Micros),
}

impl CutOff {
    /// Returns its instant, if it compares the authentication or the creation as asked.
    pub(super) fn before(&self, by_authentication: bool) -> Option<Micros> {
        match (self.before, by_authentication) {
            (Before::Created(before), false) | (Before::Authenticated(before), true) => {
                Some(before)
            }
            _ => None,
        }
    }

    /// Returns whether a session of an owner is covered.
    fn covers(&self, whom: Whom, identified_at: Micros, authenticated_at: Micros) -> bool {
        self.scope.has(whom)
            && match self.before {
                Before::Created(before) => identified_at < before,
                Before::Authenticated(before) => authenticated_at < before,
            }
    }
}

pub fn to_millisecond(instant: Micros) -> Micros {
    instant.div_euclid(MILLISECOND) * MILLISECOND
}

impl Target {
    /// Returns the scopes whose sessions are revoked; none for a single session or token.
    pub fn scopes(&self) -> Vec<Scope> {
        let nobody = Scope { tenant: None, subject: None, client: None };
        match *self {
            Self::AccessToken { .. } | Self::RefreshToken(_) | Self::Session(_) => vec![],
            Self::Subject { tenant, subject, .. } => {
                vec![Scope { tenant: Some(tenant), subject: Some(subject), ..nobody }]
            }
            Self::Subjects { tenant, ref subjects } => {
                let of = |&subject: &u8| Scope {
                    tenant: Some(tenant),
                    subject: Some(subject),
                    ..nobody
                };
                subjects.iter().map(of).collect()
            }
            Self::Tenant(tenant) => vec![Scope { tenant: Some(tenant), ..nobody }],
            Self::Sessions { tenant, client, .. } => vec![Scope { tenant, client, ..nobody }],
        }
    }

    fn boundary(&self) -> Boundary {
        match self {
            Self::Sessions { boundary, .. } => *boundary,
            _ => Boundary::Now,
        }
    }

    /// Returns whether the answer has the number of sessions. The sessions of other targets are not
    /// counted before the acknowledgement.
    pub fn is_counted(&self) -> bool {
        !matches!(self, Self::Subjects { .. } | Self::Sessions { .. })
    }

    /// Returns whether sessions of all tenants are revoked, which needs a confirmation.
    pub fn is_everywhere(&self) -> bool {
        matches!(self, Self::Sessions { tenant: None, .. })
    }

    /// Refuses an instant that is in the future, or finer than what it is compared with.
    fn check(&self, now: Micros) -> Result<(), Refusal> {
        if let Self::Sessions { tenant: Some(_), client: None, boundary: Boundary::Now } = self {
            return Err(Refusal::field("sessions"));
        }
        let (field, before, unit) = match self.boundary() {
            Boundary::Now => return Ok(()),
            Boundary::CreatedBefore(at) => ("sessions.created_before", at, MILLISECOND),
            Boundary::AuthenticatedBefore(at) => ("sessions.authenticated_before", at, SECOND),
        };
        match before <= now && before.rem_euclid(unit) == 0 {
            true => Ok(()),
            false => Err(Refusal::field(field)),
        }
    }
}

impl Model {
    /// Returns the cut-offs of a revocation of many sessions.
    fn new_cut_offs(&self, target: &Target) -> Vec<CutOff> {
        let cut_off = |scope: Scope| {
            let before = match target.boundary() {
                Boundary::Now => Before::Created(self.after_all(scope)),
                Boundary::CreatedBefore(before) => Before::Created(before),
                Boundary::AuthenticatedBefore(before) => Before::Authenticated(before),
            };
            CutOff { scope, before }
        };
        target.scopes().into_iter().map(cut_off).collect()
    }

    /// Returns the first millisecond after the present one and after all sessions that exist. The
    /// sessions of a client are not looked for, but only those of its tenant.
    fn after_all(&self, scope: Scope) -> Micros {
        let searched = Scope { client: None, ..scope };
        let found = self.sessions.iter().filter(|session| searched.has(session.whom));
        let newest = found.map(|session| session.identified_at).max();
        to_millisecond(self.now.max(newest.unwrap_or_default())) + MILLISECOND
    }

    /// Returns the instant in the identifier of a session that is created now. It is the first one
    /// that no cut-off covers.
    pub(super) fn identified_at(&self, whom: Whom) -> Micros {
        let covering = self.cut_offs.iter().filter(|cut_off| cut_off.scope.has(whom));
        let befores = covering.filter_map(|cut_off| match cut_off.before {
            Before::Created(before) => Some(before),
            Before::Authenticated(_) => None,
        });
        befores.fold(to_millisecond(self.now), Micros::max)
    }

    /// Returns whether a cut-off covers a session.
    pub(super) fn is_revoked(
        &self,
        whom: Whom,
        identified_at: Micros,
        authenticated_at: Micros,
    ) -> bool {
        self.cut_offs.iter().any(|one| one.covers(whom, identified_at, authenticated_at))
    }

    /// Returns the live sessions that are revoked.
    fn affected(&self, target: &Target) -> Result<Vec<usize>, Refusal> {
        let affected: Vec<usize> = match target {
            Target::AccessToken { only: true, .. } => vec![],
            Target::AccessToken { token, .. } => vec![token.session],
            Target::RefreshToken(token) => {
                let token = self.known(token.as_ref()).ok_or_else(|| Refusal::field("token"))?;
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
            many => {
                many.check(self.now)?;
                let cut_offs = self.new_cut_offs(many);
                let spared = match many {
                    Target::Subject { except, .. } => *except,
                    _ => None,
                };
                let is_covered = |session: &Session| {
                    let Session { whom, identified_at, authenticated_at, .. } = *session;
                    cut_offs.iter().any(|one| one.covers(whom, identified_at, authenticated_at))
                };
                (0..self.sessions.len())
                    .filter(|&index| Some(index) != spared && is_covered(&self.sessions[index]))
                    .collect()
            }
        };
        let is_live = |index: &usize| self.sessions[*index].is_live(self.now);
        Ok(affected.into_iter().filter(is_live).collect())
    }

    /// A dry run of a revocation. Returns the number of sessions that would end.
    pub fn dry_run(&self, target: &Target) -> Result<usize, Refusal> {
        match target.scopes().is_empty() {
            true => Err(Refusal::field("dry_run")),
            false => Ok(self.affected(target)?.len()),
        }
    }

    /// Revoke. Returns the number of sessions that ended.
    pub fn revoke(
        &mut self,
        target: &Target,
        is_confirmed: bool,
        (reason, note): (EndReason, &'static str),
    ) -> Result<usize, Refusal> {
        let affected = self.affected(target)?;
        if target.is_everywhere() && !is_confirmed {
            return Err(Refusal::field("confirmation"));
        }
        if let Target::AccessToken { token, only: true } = target {
            self.revoked_tokens.insert(token.id);
        }
        self.cut_offs.extend(self.new_cut_offs(target));
        for &index in &affected {
            self.sessions[index].finish(self.now, reason, note);
        }
        Ok(affected.len())
    }
}
