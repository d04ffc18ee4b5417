//! The audit log. Each record says who did what to whose sessions, why, when and from where.
//!
//! A record names sessions, subjects and keys. It never holds a token, a secret, a claim's value,
//! or the value of a header other than the identifier of the call.

use std::net::IpAddr;

use super::{
    call_id::CallId,
    caller::Actor,
    ids::{AuditId, SessionId},
    key::KeyState,
    session::{EndReason, Session},
    text::{ClientId, Note, Subject, Tenant},
    time::Timestamp,
    who::Who,
};

/// The `tracing` target under which the records are logged.
pub const TARGET: &str = "countersign::audit";

/// An action that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuditAction {
    /// A session was created.
    SessionCreated,
    /// A session of another system was taken over.
    SessionImported,
    /// The user of a session authenticated again.
    SessionReauthenticated,
    /// Data of a session were changed.
    SessionUpdated,
    /// A session was ended because its subject had reached its quota.
    SessionEvicted,
    /// A refresh token was used again after its grace period, which ended its session.
    RefreshReused,
    /// One access token was revoked.
    TokenRevoked,
    /// One session was revoked.
    SessionRevoked,
    /// All sessions of a subject were revoked.
    SubjectRevoked,
    /// All sessions of a tenant were revoked.
    TenantRevoked,
    /// The sessions of a client, or those that were created or authenticated before an instant,
    /// were revoked, in a tenant or in all tenants.
    SessionsRevoked,
    /// A session expired: it was not refreshed in time, or reached the end of its lifetime.
    SessionExpired,
    /// A key was generated and published to verifiers as the next one.
    KeyPublished,
    /// The next key became the active one.
    KeyRotated,
    /// A key was retired: it issues no new tokens any more.
    KeyRetired,
    /// A key was revoked: tokens issued under it are no longer accepted.
    KeyRevoked,
    /// A key that was generated elsewhere was imported as the next one.
    KeyImported,
    /// A key was sealed again under another master key.
    KeyResealed,
    /// A key was deleted.
    KeyDropped,
    /// Settings or the certificates were reloaded while the service was running.
    ConfigurationReloaded,
    /// A backup was restored as the database, or the database was declared to be a restored backup.
    DatabaseRestored,
    /// A caller asked for an operation that it may not perform.
    CallerDenied,
}

impl AuditAction {
    /// All actions.
    pub const ALL: [Self; 22] = [
        Self::SessionCreated,
        Self::SessionImported,
        Self::SessionReauthenticated,
        Self::SessionUpdated,
        Self::SessionEvicted,
        Self::RefreshReused,
        Self::TokenRevoked,
        Self::SessionRevoked,
        Self::SubjectRevoked,
        Self::TenantRevoked,
        Self::SessionsRevoked,
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

    /// Returns the action that is recorded when a key is created in this state or changes to it.
    pub fn of_key(state: KeyState) -> Self {
        match state {
            KeyState::Pending => Self::KeyPublished,
            KeyState::Active => Self::KeyRotated,
            KeyState::Retired => Self::KeyRetired,
            KeyState::Revoked => Self::KeyRevoked,
        }
    }

    /// Returns the name under which the action is logged and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SessionCreated => "session_created",
            Self::SessionImported => "session_imported",
            Self::SessionReauthenticated => "session_reauthenticated",
            Self::SessionUpdated => "session_updated",
            Self::SessionEvicted => "session_evicted",
            Self::RefreshReused => "refresh_reused",
            Self::TokenRevoked => "token_revoked",
            Self::SessionRevoked => "session_revoked",
            Self::SubjectRevoked => "subject_revoked",
            Self::TenantRevoked => "tenant_revoked",
            Self::SessionsRevoked => "sessions_revoked",
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

    /// Returns the action with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

/// The content of a record. Fields that do not apply to an action stay empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// The instant of the action.
    pub at: Timestamp,
    /// The action.
    pub action: AuditAction,
    /// The party that performed the action.
    pub caller: Who,
    /// The address that the call came from.
    pub peer: Option<IpAddr>,
    /// The identifier of the call, if the action was asked for by a call that has one.
    pub call: Option<CallId>,
    /// The tenant of the sessions concerned; empty for the default tenant. None also if the
    /// sessions of all tenants are concerned.
    pub tenant: Option<Tenant>,
    /// The subject of the sessions concerned.
    pub subject: Option<Subject>,
    /// The session concerned.
    pub session_id: Option<SessionId>,
    /// The key concerned.
    pub kid: Option<String>,
    /// The reason for the action.
    pub reason: Option<EndReason>,
    /// The caller's note. In the record of a denied call, it says what was denied.
    pub note: Note,
    /// The number of live sessions that ended; for sessions of all tenants, the number that the
    /// dry run counted.
    pub sessions: Option<i64>,
    /// The client whose sessions were revoked.
    pub client_id: Option<ClientId>,
    /// The instant before which the revoked sessions were created, if the caller gave one.
    pub created_before: Option<Timestamp>,
    /// The instant before which the users of the revoked sessions authenticated, if the caller gave
    /// one.
    pub authenticated_before: Option<Timestamp>,
}

impl AuditRecord {
    /// Creates a record of an action that an actor performed.
    pub fn by(actor: &Actor, action: AuditAction, at: Timestamp) -> Self {
        let call = actor.call.clone();
        Self { call, ..Self::new(action, at, actor.into(), actor.peer) }
    }

    /// Creates a record that says who did what, when and from where. An IPv4-mapped IPv6 address,
    /// as dual-stack sockets report it, is recorded as the IPv4 address.
    pub fn new(action: AuditAction, at: Timestamp, caller: Who, peer: Option<IpAddr>) -> Self {
        Self {
            at,
            action,
            caller,
            peer: peer.map(|peer| peer.to_canonical()),
            call: None,
            tenant: None,
            subject: None,
            session_id: None,
            kid: None,
            reason: None,
            note: Note::default(),
            sessions: None,
            client_id: None,
            created_before: None,
            authenticated_before: None,
        }
    }

    /// Fills in the key concerned.
    #[must_use]
    pub fn about_key(self, kid: &str) -> Self {
        Self { kid: Some(kid.to_owned()), ..self }
    }

    /// Fills in the tenant, the subject and the identifier of a session.
    #[must_use]
    pub fn about(self, session: &Session) -> Self {
        let (tenant, subject) = (session.tenant.clone(), session.subject.clone());
        Self { tenant: Some(tenant), subject: Some(subject), session_id: Some(session.id), ..self }
    }
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The identifier of the record in the log and in the table. Storing a record a second time
    /// changes nothing.
    pub id: AuditId,
    /// The record.
    pub record: AuditRecord,
    /// The number of records that were not stored before this one, because the caller was denied
    /// too often.
    pub left_out: i64,
}

/// A session that expired and had not been ended before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredSession {
    /// The identifier of the session.
    pub id: SessionId,
    /// The tenant, or `None` if the value in the row is not a valid tenant.
    pub tenant: Option<Tenant>,
    /// The subject, or `None` if the value in the row is not a valid subject.
    pub subject: Option<Subject>,
    /// The instant at which the session expired.
    pub idle_expires_at: Timestamp,
    /// The end of the session's lifetime, at which it would have expired even if it had been
    /// refreshed.
    pub expires_at: Timestamp,
}

impl From<ExpiredSession> for AuditEntry {
    /// Creates the record of a session's expiry. The identifier of the record is derived from the
    /// identifier of the session, so that recording the expiry again adds no second row.
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
    fn every_audit_action_has_a_unique_name_from_which_it_is_read_back() {
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
    fn an_ipv4_mapped_address_is_recorded_as_ipv4() {
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
    fn the_record_of_an_expired_session_has_the_time_and_the_reason_of_its_expiry() {
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
                "recording it again adds no second row"
            );
            let other = ExpiredSession { id: SessionId::new(START, [2; 10]), ..expired };
            assert_ne!(AuditEntry::from(other).id, entry.id);
        }
    }

    #[test]
    fn a_record_about_a_session_names_its_tenant_and_subject() {
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
