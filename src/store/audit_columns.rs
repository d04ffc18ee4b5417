//! The columns of a record of the audit, as both engines read them.

use std::fmt;

use super::StoreError;
use crate::domain::{
    audit::{AuditAction, AuditEntry, AuditRecord},
    call_id::CallId,
    ids::{AuditId, SessionId},
    session::EndReason,
    time::Timestamp,
    who::Who,
};

/// The columns. Those with names of actions, callers and reasons are not checked yet.
#[derive(Clone, Debug)]
pub struct AuditColumns {
    /// The instant of the action.
    pub at: Timestamp,
    /// The identifier of the record.
    pub id: AuditId,
    /// The session.
    pub session_id: Option<SessionId>,
    /// The number of live sessions that ended.
    pub sessions: Option<i64>,
    /// The number of records that were left out.
    pub left_out: i64,
    /// The address that the call came from.
    pub peer: Option<String>,
    /// The name of the action.
    pub action: String,
    /// The name of the party that acted.
    pub caller: String,
    /// The tenant.
    pub tenant: Option<String>,
    /// The subject.
    pub subject: Option<String>,
    /// The key.
    pub kid: Option<String>,
    /// The name of the end reason.
    pub reason: Option<String>,
    /// The note.
    pub note: String,
    /// The identifier of the call.
    pub x_request_id: Option<String>,
    /// The client.
    pub client_id: Option<String>,
    /// The instant before which the revoked sessions were created.
    pub created_before: Option<Timestamp>,
    /// The instant before which the users of the revoked sessions authenticated.
    pub authenticated_before: Option<Timestamp>,
}

impl TryFrom<AuditColumns> for AuditEntry {
    type Error = StoreError;

    fn try_from(columns: AuditColumns) -> Result<Self, StoreError> {
        let AuditColumns { action, reason, .. } = &columns;
        let action = AuditAction::from_name(action)
            .ok_or_else(|| damaged("action", format_args!("holds the unknown name {action:?}")))?;
        let reason = match reason {
            None => None,
            Some(name) => Some(EndReason::from_name(name).ok_or_else(|| {
                damaged("reason", format_args!("holds the unknown name {name:?}"))
            })?),
        };
        let peer = columns.peer.map(|peer| peer.parse().map_err(|error| damaged("peer", error)));
        let caller = Who::from_name(columns.caller).map_err(|error| damaged("caller", error))?;
        let call = columns.x_request_id.and_then(|call| CallId::read(call.as_bytes()));
        let record = AuditRecord {
            call,
            tenant: columns.tenant.map(|tenant| text("tenant", tenant)).transpose()?,
            subject: columns.subject.map(|subject| text("subject", subject)).transpose()?,
            session_id: columns.session_id,
            kid: columns.kid,
            reason,
            note: text("note", columns.note)?,
            sessions: columns.sessions,
            client_id: columns.client_id.map(|client| text("client_id", client)).transpose()?,
            created_before: columns.created_before,
            authenticated_before: columns.authenticated_before,
            ..AuditRecord::new(action, columns.at, caller, peer.transpose()?)
        };
        Ok(Self { id: columns.id, record, left_out: columns.left_out })
    }
}

fn text<T>(column: &str, text: String) -> Result<T, StoreError>
where
    T: TryFrom<String>,
    T::Error: fmt::Display,
{
    T::try_from(text).map_err(|error| damaged(column, error))
}

/// Returns the error for a column whose value its domain type does not allow.
fn damaged(column: &str, problem: impl fmt::Display) -> StoreError {
    StoreError::Damaged(format!("audit.{column} {problem}"))
}
