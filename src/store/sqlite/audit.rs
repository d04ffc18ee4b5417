//! The audit table. Rows are inserted many at a time, and deleted when they are old.

use diesel::{
    RunQueryDsl, SqliteConnection, insert_or_ignore_into, prelude::Insertable, sql_query,
    sql_types::BigInt,
};

use super::schema::audit;
use crate::{
    domain::{audit::AuditEntry, call_id::CallId, time::Timestamp},
    store::StoreError,
};

#[derive(Insertable)]
#[diesel(table_name = audit)]
struct AuditRow<'a> {
    at: i64,
    id: &'a [u8],
    action: &'static str,
    caller: &'a str,
    peer: Option<String>,
    tenant: Option<&'a str>,
    subject: Option<&'a str>,
    session_id: Option<&'a [u8]>,
    kid: Option<&'a str>,
    reason: Option<&'static str>,
    note: &'a str,
    sessions: Option<i64>,
    left_out: i64,
    x_request_id: Option<&'a str>,
    client_id: Option<&'a str>,
    created_before: Option<i64>,
    authenticated_before: Option<i64>,
}

impl<'a> From<&'a AuditEntry> for AuditRow<'a> {
    fn from(AuditEntry { id, record, left_out }: &'a AuditEntry) -> Self {
        Self {
            at: record.at.micros(),
            id: id.bytes(),
            action: record.action.as_str(),
            caller: record.caller.as_str(),
            peer: record.peer.map(|peer| peer.to_string()),
            tenant: record.tenant.as_deref(),
            subject: record.subject.as_deref(),
            session_id: record.session_id.as_ref().map(|id| id.bytes().as_slice()),
            kid: record.kid.as_deref(),
            reason: record.reason.map(|reason| reason.as_str()),
            note: &record.note,
            sessions: record.sessions,
            left_out: *left_out,
            x_request_id: record.call.as_ref().map(CallId::as_str),
            client_id: record.client_id.as_deref(),
            created_before: record.created_before.map(Timestamp::micros),
            authenticated_before: record.authenticated_before.map(Timestamp::micros),
        }
    }
}

pub fn append(connection: &mut SqliteConnection, entries: &[AuditEntry]) -> Result<(), StoreError> {
    for entry in entries {
        insert_or_ignore_into(audit::table).values(AuditRow::from(entry)).execute(connection)?;
    }
    Ok(())
}

pub fn delete_old(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
) -> Result<usize, StoreError> {
    let deleted = sql_query(
        "DELETE FROM audit
        WHERE (at, id) IN (SELECT at, id FROM audit WHERE at < ? ORDER BY at, id LIMIT ?)",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .execute(connection)?;
    Ok(deleted)
}
