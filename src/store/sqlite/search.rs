//! Searches for sessions by the indexes of tenants, subjects and devices, and filters what they
//! find.

use std::net::IpAddr;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryResult,
    SelectableHelper, SqliteConnection, define_sql_function, dsl,
    sql_types::{BigInt, Bool, Text},
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
    let end = if query.search.is_filtered() { end(reader, &query).await? } else { None };
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

/// Selects the sessions that an index finds: those of the tenant, the subject or the device, in the
/// range of the search, up to `end`. The condition of the index of devices is a literal, because
/// SQLite uses a partial index only if the condition stands in the query.
fn candidates<'a>(query: &'a SessionQuery, is_over: &[bool], end: Option<SessionId>) -> Query<'a> {
    let mut found = sessions::table.filter(sessions::tenant.eq(&*query.search.tenant)).into_boxed();
    found = match is_over {
        // A statement with a list does not stay prepared.
        [is_over] => found.filter(sessions::is_over.eq(*is_over)),
        both => found.filter(sessions::is_over.eq_any(both.to_vec())),
    };
    if let Some(subject) = &query.search.subject {
        found = found.filter(sessions::subject.eq(&**subject));
    }
    if let Some(device_id) = query.search.indexed_device() {
        let is_indexed = dsl::sql::<Bool>("device_id <> ''");
        found = found.filter(sessions::device_id.eq(&**device_id)).filter(is_indexed);
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
    if query.search.is_filtered() {
        // There are too many combinations of filters to keep a prepared statement for each. Raw SQL
        // makes the statement one that is not kept.
        found = found.filter(dsl::sql::<Bool>("1"));
    }
    if query.search.live == Some(true) {
        found = found.filter(sessions::idle_expires_at.gt(query.now.micros()));
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

#[cfg(test)]
mod tests {
    use diesel::{
        Connection, QueryDsl, QueryResult, RunQueryDsl, SqliteConnection,
        query_builder::{AstPass, Query as SqlQuery, QueryFragment, QueryId},
        sql_types::{Integer, Text},
        sqlite::Sqlite,
    };

    use super::{super::SqliteStore, candidates, filtered, in_order, sessions};
    use crate::domain::{
        search::{Order, SessionQuery, SessionSearch},
        time::Timestamp,
    };

    /// A query of which only the plan is asked for.
    #[derive(QueryId)]
    struct Explained<Q>(Q);

    impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Explained<Q> {
        fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
            out.push_sql("EXPLAIN QUERY PLAN ");
            self.0.walk_ast(out.reborrow())
        }
    }

    impl<Q> SqlQuery for Explained<Q> {
        type SqlType = (Integer, Integer, Integer, Text);
    }

    impl<Q> RunQueryDsl<SqliteConnection> for Explained<Q> {}

    #[tokio::test]
    async fn an_index_finds_the_sessions_of_a_tenant_a_subject_or_a_device_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("countersign.db");
        drop(SqliteStore::open(&path).await.unwrap());
        let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        let of_tenant = SessionSearch::default();
        let of_subject = SessionSearch {
            subject: Some("a".to_owned().try_into().unwrap()),
            ..of_tenant.clone()
        };
        let on_device = |search: &SessionSearch| SessionSearch {
            device_id: Some("d".to_owned().try_into().unwrap()),
            ..search.clone()
        };
        for (search, index) in [
            (of_tenant.clone(), "sessions_by_tenant (tenant=? AND is_over=?)"),
            (of_subject.clone(), "sessions_by_subject (tenant=? AND subject=? AND is_over=?)"),
            (on_device(&of_tenant), "sessions_by_device (tenant=? AND device_id=? AND is_over=?)"),
            (on_device(&of_subject), "sessions_by_subject (tenant=? AND subject=? AND is_over=?)"),
        ] {
            for order in [Order::NewestFirst, Order::OldestFirst] {
                let search = SessionSearch { order, ..search.clone() };
                let now = Timestamp::from_micros(0);
                let query = SessionQuery { search, now, after: None, limit: 50 };
                let found = filtered(candidates(&query, &[false], None), &query);
                let found = in_order(found, order).limit(50).select(sessions::all_columns);
                let steps: Vec<(i32, i32, i32, String)> =
                    Explained(found).load(&mut connection).unwrap();
                let steps: Vec<_> = steps.iter().map(|(_, _, _, step)| step).collect();
                assert_eq!(steps, [&format!("SEARCH sessions USING INDEX {index}")]);
            }
        }
    }
}
