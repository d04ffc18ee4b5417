//! Searches for sessions by the indexes of tenants, subjects and devices, and filters what they
//! find.

use diesel::{
    AppearsOnTable, BoolExpressionMethods, Expression, ExpressionMethods, OptionalExtension,
    QueryDsl, QueryResult, SelectableExpression, SelectableHelper, dsl,
    expression::{ValidGrouping, is_aggregate},
    pg::Pg,
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_types::{Bool, Text, Timestamptz},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{SessionRow, instant, uuid},
    schema::sessions,
};
use crate::domain::{
    ids::SessionId,
    search::{MOST_READ, Order, Part, Range, SessionQuery},
    session::{EndReason, Session},
};

type Query<'a> = sessions::BoxedQuery<'a, Pg>;

/// A condition as SQL. Unlike [`dsl::sql`], it allows the statement to stay prepared, which saves a
/// third of the time of a short search.
#[derive(Clone, Copy, Debug)]
struct Condition(&'static str);

impl Expression for Condition {
    type SqlType = Bool;
}

impl QueryFragment<Pg> for Condition {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(self.0);
        Ok(())
    }
}

/// Statements with conditions are told apart by their text.
impl QueryId for Condition {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<GroupBy> ValidGrouping<GroupBy> for Condition {
    type IsAggregate = is_aggregate::Never;
}

impl<Source> AppearsOnTable<Source> for Condition {}
impl<Source> SelectableExpression<Source> for Condition {}

/// Searches for sessions.
pub async fn sessions(
    connection: &mut PooledConnection<'_>,
    query: SessionQuery,
) -> Result<Part<Vec<Session>, SessionId>, Fault> {
    // Without a filter, a read looks at no more sessions than it returns.
    let end = if query.search.is_filtered() { end(connection, &query).await? } else { None };
    let mut lists = vec![];
    for is_over in query.is_over() {
        let found = filtered(candidates(&query, &[*is_over], end), &query);
        let rows: Vec<SessionRow> = in_order(found, query.search.order)
            .limit(query.limit)
            .select(SessionRow::as_select())
            .load(&mut **connection)
            .await?;
        let list: Result<Vec<_>, _> = rows.into_iter().map(Session::try_from).collect();
        lists.push(list?);
    }
    Ok(query.part(lists, end))
}

/// Counts sessions.
pub async fn count(
    connection: &mut PooledConnection<'_>,
    query: SessionQuery,
) -> Result<Part<i64, SessionId>, Fault> {
    let last = end(connection, &query).await?;
    let found = filtered(candidates(&query, query.is_over(), last), &query)
        .count()
        .get_result(&mut **connection)
        .await?;
    Ok(Part { found, last })
}

/// Returns the session up to which one read looks; none if it looks at all that are left.
async fn end(
    connection: &mut PooledConnection<'_>,
    query: &SessionQuery,
) -> Result<Option<SessionId>, Fault> {
    let mut ends = vec![];
    for is_over in query.is_over() {
        let end: Option<Uuid> = in_order(candidates(query, &[*is_over], None), query.search.order)
            .offset(MOST_READ - 1)
            .limit(1)
            .select(sessions::id)
            .get_result(&mut **connection)
            .await
            .optional()?;
        ends.push(end.map(|id| SessionId::from_bytes(id.into_bytes())));
    }
    Ok(query.read_up_to(ends))
}

fn in_order(found: Query<'_>, order: Order) -> Query<'_> {
    match order {
        Order::NewestFirst => found.order(sessions::id.desc()),
        Order::OldestFirst => found.order(sessions::id.asc()),
    }
}

/// Selects the sessions that an index finds: those of the tenant, the subject or the device, in the
/// range of the search, up to `end`. The states are literals, so that the planner can choose by
/// them, and so is the condition of the index of devices. The collation is that of the index.
fn candidates<'a>(query: &'a SessionQuery, is_over: &[bool], end: Option<SessionId>) -> Query<'a> {
    let is_over = match is_over {
        [false] => "NOT is_over",
        [true] => "is_over",
        _ => "is_over IN (false, true)",
    };
    let mut found = sessions::table
        .filter(sessions::tenant.eq(&*query.search.tenant))
        .filter(Condition(is_over))
        .into_boxed();
    if let Some(subject) = &query.search.subject {
        found = found.filter(sessions::subject.eq(&**subject));
    }
    if let Some(device_id) = query.search.indexed_device() {
        let is_of_device = dsl::sql::<Bool>("device_id <> '' AND device_id COLLATE \"C\" = ")
            .bind::<Text, _>(&**device_id);
        found = found.filter(is_of_device);
    }
    let Range { above, below } = query.range();
    if let Some(above) = above {
        found = found.filter(sessions::id.gt(uuid(above.bytes())));
    }
    if let Some(below) = below {
        found = found.filter(sessions::id.lt(uuid(below.bytes())));
    }
    match (end, query.search.order) {
        (Some(end), Order::NewestFirst) => found.filter(sessions::id.ge(uuid(end.bytes()))),
        (Some(end), Order::OldestFirst) => found.filter(sessions::id.le(uuid(end.bytes()))),
        (None, _) => found,
    }
}

/// Keeps the sessions that pass the filters. A search for live sessions alone also leaves out
/// sessions that have expired but are not marked yet.
fn filtered<'a>(mut found: Query<'a>, query: &'a SessionQuery) -> Query<'a> {
    let filter = &query.search.filter;
    if query.search.is_filtered() {
        // There are too many combinations of filters to keep a prepared statement for each. Raw SQL
        // makes the statement one that is not kept.
        found = found.filter(dsl::sql::<Bool>("true"));
    }
    if query.search.live == Some(true) {
        let is_live =
            sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(instant(query.now)));
        found = found.filter(is_live);
    }
    if let Some(device_id) = query.search.compared_device() {
        found = found.filter(sessions::device_id.eq(&**device_id));
    }
    if let Some(client_id) = &filter.client_id {
        found = found.filter(sessions::client_id.eq(&**client_id));
    }
    if let Some(policy) = &filter.policy {
        found = found.filter(sessions::policy.eq(&**policy));
    }
    if let Some(created_by) = &filter.created_by {
        found = found.filter(sessions::created_by.eq(created_by.as_str()));
    }
    let has_expired = || sessions::ended_at.is_null();
    let (idle, absolute) = (sessions::idle_expires_at, sessions::expires_at);
    found = match filter.end_reason {
        None => found,
        Some(EndReason::ExpiredIdle) => found.filter(has_expired().and(idle.lt(absolute))),
        Some(EndReason::ExpiredAbsolute) => found.filter(has_expired().and(idle.ge(absolute))),
        Some(reason) => found.filter(sessions::end_reason.eq(reason.as_str())),
    };
    let ended_at = || dsl::sql::<Timestamptz>("coalesce(ended_at, idle_expires_at)");
    if let Some(from) = filter.ended.from {
        found = found.filter(ended_at().ge(instant(from)));
    }
    if let Some(until) = filter.ended.until {
        found = found.filter(ended_at().lt(instant(until)));
    }
    if let Some(network) = &filter.network {
        // The conditions of AND may be evaluated in any order, and an empty text is no address.
        let is_in_network =
            dsl::sql::<Bool>("CASE WHEN ip_address = '' THEN false ELSE ip_address::inet <<= ")
                .bind::<Text, _>(network.to_string())
                .sql("::inet END");
        found = found.filter(is_in_network);
    }
    found
}
