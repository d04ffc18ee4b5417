//! The audit: who did what to whose sessions, why, when and from where, for those who ask later.
//!
//! A record names sessions, subjects and keys. It never holds a token, a secret, a claim's value or
//! a header's value.

use std::net::IpAddr;

use super::{
    caller::{Actor, Caller},
    ids::{AuditId, SessionId},
    key::KeyState,
    session::{EndReason, Session},
    text::{ANYBODY, CallerName, Note, SERVICE, Subject, Tenant, UNKNOWN},
    time::Timestamp,
};

/// The log target of the records.
pub const TARGET: &str = "countersign::audit";

/// An action that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuditAction {
    /// A session was created.
    SessionCreated,
    /// A session was ended because its subject had too many.
    SessionEvicted,
    /// A refresh token was used again after its grace, which ended its session.
    RefreshReused,
    /// One access token was stopped.
    TokenRevoked,
    /// A session was ended.
    SessionRevoked,
    /// The sessions of a subject were ended.
    SubjectRevoked,
    /// The sessions of a tenant were ended.
    TenantRevoked,
    /// A session was not refreshed in time, or came to the end of its lifetime.
    SessionExpired,
    /// A key was made, and is known to verifiers as the next one.
    KeyPublished,
    /// The next key took over.
    KeyRotated,
    /// A key makes no new tokens any more.
    KeyRetired,
    /// A key was made worthless.
    KeyRevoked,
    /// A key that was made elsewhere was put in as the next one.
    KeyImported,
    /// A key was sealed anew under another master key.
    KeyResealed,
    /// A key was deleted.
    KeyDropped,
    /// Callers or certificates were replaced while the service was running.
    ConfigurationReloaded,
    /// A backup became the database, or was declared to be it.
    DatabaseRestored,
    /// Somebody asked for what they may not do.
    CallerDenied,
}

impl AuditAction {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::SessionCreated,
        Self::SessionEvicted,
        Self::RefreshReused,
        Self::TokenRevoked,
        Self::SessionRevoked,
        Self::SubjectRevoked,
        Self::TenantRevoked,
        Self::SessionExpired,
        Self::KeyPublished,
        Self::KeyRotated,
        Self::KeyRetired,
        Self::KeyRevoked,
        Self::KeyImported,
        Self::KeyResealed,
        Self::KeyDropped,
        Self::ConfigurationReloaded,
        Self::DatabaseRestored,
        Self::CallerDenied,
    ];

    /// Returns what has become of a key that was made in this state, or has changed to it.
    pub fn of_key(state: KeyState) -> Self {
        match state {
            KeyState::Pending => Self::KeyPublished,
            KeyState::Active => Self::KeyRotated,
            KeyState::Retired => Self::KeyRetired,
            KeyState::Revoked => Self::KeyRevoked,
        }
    }

    /// The name under which it is logged and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionCreated => "session_created",
            Self::SessionEvicted => "session_evicted",
            Self::RefreshReused => "refresh_reused",
            Self::TokenRevoked => "token_revoked",
            Self::SessionRevoked => "session_revoked",
            Self::SubjectRevoked => "subject_revoked",
            Self::TenantRevoked => "tenant_revoked",
            Self::SessionExpired => "session_expired",
            Self::KeyPublished => "key_published",
            Self::KeyRotated => "key_rotated",
            Self::KeyRetired => "key_retired",
            Self::KeyRevoked => "key_revoked",
            Self::KeyImported => "key_imported",
            Self::KeyResealed => "key_resealed",
            Self::KeyDropped => "key_dropped",
            Self::ConfigurationReloaded => "configuration_reloaded",
            Self::DatabaseRestored => "database_restored",
            Self::CallerDenied => "caller_denied",
        }
    }

    /// The action of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

/// The one who did it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// One that the configuration names.
    Named(CallerName),
    /// Callers are not told apart: whoever reaches the port may do everything.
    Anybody,
    /// Somebody who did not say who it is, or could not prove it. The table has no row of theirs:
    /// anybody could fill it.
    Unknown,
    /// The service itself, by its schedule or by its command line.
    Service,
}

impl Who {
    /// The name under which it is logged and stored. No two callers have the same.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Anybody => ANYBODY,
            Self::Unknown => UNKNOWN,
            Self::Service => SERVICE,
        }
    }
}

/// The content of a record. Fields that say nothing about an action stay empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// The instant.
    pub at: Timestamp,
    /// The action.
    pub action: AuditAction,
    /// The one who did it.
    pub caller: Who,
    /// From where.
    pub peer: Option<IpAddr>,
    /// The tenant that it is about; empty for the default tenant.
    pub tenant: Option<Tenant>,
    /// Whose session it is about.
    pub subject: Option<Subject>,
    /// Which session.
    pub session_id: Option<SessionId>,
    /// Which key.
    pub kid: Option<String>,
    /// Why.
    pub reason: Option<EndReason>,
    /// The caller's note; of a denied caller, what was asked for.
    pub note: Note,
    /// The number of live sessions that ended.
    pub sessions: Option<i64>,
}

impl From<&Caller> for Who {
    fn from(caller: &Caller) -> Self {
        match &caller.name {
            name if **name == *ANYBODY => Self::Anybody,
            name => Self::Named(name.clone()),
        }
    }
}

impl From<&Actor> for Who {
    fn from(actor: &Actor) -> Self {
        Self::from(&*actor.caller)
    }
}

impl AuditRecord {
    /// A record of what an actor did.
    pub fn by(actor: &Actor, action: AuditAction, at: Timestamp) -> Self {
        Self::new(action, at, actor.into(), actor.peer)
    }

    /// A record that says who did what, when and from where. An IPv4 address is told as one,
    /// however the socket has it.
    pub fn new(action: AuditAction, at: Timestamp, caller: Who, peer: Option<IpAddr>) -> Self {
        Self {
            at,
            action,
            caller,
            peer: peer.map(|peer| peer.to_canonical()),
            tenant: None,
            subject: None,
            session_id: None,
            kid: None,
            reason: None,
            note: Note::default(),
            sessions: None,
        }
    }

    /// The same, about this session.
    #[must_use]
    pub fn about(self, session: &Session) -> Self {
        let (tenant, subject) = (session.tenant.clone(), session.subject.clone());
        Self { tenant: Some(tenant), subject: Some(subject), session_id: Some(session.id), ..self }
    }
}

/// A record as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its name in the log and in the table. Whoever writes it twice writes it once.
    pub id: AuditId,
    /// The record.
    pub record: AuditRecord,
    /// The number of records like it that came before and were not written down, because there were
    /// too many.
    pub left_out: i64,
}

/// A session that has expired without having been ended before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredSession {
    /// Which.
    pub id: SessionId,
    /// Its tenant; none if the row holds what no tenant is called.
    pub tenant: Option<Tenant>,
    /// Whose it was; none if the row holds what no subject is called.
    pub subject: Option<Subject>,
    /// The instant at which it expired.
    pub idle_expires_at: Timestamp,
    /// The instant at which it would have expired at the latest.
    pub expires_at: Timestamp,
}

impl From<ExpiredSession> for AuditEntry {
    /// The record of the end of a session that nobody ended. Its identifier derives from that of
    /// the session, so that whoever records it again adds nothing.
    fn from(expired: ExpiredSession) -> Self {
        let at = expired.idle_expires_at;
        let reason = if at < expired.expires_at {
            EndReason::ExpiredIdle
        } else {
            EndReason::ExpiredAbsolute
        };
        let record = AuditRecord {
            tenant: expired.tenant,
            subject: expired.subject,
            session_id: Some(expired.id),
            reason: Some(reason),
            sessions: Some(1),
            ..AuditRecord::new(AuditAction::SessionExpired, at, Who::Service, None)
        };
        Self { id: AuditId::of_session(at, expired.id), record, left_out: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::session::{
        State,
        tests::{START, session},
    };

    #[test]
    fn each_action_has_a_name_of_its_own_by_which_it_is_found() {
        let names = AuditAction::ALL.map(AuditAction::as_str);
        assert_eq!(names.map(AuditAction::from_name), AuditAction::ALL.map(Some));
        assert_eq!(HashSet::from(names).len(), names.len());
        assert!(
            names
                .iter()
                .all(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()))
        );
        assert_eq!(AuditAction::from_name("session_listed"), None);
    }

    #[test]
    fn no_caller_can_be_taken_for_another() {
        let named = CallerName::try_from("login".to_owned()).map(Who::Named).unwrap();
        let callers = [named, Who::Anybody, Who::Unknown, Who::Service];
        assert_eq!(
            callers.each_ref().map(Who::as_str),
            ["login", "anybody", "unknown", "countersign"]
        );
    }

    #[test]
    fn an_address_has_one_form() {
        let record = |peer: &str| {
            AuditRecord::new(
                AuditAction::CallerDenied,
                START,
                Who::Unknown,
                Some(peer.parse().unwrap()),
            )
            .peer
        };
        assert_eq!(record("::ffff:192.0.2.7"), record("192.0.2.7"));
        assert_eq!(record("2001:db8::7").unwrap().to_string(), "2001:db8::7");
    }

    #[test]
    fn a_session_that_expired_is_recorded_as_ending_then_for_the_reason_that_it_tells() {
        let session = session();
        let edges = [
            (session.idle_expires_at, EndReason::ExpiredIdle),
            (session.expires_at, EndReason::ExpiredAbsolute),
        ];
        for (idle_expires_at, reason) in edges {
            let session = Session { idle_expires_at, ..session.clone() };
            assert_eq!(
                session.state(idle_expires_at),
                State::Ended { at: idle_expires_at, reason }
            );
            let expired = ExpiredSession {
                id: session.id,
                tenant: Some(session.tenant.clone()),
                subject: Some(session.subject.clone()),
                idle_expires_at,
                expires_at: session.expires_at,
            };
            let entry = AuditEntry::from(expired.clone());
            assert_eq!((entry.record.at, entry.record.reason), (idle_expires_at, Some(reason)));
            assert_eq!(
                AuditEntry::from(expired.clone()).id,
                entry.id,
                "whoever records it again adds nothing"
            );
            let other = ExpiredSession { id: SessionId::new(START, [2; 10]), ..expired };
            assert_ne!(AuditEntry::from(other).id, entry.id);
        }
    }

    #[test]
    fn a_record_about_a_session_says_whose_it_is() {
        let session = session();
        let record = AuditRecord::new(AuditAction::SessionCreated, START, Who::Anybody, None)
            .about(&session);
        assert_eq!((record.tenant, record.subject), (Some(session.tenant), Some(session.subject)));
        assert_eq!(
            (record.session_id, record.action),
            (Some(session.id), AuditAction::SessionCreated)
        );
    }
}
