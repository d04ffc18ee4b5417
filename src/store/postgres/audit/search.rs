//! Searches the audit table.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl,
    data_types::PgTimestamp,
    dsl,
    pg::Pg,
    prelude::Queryable,
    sql_types::{Nullable, Text},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{instant, timestamp, uuid},
    schema::audit,
};
use crate::{
    domain::{
        audit::AuditEntry,
        ids::{AuditId, SessionId},
        search::{AuditPlace, AuditQuery, MOST_READ, Part},
    },
    store::audit_columns::AuditColumns,
};

type Query<'a> = audit::BoxedQuery<'a, Pg>;

#[derive(Queryable)]
struct AuditRow {
    at: PgTimestamp,
    id: Uuid,
    session_id: Option<Uuid>,
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
    created_before: Option<PgTimestamp>,
    authenticated_before: Option<PgTimestamp>,
}

impl From<AuditRow> for AuditColumns {
    fn from(row: AuditRow) -> Self {
        Self {
            at: timestamp(row.at),
            id: AuditId::from_bytes(row.id.into_bytes()),
            session_id: row.session_id.map(|id| SessionId::from_bytes(id.into_bytes())),
            sessions: row.sessions,
            left_out: row.left_out,
            peer: row.peer,
            action: row.action,
            caller: row.caller,
            tenant: row.tenant,
            subject: row.subject,
            kid: row.kid,
            reason: row.reason,
            note: row.note,
            x_request_id: row.x_request_id,
            client_id: row.client_id,
            created_before: row.created_before.map(timestamp),
            authenticated_before: row.authenticated_before.map(timestamp),
        }
    }
}

/// Searches for records, the newest first.
pub async fn records(
    connection: &mut PooledConnection<'_>,
    query: AuditQuery,
) -> Result<Part<Vec<AuditEntry>, AuditPlace>, Fault> {
    // Without a filter, a read looks at no more records than it returns.
    let end = if query.is_filtered() { end(connection, &query).await? } else { None };
    let mut found = filtered(candidates(&query), &query);
    if let Some((at, id)) = end {
        let (at, id) = (instant(at), uuid(id.bytes()));
        found = found.filter(audit::at.ge(at)).filter(audit::at.gt(at).or(audit::id.ge(id)));
    }
    let rows: Vec<AuditRow> = found
        .order((audit::at.desc(), audit::id.desc()))
        .limit(query.limit)
        .select((
            audit::at,
            audit::id,
            audit::session_id,
            audit::sessions,
            audit::left_out,
            dsl::sql::<Nullable<Text>>("host(peer)"),
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
        .load(&mut **connection)
        .await?;
    let found: Result<Vec<_>, _> =
        rows.into_iter().map(|row| AuditEntry::try_from(AuditColumns::from(row))).collect();
    Ok(query.part(found?, end))
}

/// Returns the record up to which one read looks; none if it looks at all that are left.
async fn end(
    connection: &mut PooledConnection<'_>,
    query: &AuditQuery,
) -> Result<Option<AuditPlace>, Fault> {
    let end: Option<(PgTimestamp, Uuid)> = candidates(query)
        .order((audit::at.desc(), audit::id.desc()))
        .offset(MOST_READ - 1)
        .limit(1)
        .select((audit::at, audit::id))
        .get_result(&mut **connection)
        .await
        .optional()?;
    Ok(end.map(|(at, id)| (timestamp(at), AuditId::from_bytes(id.into_bytes()))))
}

/// Selects the records that an index finds: those of the subject or of the session, in the period,
/// behind the place from which the search goes on.
fn candidates(query: &AuditQuery) -> Query<'_> {
    let mut found = audit::table.into_boxed();
    if let (Some(tenant), Some(subject)) = (&query.search.tenant, &query.search.subject) {
        found = found.filter(audit::tenant.eq(&**tenant)).filter(audit::subject.eq(&**subject));
    }
    if let Some(session_id) = query.search.session_id {
        found = found.filter(audit::session_id.eq(uuid(session_id.bytes())));
    }
    if let Some(from) = query.search.at.from {
        found = found.filter(audit::at.ge(instant(from)));
    }
    if let Some(until) = query.search.at.until {
        found = found.filter(audit::at.lt(instant(until)));
    }
    if let Some((at, id)) = query.after {
        let (at, id) = (instant(at), uuid(id.bytes()));
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
