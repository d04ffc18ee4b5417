//! Cut-offs: revocations of many sessions at once, by a time that each session has. A session and
//! its access tokens carry everything that decides whether a cut-off covers them.

use std::hash::{Hash, Hasher};

use crate::{
    claims::AccessClaims,
    ids::SessionId,
    text::{ClientId, Subject, Tenant, TextError},
    time::Timestamp,
};

/// The time of a session that a cut-off compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// The time of creation, in the milliseconds that the session's identifier has.
    Creation,
    /// The time at which the user authenticated, in the whole seconds that access tokens have
    /// (`auth_time`).
    Authentication,
}

/// The sessions among which a cut-off chooses by their time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The sessions of all tenants.
    Everywhere,
    /// The sessions of a tenant.
    Tenant(Tenant),
    /// The sessions of a subject.
    Subject(Tenant, Subject),
    /// The sessions that a tenant has with a client.
    Client(Tenant, ClientId),
    /// The sessions that all tenants have with a client.
    ClientEverywhere(ClientId),
}

impl Scope {
    /// Returns the tenant, or none if the scope contains sessions of all tenants.
    pub fn tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Tenant(tenant) | Self::Subject(tenant, _) | Self::Client(tenant, _) => {
                Some(tenant)
            }
            Self::Everywhere | Self::ClientEverywhere(_) => None,
        }
    }

    /// Returns the subject, if the scope contains only the sessions of one.
    pub fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Subject(_, subject) => Some(subject),
            _ => None,
        }
    }

    /// Returns the client, if the scope contains only the sessions of one.
    pub fn client_id(&self) -> Option<&ClientId> {
        match self {
            Self::Client(_, client_id) | Self::ClientEverywhere(client_id) => Some(client_id),
            _ => None,
        }
    }
}

/// The kinds of cut-offs: each scope with each basis, except that a subject has no cut-off by
/// authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutOffKind {
    /// The sessions of a tenant, by creation.
    Tenant,
    /// The sessions of a subject, by creation.
    Subject,
    /// The sessions of all tenants, by creation.
    Everywhere,
    /// The sessions of a tenant with a client, by creation.
    Client,
    /// The sessions of all tenants with a client, by creation.
    ClientEverywhere,
    /// The sessions of a tenant, by authentication.
    AuthenticatedTenant,
    /// The sessions of all tenants, by authentication.
    AuthenticatedEverywhere,
    /// The sessions of a tenant with a client, by authentication.
    AuthenticatedClient,
    /// The sessions of all tenants with a client, by authentication.
    AuthenticatedClientEverywhere,
}

impl CutOffKind {
    /// All kinds, each at the position that its discriminant says.
    pub const ALL: [Self; 9] = [
        Self::Tenant,
        Self::Subject,
        Self::Everywhere,
        Self::Client,
        Self::ClientEverywhere,
        Self::AuthenticatedTenant,
        Self::AuthenticatedEverywhere,
        Self::AuthenticatedClient,
        Self::AuthenticatedClientEverywhere,
    ];

    /// Returns the name by which the blacklist stores the kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Subject => "subject",
            Self::Everywhere => "all_everywhere",
            Self::Client => "all_of_client",
            Self::ClientEverywhere => "all_of_client_everywhere",
            Self::AuthenticatedTenant => "all_authenticated_of_tenant",
            Self::AuthenticatedEverywhere => "all_authenticated_everywhere",
            Self::AuthenticatedClient => "all_authenticated_of_client",
            Self::AuthenticatedClientEverywhere => "all_authenticated_of_client_everywhere",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Returns the time that cut-offs of this kind compare.
    pub const fn basis(self) -> Basis {
        match self {
            Self::Tenant
            | Self::Subject
            | Self::Everywhere
            | Self::Client
            | Self::ClientEverywhere => Basis::Creation,
            Self::AuthenticatedTenant
            | Self::AuthenticatedEverywhere
            | Self::AuthenticatedClient
            | Self::AuthenticatedClientEverywhere => Basis::Authentication,
        }
    }
}

/// The identity of a cut-off: the sessions among which it chooses, and the time that it compares.
/// The blacklist has at most one cut-off for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOffKey {
    scope: Scope,
    basis: Basis,
}

/// The hash must be the one of [`KeyRef`], by which maps are looked up.
impl Hash for CutOffKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

/// A cut-off of a subject cannot compare authentications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a subject has no cut-off by authentication")]
pub struct NoSuchKind;

impl CutOffKey {
    /// Creates the key of a cut-off by creation.
    pub fn created(scope: Scope) -> Self {
        Self { scope, basis: Basis::Creation }
    }

    /// Creates the key of a cut-off by authentication.
    pub fn authenticated(scope: Scope) -> Result<Self, NoSuchKind> {
        match scope {
            Scope::Subject(..) => Err(NoSuchKind),
            scope => Ok(Self { scope, basis: Basis::Authentication }),
        }
    }

    /// Reads a key from the name of its kind's scope and its [`KeyRef::text`].
    pub fn read(kind: CutOffKind, text: &str) -> Result<Self, TextError> {
        let (tenant, name) = text.split_once(SEPARATOR).unwrap_or((text, ""));
        let tenant = || Tenant::try_from(tenant.to_owned());
        let client_id = |text: &str| ClientId::try_from(text.to_owned());
        let scope = match kind {
            CutOffKind::Everywhere | CutOffKind::AuthenticatedEverywhere => Scope::Everywhere,
            CutOffKind::Tenant | CutOffKind::AuthenticatedTenant => Scope::Tenant(tenant()?),
            CutOffKind::Subject => Scope::Subject(tenant()?, Subject::try_from(name.to_owned())?),
            CutOffKind::Client | CutOffKind::AuthenticatedClient => {
                Scope::Client(tenant()?, client_id(name)?)
            }
            CutOffKind::ClientEverywhere | CutOffKind::AuthenticatedClientEverywhere => {
                Scope::ClientEverywhere(client_id(text)?)
            }
        };
        Ok(Self { scope, basis: kind.basis() })
    }

    /// Returns the sessions among which the cut-off chooses.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns the time that the cut-off compares.
    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// Returns the kind.
    pub fn kind(&self) -> CutOffKind {
        match (&self.scope, self.basis) {
            (Scope::Subject(..), _) => CutOffKind::Subject,
            (Scope::Tenant(_), Basis::Creation) => CutOffKind::Tenant,
            (Scope::Everywhere, Basis::Creation) => CutOffKind::Everywhere,
            (Scope::Client(..), Basis::Creation) => CutOffKind::Client,
            (Scope::ClientEverywhere(_), Basis::Creation) => CutOffKind::ClientEverywhere,
            (Scope::Tenant(_), Basis::Authentication) => CutOffKind::AuthenticatedTenant,
            (Scope::Everywhere, Basis::Authentication) => CutOffKind::AuthenticatedEverywhere,
            (Scope::Client(..), Basis::Authentication) => CutOffKind::AuthenticatedClient,
            (Scope::ClientEverywhere(_), Basis::Authentication) => {
                CutOffKind::AuthenticatedClientEverywhere
            }
        }
    }

    /// Returns the last session that a cut-off with this key may cover. A cut-off by authentication
    /// may cover a session whenever it was created.
    pub fn last_session(&self, cut_off: CutOff) -> SessionId {
        match self.basis {
            Basis::Creation => SessionId::last_of_millisecond(cut_off.up_to),
            Basis::Authentication => SessionId::from_bytes([0xff; 16]),
        }
    }

    /// Returns the latest authentication that a cut-off with this key covers, if it compares
    /// authentications.
    pub fn last_authentication(&self, cut_off: CutOff) -> Option<Timestamp> {
        match self.basis {
            Basis::Creation => None,
            Basis::Authentication => Some(cut_off.up_to),
        }
    }

    /// Returns the key without its texts.
    pub fn borrowed(&self) -> KeyRef<'_> {
        let (tenant, name): (&str, &str) = match &self.scope {
            Scope::Everywhere => ("", ""),
            Scope::Tenant(tenant) => (tenant, ""),
            Scope::Subject(tenant, subject) => (tenant, subject),
            Scope::Client(tenant, client_id) => (tenant, client_id),
            Scope::ClientEverywhere(client_id) => ("", client_id),
        };
        KeyRef { kind: self.kind(), tenant, name }
    }
}

/// The separator between a tenant and the name of a subject or client. It is a control character,
/// so none of them can contain it.
const SEPARATOR: char = '\u{1f}';

/// A [`CutOffKey`] that borrows its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    /// The kind.
    pub kind: CutOffKind,
    /// The tenant; empty for all tenants, or for the default tenant.
    tenant: &'a str,
    /// The subject or the client; empty if the kind has none.
    name: &'a str,
}

impl KeyRef<'_> {
    /// Returns the text that, together with the kind, identifies the entry in the blacklist.
    pub fn text(&self) -> String {
        match self.kind {
            CutOffKind::Tenant
            | CutOffKind::AuthenticatedTenant
            | CutOffKind::Everywhere
            | CutOffKind::AuthenticatedEverywhere => self.tenant.to_owned(),
            CutOffKind::Subject | CutOffKind::Client | CutOffKind::AuthenticatedClient => {
                format!("{}{SEPARATOR}{}", self.tenant, self.name)
            }
            CutOffKind::ClientEverywhere | CutOffKind::AuthenticatedClientEverywhere => {
                self.name.to_owned()
            }
        }
    }
}

/// The instant up to which sessions are covered, in the milliseconds or seconds of the compared
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CutOff {
    /// The latest time that is covered.
    pub up_to: Timestamp,
    /// A session that is not covered, although it was created before the cut-off. Only the cut-off
    /// of a subject has one.
    pub spared: Option<SessionId>,
}

impl CutOff {
    /// Creates a cut-off that spares no session.
    pub fn up_to(up_to: Timestamp) -> Self {
        Self { up_to, spared: None }
    }

    /// Returns whether a cut-off by creation covers a session.
    pub fn covers_created(&self, session: SessionId) -> bool {
        session.created_millis() <= self.up_to.millis() && self.spared != Some(session)
    }

    /// Returns whether a cut-off of this kind covers a session, whose scope is that of the cut-off.
    pub fn covers(&self, kind: CutOffKind, session: &Coverable<'_>) -> bool {
        match kind.basis() {
            Basis::Creation => self.covers_created(session.id),
            Basis::Authentication => session.authenticated_at <= self.up_to,
        }
    }

    /// Returns the cut-off that covers exactly the sessions that at least one of the two covers.
    pub fn union(self, other: Self) -> Self {
        let (earlier, later) =
            if self.up_to <= other.up_to { (self, other) } else { (other, self) };
        let spared = later.spared.filter(|spared| !earlier.covers_created(*spared));
        Self { spared, ..later }
    }
}

/// The parts of a session, or of one of its access tokens, by which cut-offs cover it.
#[derive(Clone, Copy, Debug)]
pub struct Coverable<'a> {
    /// The session.
    pub id: SessionId,
    /// The tenant.
    pub tenant: &'a str,
    /// The subject.
    pub subject: &'a str,
    /// The client.
    pub client_id: &'a str,
    /// The time at which the user authenticated. Whether it has fractions of a second makes no
    /// difference, because cut-offs by authentication end just before a whole second.
    pub authenticated_at: Timestamp,
}

impl<'a> Coverable<'a> {
    /// Returns the key of the only cut-off of this kind that may cover the session.
    pub fn key(&self, kind: CutOffKind) -> KeyRef<'a> {
        let (tenant, name) = match kind {
            CutOffKind::Everywhere | CutOffKind::AuthenticatedEverywhere => ("", ""),
            CutOffKind::Tenant | CutOffKind::AuthenticatedTenant => (self.tenant, ""),
            CutOffKind::Subject => (self.tenant, self.subject),
            CutOffKind::Client | CutOffKind::AuthenticatedClient => (self.tenant, self.client_id),
            CutOffKind::ClientEverywhere | CutOffKind::AuthenticatedClientEverywhere => {
                ("", self.client_id)
            }
        };
        KeyRef { kind, tenant, name }
    }
}

impl<'a> From<&'a AccessClaims> for Coverable<'a> {
    fn from(claims: &'a AccessClaims) -> Self {
        Self {
            id: claims.session_id,
            tenant: &claims.tenant,
            subject: &claims.subject,
            client_id: &claims.client_id,
            authenticated_at: claims.authenticated_at,
        }
    }
}

#[cfg(test)]
#[path = "cut_off_tests.rs"]
mod tests;
