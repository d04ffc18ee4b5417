//! Hand-written statements that are prepared once per connection. Diesel's `sql_query` would
//! prepare a statement on each use, which costs a round trip and a new plan.

use std::marker::PhantomData;

use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::Error,
    serialize::ToSql,
    sql_types::HasSqlType,
};

/// A statement and its values. `Row` is the SQL type of the rows that the statement returns.
pub struct Statement<'a, Row> {
    text: &'static str,
    binds: Vec<Box<dyn QueryFragment<Pg> + Send + 'a>>,
    row: PhantomData<fn() -> Row>,
}

/// Returns the values of one column for all rows, which `unnest` turns into rows again.
pub fn column<'a, Row, T>(rows: &'a [Row], of: impl Fn(&'a Row) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

struct Bind<Type, Value> {
    value: Value,
    sql_type: PhantomData<fn() -> Type>,
}

/// Creates a statement from a text with a `?` in the place of each value.
pub fn statement<'a, Row>(text: &'static str) -> Statement<'a, Row> {
    Statement { text, binds: vec![], row: PhantomData }
}

impl<'a, Row> Statement<'a, Row> {
    /// Adds the next value.
    pub fn bind<Type, Value>(mut self, value: Value) -> Self
    where
        Type: 'a,
        Value: ToSql<Type, Pg> + Send + 'a,
        Pg: HasSqlType<Type>,
    {
        self.binds.push(Box::new(Bind::<Type, Value> { value, sql_type: PhantomData }));
        self
    }
}

impl<Type, Value> QueryFragment<Pg> for Bind<Type, Value>
where
    Value: ToSql<Type, Pg>,
    Pg: HasSqlType<Type>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<Type, Value>(&self.value)
    }
}

impl<Row> QueryFragment<Pg> for Statement<'_, Row> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let (values, placeholders) = (self.binds.len(), self.text.matches('?').count());
        if values != placeholders {
            let problem =
                format!("{values} values for {placeholders} placeholders in: {}", self.text);
            return Err(Error::QueryBuilderError(problem.into()));
        }
        let mut binds = self.binds.iter();
        for (n, piece) in self.text.split('?').enumerate() {
            if n > 0
                && let Some(bind) = binds.next()
            {
                bind.walk_ast(out.reborrow())?;
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

/// Without a static query id, Diesel finds a prepared statement by its text.
impl<Row> QueryId for Statement<'_, Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Row> Query for Statement<'_, Row> {
    type SqlType = Row;
}

/// Expands to the lowest session identifier that the entry of a cut-off by creation no longer
/// covers. Such an entry covers a session if the time of creation in the session's identifier, in
/// milliseconds (`SessionId::created_millis`), is not later than `up_to`.
macro_rules! first_uncovered {
    ($entry:literal) => {
        concat!(
            "(
                lpad(
                    to_hex(
                        (extract(epoch FROM date_trunc('milliseconds', ",
            $entry,
            ".up_to)) * 1000)::bigint + 1
                    ),
                    12,
                    '0'
                ) || repeat('0', 20)
            )::uuid"
        )
    };
}
pub(super) use first_uncovered;

/// Expands to the condition that no cut-off covers a session. Its parts are the conditions for the
/// entry of its tenant, for that of its subject, and for wide entries. Most of the time there are
/// no wide entries. Then one look into the index of the kinds for all rows of a statement is all
/// that they cost, because their kinds are the first ones in the index
/// (`cut_off::WIDE_BEFORE`).
macro_rules! is_uncovered {
    ($session:literal) => {
        concat!(
            "(
                SELECT ",
            $session,
            ".id < ",
            first_uncovered!("b"),
            "
                FROM blacklist AS b
                WHERE b.kind = 'tenant'
                    AND b.key = ",
            $session,
            ".tenant
            ) IS NOT TRUE
            AND (
                SELECT ",
            $session,
            ".id < ",
            first_uncovered!("b"),
            "
                    AND ",
            $session,
            ".id IS DISTINCT FROM b.session_id
                FROM blacklist AS b
                WHERE b.kind = 'subject'
                    AND b.key = ",
            $session,
            ".tenant || chr(31) || ",
            $session,
            ".subject
            ) IS NOT TRUE
            AND (
                (SELECT min(kind) FROM blacklist WHERE kind < 'b') IS NULL
                OR NOT EXISTS (
                    SELECT
                    FROM (
                        VALUES ",
            wide_keys!($session),
            "
                    ) AS wide (kind, key)
                    JOIN blacklist AS b
                        ON b.kind = wide.kind COLLATE \"C\" AND b.key = wide.key COLLATE \"C\"
                    WHERE CASE
                        WHEN starts_with(b.kind, 'all_authenticated')
                        THEN ",
            $session,
            ".authenticated_at <= b.up_to
                        ELSE ",
            $session,
            ".id < ",
            first_uncovered!("b"),
            "
                    END
                )
            ) "
        )
    };
}
pub(super) use is_uncovered;

/// Expands to the kinds and keys of the wide entries that may cover a session, as
/// `Coverable::key` and `KeyRef::text` define them.
macro_rules! wide_keys {
    ($session:literal) => {
        concat!(
            "('all_everywhere', ''),
            ('all_authenticated_everywhere', ''),
            ('all_authenticated_of_tenant', ",
            $session,
            ".tenant),
            ('all_of_client', ",
            $session,
            ".tenant || chr(31) || ",
            $session,
            ".client_id),
            ('all_authenticated_of_client', ",
            $session,
            ".tenant || chr(31) || ",
            $session,
            ".client_id),
            ('all_of_client_everywhere', ",
            $session,
            ".client_id),
            ('all_authenticated_of_client_everywhere', ",
            $session,
            ".client_id)"
        )
    };
}
pub(super) use wide_keys;

#[cfg(test)]
mod tests {
    use diesel::{pg::PgQueryBuilder, query_builder::QueryBuilder, sql_types::BigInt};

    use super::*;

    #[test]
    fn a_statement_must_have_as_many_values_as_placeholders() {
        let text = |statement: Statement<'_, ()>| {
            let mut builder = PgQueryBuilder::default();
            statement.to_sql(&mut builder, &Pg).map(|()| builder.finish())
        };
        let statement = || statement::<()>("SELECT ? + ?").bind::<BigInt, _>(1_i64);
        assert!(text(statement()).is_err());
        assert_eq!(text(statement().bind::<BigInt, _>(2_i64)).unwrap(), "SELECT $1 + $2");
        let three = statement().bind::<BigInt, _>(2_i64).bind::<BigInt, _>(3_i64);
        assert!(text(three).is_err());
    }
}
