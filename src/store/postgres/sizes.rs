//! Reads the size of the database and of its tables.

use diesel::{
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Nullable, Text, Timestamptz},
};
use diesel_async::RunQueryDsl;

use super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{instant, timestamp},
    sql::statement,
};
use crate::{
    domain::time::Timestamp,
    store::sizes::{MOST_EXPIRED, Sizes, TABLES, TableSize},
};

/// The size of each table, or of all partitions of a partitioned one. The numbers of rows are
/// estimates that the server keeps.
const TABLE_SIZES: &str = "
    SELECT
        coalesce(whole.relname, part.relname)::text,
        sum(statistics.n_live_tup)::bigint,
        sum(pg_total_relation_size(part.oid))::bigint
    FROM pg_class AS part
    JOIN pg_stat_user_tables AS statistics ON statistics.relid = part.oid
    LEFT JOIN pg_inherits ON pg_inherits.inhrelid = part.oid
    LEFT JOIN pg_class AS whole ON whole.oid = pg_inherits.inhparent
    WHERE part.relkind = 'r'
        AND part.relnamespace = (
            SELECT oid
            FROM pg_namespace
            WHERE nspname = current_schema()
        )
        AND coalesce(whole.relname, part.relname) = ANY (?)
    GROUP BY 1
";

/// The bytes of the database, and the expired rows of the blacklist.
const TOTALS: &str = "
    SELECT
        pg_database_size(current_database()),
        count(*),
        min(expired.expires_at)
    FROM (
        SELECT expires_at
        FROM blacklist
        WHERE expires_at < ?
        ORDER BY expires_at
        LIMIT ?
    ) AS expired
";

pub async fn read(connection: &mut PooledConnection<'_>, now: Timestamp) -> Result<Sizes, Fault> {
    let rows: Vec<(String, i64, i64)> = statement::<(Text, BigInt, BigInt)>(TABLE_SIZES)
        .bind::<Array<Text>, _>(TABLES.to_vec())
        .load(&mut **connection)
        .await?;
    let table = |(table, rows, bytes)| TableSize { table, rows, bytes: Some(bytes) };
    let (bytes, expired_rows, oldest): (i64, i64, Option<PgTimestamp>) =
        statement::<(BigInt, BigInt, Nullable<Timestamptz>)>(TOTALS)
            .bind::<Timestamptz, _>(instant(now))
            .bind::<BigInt, _>(MOST_EXPIRED)
            .get_result(&mut **connection)
            .await?;
    Ok(Sizes {
        bytes,
        tables: rows.into_iter().map(table).collect(),
        expired_rows,
        oldest_expiry: oldest.map(timestamp),
    })
}
