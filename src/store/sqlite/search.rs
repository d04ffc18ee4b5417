//! Searches for sessions by the indexes of tenants and subjects, and filters what they find.

use std::net::IpAddr;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryResult,
    SelectableHelper, SqliteConnection, define_sql_function, dsl,
    sql_types::{BigInt, Text},
    sqlite::Sqlite,
};
use diesel_async::RunQueryDsl;
use ipnet::IpNet;

use super::{Connection, rows::SessionRow, schema::sessions};
use crate::{
    domain::{
        ids::SessionId,
        search::{MOST_READ, Order, Part, Range, SessionQuery},
        session::{EndReason, Session},
    },
    store::StoreError,
};

type Query<'a> = sessions::BoxedQuery<'a, Sqlite>;

define_sql_function! {
    /// Returns whether an address belongs to a network. A text that is no address belongs to none.
    fn in_network(address: Text, network: Text) -> Bool;
}

/// Gives the function that compares addresses with networks to a connection.
pub fn register_functions(connection: &mut SqliteConnection) -> QueryResult<()> {
    in_network_utils::register_impl(connection, |address: String, network: String| {
        let address = address.parse::<IpAddr>().ok();
        let network = network.parse::<IpNet>().ok();
        address.zip(network).is_some_and(|(address, network)| network.contains(&address))
    })
}

/// Searches for sessions.
pub async fn sessions(
    reader: &mut Connection,
    query: SessionQuery,
) -> Result<Part<Vec<Session>, SessionId>, StoreError> {
    // Without a filter, a read looks at no more sessions than it returns.
    let end = if query.search.filter.is_empty() { None } else { end(reader, &query).await? };
    let mut lists = vec![];
    for is_over in query.is_over() {
        let found = filtered(candidates(&query, &[*is_over], end), &query);
        let rows: Vec<SessionRow> = in_order(found, query.search.order)
            .limit(query.limit)
            .select(SessionRow::as_select())
            .load(reader)
            .await?;
        let list: Result<Vec<_>, _> = rows.into_iter().map(Session::try_from).collect();
        lists.push(list?);
    }
    Ok(query.part(lists, end))
}

/// Counts sessions.
pub async fn count(
    reader: &mut Connection,
    query: SessionQuery,
) -> Result<Part<i64, SessionId>, StoreError> {
    let last = end(reader, &query).await?;
    let found = filtered(candidates(&query, query.is_over(), last), &query)
        .count()
        .get_result(reader)
        .await?;
    Ok(Part { found, last })
}

/// Returns the session up to which one read looks; none if it looks at all that are left.
async fn end(
    reader: &mut Connection,
    query: &SessionQuery,
) -> Result<Option<SessionId>, StoreError> {
    let mut ends = vec![];
    for is_over in query.is_over() {
        let end: Option<Vec<u8>> =
            in_order(candidates(query, &[*is_over], None), query.search.order)
                .offset(MOST_READ - 1)
                .limit(1)
                .select(sessions::id)
                .get_result(reader)
                .await
                .optional()?;
        ends.push(end.and_then(|id| id.try_into().ok()).map(SessionId::from_bytes));
    }
    Ok(query.read_up_to(ends))
}

fn in_order(found: Query<'_>, order: Order) -> Query<'_> {
    match order {
        Order::NewestFirst => found.order(sessions::id.desc()),
        Order::OldestFirst => found.order(sessions::id.asc()),
    }
}

/// Selects the sessions that an index finds: those of the tenant or the subject, in the range of
/// the search, up to `end`.
fn candidates<'a>(query: &'a SessionQuery, is_over: &[bool], end: Option<SessionId>) -> Query<'a> {
    let mut found = sessions::table
        .filter(sessions::tenant.eq(&*query.search.tenant))
        .filter(sessions::is_over.eq_any(is_over.to_vec()))
        .into_boxed();
    if let Some(subject) = &query.search.subject {
        found = found.filter(sessions::subject.eq(&**subject));
    }
    let Range { above, below } = query.range();
    if let Some(above) = above {
        found = found.filter(sessions::id.gt(above.bytes().to_vec()));
    }
    if let Some(below) = below {
        found = found.filter(sessions::id.lt(below.bytes().to_vec()));
    }
    match (end, query.search.order) {
        (Some(end), Order::NewestFirst) => found.filter(sessions::id.ge(end.bytes().to_vec())),
        (Some(end), Order::OldestFirst) => found.filter(sessions::id.le(end.bytes().to_vec())),
        (None, _) => found,
    }
}

/// Keeps the sessions that pass the filters. A search for live sessions alone also leaves out
/// sessions that have expired but are not marked yet.
fn filtered<'a>(mut found: Query<'a>, query: &'a SessionQuery) -> Query<'a> {
    let filter = &query.search.filter;
    if query.search.live == Some(true) {
        found = found.filter(sessions::idle_expires_at.gt(query.now.micros()));
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
    let ended_at = || dsl::sql::<BigInt>("coalesce(ended_at, idle_expires_at)");
    if let Some(from) = filter.ended.from {
        found = found.filter(ended_at().ge(from.micros()));
    }
    if let Some(until) = filter.ended.until {
        found = found.filter(ended_at().lt(until.micros()));
    }
    if let Some(network) = &filter.network {
        found = found.filter(in_network(sessions::ip_address, network.to_string()));
    }
    found
}
