//! Searches the audit table.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, prelude::Queryable,
    sqlite::Sqlite,
};
use diesel_async::RunQueryDsl;

use super::{Connection, schema::audit};
use crate::{
    domain::{
        audit::AuditEntry,
        ids::{AuditId, SessionId},
        search::{AuditPlace, AuditQuery, MOST_READ, Part},
        time::Timestamp,
    },
    store::{StoreError, audit_columns::AuditColumns},
};

type Query<'a> = audit::BoxedQuery<'a, Sqlite>;

#[derive(Queryable)]
struct FoundRow {
    at: i64,
    id: Vec<u8>,
    session_id: Option<Vec<u8>>,
    sessions: Option<i64>,
    left_out: i64,
    peer: Option<String>,
    action: String,
    caller: String,
    tenant: Option<String>,
    subject: Option<String>,
    kid: Option<String>,
    reason: Option<String>,
    note: String,
    x_request_id: Option<String>,
    client_id: Option<String>,
    created_before: Option<i64>,
    authenticated_before: Option<i64>,
}

fn id(column: &str, bytes: &[u8]) -> Result<[u8; 16], StoreError> {
    let problem = || format!("audit.{column} has {} bytes instead of 16", bytes.len());
    bytes.try_into().map_err(|_| StoreError::Damaged(problem()))
}

fn audit_id(bytes: &[u8]) -> Result<AuditId, StoreError> {
    id("id", bytes).map(AuditId::from_bytes)
}

impl FoundRow {
    fn entry(self) -> Result<AuditEntry, StoreError> {
        let session_id = self.session_id.map(|bytes| id("session_id", &bytes)).transpose()?;
        AuditEntry::try_from(AuditColumns {
            at: Timestamp::from_micros(self.at),
            id: audit_id(&self.id)?,
            session_id: session_id.map(SessionId::from_bytes),
            sessions: self.sessions,
            left_out: self.left_out,
            peer: self.peer,
            action: self.action,
            caller: self.caller,
            tenant: self.tenant,
            subject: self.subject,
            kid: self.kid,
            reason: self.reason,
            note: self.note,
            x_request_id: self.x_request_id,
            client_id: self.client_id,
            created_before: self.created_before.map(Timestamp::from_micros),
            authenticated_before: self.authenticated_before.map(Timestamp::from_micros),
        })
    }
}

/// Searches for records, the newest first.
pub async fn search(
    reader: &mut Connection,
    query: AuditQuery,
) -> Result<Part<Vec<AuditEntry>, AuditPlace>, StoreError> {
    // Without a filter, a read looks at no more records than it returns.
    let end = if query.is_filtered() { end(reader, &query).await? } else { None };
    let mut found = filtered(candidates(&query), &query);
    if let Some((at, id)) = end {
        let (at, id) = (at.micros(), id.bytes().to_vec());
        found = found.filter(audit::at.ge(at)).filter(audit::at.gt(at).or(audit::id.ge(id)));
    }
    let rows: Vec<FoundRow> = found
        .order((audit::at.desc(), audit::id.desc()))
        .limit(query.limit)
        .select((
            audit::at,
            audit::id,
            audit::session_id,
            audit::sessions,
            audit::left_out,
            audit::peer,
            audit::action,
            audit::caller,
            audit::tenant,
            audit::subject,
            audit::kid,
            audit::reason,
            audit::note,
            audit::x_request_id,
            audit::client_id,
            audit::created_before,
            audit::authenticated_before,
        ))
        .load(reader)
        .await?;
    let found: Result<Vec<_>, _> = rows.into_iter().map(FoundRow::entry).collect();
    Ok(query.part(found?, end))
}

/// Returns the record up to which one read looks; none if it looks at all that are left.
async fn end(
    reader: &mut Connection,
    query: &AuditQuery,
) -> Result<Option<AuditPlace>, StoreError> {
    let end: Option<(i64, Vec<u8>)> = candidates(query)
        .order((audit::at.desc(), audit::id.desc()))
        .offset(MOST_READ - 1)
        .limit(1)
        .select((audit::at, audit::id))
        .get_result(reader)
        .await
        .optional()?;
    end.map(|(at, id)| Ok((Timestamp::from_micros(at), audit_id(&id)?))).transpose()
}

/// Selects the records that an index finds: those of the subject or of the session, in the period,
/// behind the place from which the search goes on.
fn candidates(query: &AuditQuery) -> Query<'_> {
    let mut found = audit::table.into_boxed();
    if let (Some(tenant), Some(subject)) = (&query.search.tenant, &query.search.subject) {
        found = found.filter(audit::tenant.eq(&**tenant)).filter(audit::subject.eq(&**subject));
    }
    if let Some(session_id) = query.search.session_id {
        found = found.filter(audit::session_id.eq(session_id.bytes().to_vec()));
    }
    if let Some(from) = query.search.at.from {
        found = found.filter(audit::at.ge(from.micros()));
    }
    if let Some(until) = query.search.at.until {
        found = found.filter(audit::at.lt(until.micros()));
    }
    if let Some((at, id)) = query.after {
        let (at, id) = (at.micros(), id.bytes().to_vec());
        found = found.filter(audit::at.le(at)).filter(audit::at.lt(at).or(audit::id.lt(id)));
    }
    found
}

/// Keeps the records that pass the filters that no index serves.
fn filtered<'a>(mut found: Query<'a>, query: &'a AuditQuery) -> Query<'a> {
    if let Some(tenant) = &query.search.tenant {
        found = found.filter(audit::tenant.eq(&**tenant));
    }
    if let Some(caller) = &query.search.caller {
        found = found.filter(audit::caller.eq(caller.as_str()));
    }
    if let Some(action) = query.search.action {
        found = found.filter(audit::action.eq(action.as_str()));
    }
    found
}
