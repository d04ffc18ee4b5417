//! The daily partitions of the audit. They are created some days ahead, and dropped when they are
//! old.
//!
//! Every replica that sweeps maintains the partitions. Writers do not depend on this: a record of a
//! day without a partition goes to `audit_default`. Days are in UTC, by the clock of the database,
//! so a replica whose clock jumps creates no wrong partitions.

use std::sync::Once;

use diesel::{
    OptionalExtension, QueryResult,
    sql_types::{BigInt, Bool, Text, Timestamptz},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::super::{connection::sqlstate::is_lock_not_available, rows::instant, sql::statement};
use crate::domain::time::Timestamp;

/// The number of days after today for which partitions are created.
const DAYS_AHEAD: i64 = 3;

/// The size of `audit_default`, in bytes, beyond which no partition is created: to create one, the
/// server reads all of `audit_default` while the writers of that table wait.
const LARGEST_DEFAULT: i64 = 64 << 20;

/// Begins a transaction that changes partitions, under a lock that only one sweeper at a time can
/// hold. Writers of the audit may have to wait while such a transaction waits for its own locks,
/// but for no longer than the time-out. If the time-out ends the transaction, the next sweep tries
/// the change again.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '100ms'; \
                     LOCK TABLE ONLY audit IN SHARE UPDATE EXCLUSIVE MODE";

/// Makes the table of records from before there were partitions a partition, once its CHECK has
/// been validated.
pub const ATTACH_AUDIT_BEFORE: &str = include_str!("attach_audit_before.sql");

/// Moves some of the records from `audit_default` to `audit_before`: those that were written after
/// the migration, but are of a day that `audit_before` covers once it is attached. Each transaction
/// moves a few records, so that no writer waits.
pub const MOVE_TO_AUDIT_BEFORE: &str = "WITH bound AS (
        SELECT substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz AS next_day
        FROM pg_constraint
        WHERE conrelid = to_regclass('audit_before')
            AND conname = 'audit_before_at'
            AND convalidated
    ),
    moved AS (
        DELETE FROM audit_default
        WHERE ctid = ANY (ARRAY(
            SELECT d.ctid FROM audit_default AS d, bound WHERE d.at < bound.next_day LIMIT 5000
        ))
        RETURNING *
    )
    INSERT INTO audit_before SELECT * FROM moved ON CONFLICT DO NOTHING";

/// Expands to the beginning of a WITH clause that lists the partitions with their bounds.
macro_rules! partition {
    () => {
        "WITH partition AS (
            SELECT
                c.relname,
                c.relkind,
                c.relowner,
                c.relpages,
                c.reltuples,
                coalesce(
                    substring(b.bounds FROM 'FROM \\(''([^'']+)''\\)')::timestamptz, '-infinity'
                ) AS first,
                coalesce(
                    substring(b.bounds FROM 'TO \\(''([^'']+)''\\)')::timestamptz, 'infinity'
                ) AS until
            FROM pg_inherits AS i
            JOIN pg_class AS c ON c.oid = i.inhrelid
            CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bounds) AS b
            WHERE i.inhparent = to_regclass('audit') AND b.bounds <> 'DEFAULT'
        )"
    };
}

/// Creates and drops partitions. Returns `None` if this process does not maintain partitions; old
/// records must then be deleted from the whole table.
pub async fn maintain(
    connection: &mut AsyncPgConnection,
    until: Timestamp,
) -> QueryResult<Option<Maintained>> {
    let Some(mut audit) = Audit::read(connection).await? else { return Ok(None) };
    if !audit.is_ours {
        static NOTICE: Once = Once::new();
        NOTICE.call_once(|| {
            tracing::info!(
                "the role may not make partitions of the audit, so old records are deleted one by \
                 one (docs/postgresql.md, Partitions of the audit)"
            );
        });
        return Ok(None);
    }
    if audit.has_detached_records {
        let attached = attach_audit_before(connection).await;
        skip_if_locked(connection, attached).await?;
        let Some(read) = Audit::read(connection).await? else { return Ok(None) };
        audit = read;
    }
    if audit.default_size > LARGEST_DEFAULT {
        static NOTICE: Once = Once::new();
        NOTICE.call_once(|| {
            tracing::warn!(
                bytes = audit.default_size,
                "no partitions of the audit are made, because audit_default is too large to be \
                 read under a lock: replace it by an empty one (docs/postgresql.md, Partitions of \
                 the audit)"
            );
        });
    } else if !audit.has_detached_records {
        let made = make_missing(connection, &audit).await;
        skip_if_locked(connection, made).await?;
    }
    let mut dropped = 0;
    let all = drop_old(connection, &audit.schema, until, &mut dropped).await;
    skip_if_locked(connection, all).await?;
    let left = Audit::read(connection).await?;
    Ok(left.map(|left| Maintained { dropped, has_audit_before: left.has_audit_before }))
}

/// The result of [`maintain`].
#[derive(Clone, Copy, Debug)]
pub struct Maintained {
    /// The number of records in the dropped partitions. This is the server's estimate, where it has
    /// one.
    pub dropped: usize,
    /// True if there is a partition with the records from before there were daily partitions.
    pub has_audit_before: bool,
}

/// Rolls back a change that has waited too long for a lock. The next sweep tries it again. Any
/// other error is returned.
async fn skip_if_locked(
    connection: &mut AsyncPgConnection,
    changed: QueryResult<()>,
) -> QueryResult<()> {
    let Err(error) = changed else { return Ok(()) };
    if !is_lock_not_available(&error) {
        return Err(error);
    }
    tracing::debug!("the audit is in use; its partitions are left for the next sweep");
    connection.batch_execute("ROLLBACK").await
}

/// The audit table and its partitions as they are now.
struct Audit {
    schema: String,
    /// The owner of the table, if it is not the role of this process.
    owner: Option<String>,
    /// True if the role of this process may change the table.
    is_ours: bool,
    default_size: i64,
    has_audit_before: bool,
    /// True if the table of records from before there were partitions exists, but is not a
    /// partition yet.
    has_detached_records: bool,
}

impl Audit {
    /// Reads the state of the table. Returns `None` if the table lacks the partitions that the
    /// migration creates.
    async fn read(connection: &mut AsyncPgConnection) -> QueryResult<Option<Self>> {
        let row: Option<(String, String, bool, bool, i64, bool, bool)> =
            statement::<(Text, Text, Bool, Bool, BigInt, Bool, Bool)>(
                "SELECT
                    quote_ident(n.nspname),
                    quote_ident(pg_get_userbyid(a.relowner)),
                    pg_get_userbyid(a.relowner) = current_user,
                    pg_has_role(a.relowner, 'USAGE') AND pg_has_role(d.relowner, 'USAGE')
                        AND has_schema_privilege(n.oid, 'CREATE'),
                    pg_relation_size(d.oid),
                    coalesce(b.relispartition, false),
                    coalesce(NOT b.relispartition, false)
                FROM pg_class AS a
                JOIN pg_namespace AS n ON n.oid = a.relnamespace
                JOIN pg_inherits AS i ON i.inhparent = a.oid
                JOIN pg_class AS d ON d.oid = i.inhrelid AND d.oid = to_regclass('audit_default')
                LEFT JOIN pg_class AS b ON b.oid = to_regclass('audit_before')
                WHERE a.oid = to_regclass('audit') AND a.relkind = 'p'",
            )
            .get_result(connection)
            .await
            .optional()?;
        Ok(row.map(
            |(
                schema,
                owner,
                owned,
                is_ours,
                default_size,
                has_audit_before,
                has_detached_records,
            )| Self {
                schema,
                owner: (!owned).then_some(owner),
                is_ours,
                default_size,
                has_audit_before,
                has_detached_records,
            },
        ))
    }
}

async fn attach_audit_before(connection: &mut AsyncPgConnection) -> QueryResult<()> {
    connection.batch_execute(BEGIN).await?;
    connection.batch_execute(ATTACH_AUDIT_BEFORE).await?;
    connection.batch_execute("COMMIT").await
}

/// Creates a partition for each day that has none: either all of them or, after an error, none.
async fn make_missing(connection: &mut AsyncPgConnection, audit: &Audit) -> QueryResult<()> {
    if missing_days(connection).await?.is_empty() {
        return Ok(());
    }
    connection.batch_execute(BEGIN).await?;
    // Another sweeper may have changed the partitions since the first look.
    for day in missing_days(connection).await? {
        connection.batch_execute(&day.sql(audit)).await?;
    }
    connection.batch_execute("COMMIT").await
}

/// A day in UTC that has no partition. The fields are the suffix of the partition's name, the
/// beginning of the day, and the beginning of the next day, as SQL writes them.
struct Day {
    name: String,
    first: String,
    until: String,
}

impl Day {
    /// Returns the statements that create the day's partition, and move its records there from the
    /// default partition.
    fn sql(&self, Audit { schema, owner, .. }: &Audit) -> String {
        let Self { name, first, until } = self;
        let owned = owner
            .as_ref()
            .map(|owner| format!("ALTER TABLE {schema}.audit_{name} OWNER TO {owner};"));
        format!(
            "CREATE TABLE {schema}.audit_{name} (LIKE {schema}.audit INCLUDING ALL);
            ALTER TABLE {schema}.audit_{name} REPLICA IDENTITY FULL;
            {owned}
            DO $$
            DECLARE
                grantee text;
            BEGIN
                -- Access through the whole table needs no right on a partition, but default
                -- privileges may have granted some.
                FOR grantee IN
                    SELECT DISTINCT
                        CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
                    FROM pg_class AS c, aclexplode(c.relacl) AS acl
                    WHERE c.oid = '{schema}.audit_{name}'::regclass AND acl.grantee <> c.relowner
                LOOP
                    EXECUTE format('REVOKE ALL ON {schema}.audit_{name} FROM %s', grantee);
                END LOOP;
            END
            $$;
            LOCK TABLE {schema}.audit_default IN ACCESS EXCLUSIVE MODE;
            WITH moved AS (
                DELETE FROM {schema}.audit_default
                WHERE at >= '{first}' AND at < '{until}'
                RETURNING *
            )
            INSERT INTO {schema}.audit_{name} SELECT * FROM moved;
            ALTER TABLE {schema}.audit ATTACH PARTITION {schema}.audit_{name}
                FOR VALUES FROM ('{first}') TO ('{until}')",
            owned = owned.unwrap_or_default()
        )
    }
}

/// Returns the days from today on that no partition covers, not even in part. A day is left out if
/// a table with the name of its partition exists, because an operator has detached that partition.
async fn missing_days(connection: &mut AsyncPgConnection) -> QueryResult<Vec<Day>> {
    let days: Vec<(String, String, String)> = statement::<(Text, Text, Text)>(concat!(
        partition!(),
        ", day AS (
            SELECT
                to_char(d.day, 'YYYYMMDD') AS name,
                d.day AT TIME ZONE 'UTC' AS first,
                (d.day + interval '1 day') AT TIME ZONE 'UTC' AS until
            FROM generate_series(0, ?) AS n
            CROSS JOIN LATERAL (
                SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + n * interval '1 day' AS day
            ) AS d
        )
        SELECT name, first::text, until::text
        FROM day
        WHERE to_regclass('audit_' || name) IS NULL
            AND NOT EXISTS (
                SELECT FROM partition AS p WHERE p.first < day.until AND p.until > day.first
            )
        ORDER BY first"
    ))
    .bind::<BigInt, _>(DAYS_AHEAD)
    .load(connection)
    .await?;
    Ok(days.into_iter().map(|(name, first, until)| Day { name, first, until }).collect())
}

/// Drops the partitions whose whole day is before `until`, one after the other, and adds the number
/// of their records to `dropped`. A partition whose day has not ended by the clock of the database
/// is kept, because it may still be written to.
async fn drop_old(
    connection: &mut AsyncPgConnection,
    schema: &str,
    until: Timestamp,
    dropped: &mut usize,
) -> QueryResult<()> {
    while oldest_before(connection, until).await?.is_some() {
        connection.batch_execute(BEGIN).await?;
        // Another sweeper may have changed the partitions since the first look.
        let Some(oldest) = oldest_before(connection, until).await? else {
            return connection.batch_execute("COMMIT").await;
        };
        let records = match oldest.estimate {
            Some(estimate) => estimate,
            None => oldest.count(connection).await?,
        };
        connection.batch_execute(&format!("DROP TABLE {schema}.{}; COMMIT", oldest.name)).await?;
        tracing::debug!(partition = oldest.name, records, "dropped a partition of the audit");
        *dropped += usize::try_from(records).unwrap_or(0);
    }
    Ok(())
}

/// A partition that is to be dropped.
struct Partition {
    name: String,
    first: String,
    until: String,
    /// The number of its rows, if the server has an estimate.
    estimate: Option<i64>,
}

impl Partition {
    /// Counts the rows of the partition. If the server has no estimate for a partition, the
    /// partition has few rows, because the server analyzes a table once it has grown.
    async fn count(&self, connection: &mut AsyncPgConnection) -> QueryResult<i64> {
        statement::<BigInt>(
            "SELECT count(*) FROM audit WHERE at >= ?::timestamptz AND at < ?::timestamptz",
        )
        .bind::<Text, _>(&self.first)
        .bind::<Text, _>(&self.until)
        .get_result(connection)
        .await
    }
}

async fn oldest_before(
    connection: &mut AsyncPgConnection,
    until: Timestamp,
) -> QueryResult<Option<Partition>> {
    let oldest: Option<(String, String, String, i64)> =
        statement::<(Text, Text, Text, BigInt)>(concat!(
            partition!(),
            " SELECT
            quote_ident(relname),
            first::text,
            until::text,
            CASE WHEN relpages > 0 THEN reltuples::bigint ELSE -1 END
        FROM partition
        WHERE until <= least(?, now()) AND relkind = 'r' AND pg_has_role(relowner, 'USAGE')
        ORDER BY until
        LIMIT 1"
        ))
        .bind::<Timestamptz, _>(instant(until))
        .get_result(connection)
        .await
        .optional()?;
    Ok(oldest.map(|(name, first, until, estimate)| Partition {
        name,
        first,
        until,
        estimate: (estimate >= 0).then_some(estimate),
    }))
}
