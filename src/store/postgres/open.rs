//! Checking the database, and bringing its schema up to date.

use std::time::Duration;

use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio::time::sleep;

use super::{
    connect::Target,
    open_error::{OpenError, is_held},
    partitions::{ATTACH_AUDIT_BEFORE, MOVE_TO_AUDIT_BEFORE},
    sql::statement,
    sqlstate::{Class, is_lock_not_available},
};

/// Each migration with its version, in order. The table that records them is the one that Diesel's
/// own tool uses.
///
/// The version before must be able to work on what a migration leaves behind, because replicas are
/// replaced one after the other: a migration only adds (`a_migration_only_adds` below), and what it
/// makes needless goes with the version after.
const MIGRATIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/postgres_migrations.rs"));
/// The storage settings of the tables. Not a migration, because an engine may do without.
const TUNING: &str = include_str!("tuning.sql");

/// The oldest version that works, as `server_version_num` has it.
const OLDEST_VERSION: i64 = 130_000;

/// The name of the lock under which migrations run: "CSgn" in ASCII.
const MIGRATION_LOCK: i64 = 1_129_539_438;
/// That of whoever attaches the audit from before, for which nobody else has to wait.
const ATTACH_LOCK: i64 = MIGRATION_LOCK + 1;

/// The time that each statement of a migration waits for a table, attempt by attempt. Whoever wants
/// to write to the table meanwhile waits behind it. The last attempt outlasts the server's
/// `deadlock_timeout` (1 second), after which an automatic vacuum gives way.
const LOCK_TIMEOUTS: [&str; 5] = ["500ms", "500ms", "500ms", "500ms", "1500ms"];
/// The pause between two attempts, in which those who waited behind the migration are served.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// The largest table of records from before the audit had partitions that is attached in passing,
/// in bytes: it takes less than a second. For a larger one nobody waits who is to serve.
const LARGEST_IN_PASSING: i64 = 8 << 20;

/// The result of [`prepare`].
pub struct Prepared {
    /// The migrations that were made.
    pub made: Vec<&'static str>,
    /// Records from before the audit had partitions are left, for [`attach_audit`].
    pub has_detached_records: bool,
}

/// Checks the database and brings its schema up to date, if it may. Of several who do this at once,
/// one does it and the others wait.
pub async fn prepare(target: &mut Target, may_migrate: bool) -> Result<Prepared, OpenError> {
    let mut connection = target.connect().await?.connection;
    let database = target.name().to_owned();
    let other = |error: diesel::result::Error| OpenError::other(&database, &error);
    let (version, encoding, role): (i64, String, String) = statement::<(BigInt, Text, Text)>(
        "SELECT
            current_setting('server_version_num')::bigint,
            current_setting('server_encoding'),
            quote_ident(current_user)",
    )
    .get_result(&mut connection)
    .await
    .map_err(other)?;
    if version < OLDEST_VERSION {
        return Err(OpenError::TooOld { database, version: version / 10_000 });
    }
    if encoding != "UTF8" {
        return Err(OpenError::Encoding { database, encoding });
    }
    if let Some(level) = other_isolation(&mut connection).await.map_err(other)? {
        return Err(OpenError::Isolation { database, level });
    }
    let updated = update_schema(target, &mut connection, may_migrate).await;
    let made = updated.map_err(|error| error.with_remedy(&role))?;
    let mut detached =
        detached_bytes(&mut connection).await.map_err(other)?.filter(|_| may_migrate);
    if detached.is_some_and(|bytes| bytes <= LARGEST_IN_PASSING) {
        warn_of_detached(attach_audit_before(target, &mut connection).await);
        detached = None;
    }
    Ok(Prepared { made, has_detached_records: detached.is_some() })
}

/// Makes the records of the audit from before it had partitions one of these, over a connection of
/// its own.
pub async fn attach_audit(target: &Target) {
    match target.connect().await {
        Ok(mut connected) => {
            warn_of_detached(attach_audit_before(target, &mut connected.connection).await)
        }
        Err(error) => tracing::warn!(%error, "{DETACHED}"),
    }
}

const DETACHED: &str = "records of the audit from before the upgrade are still in audit_before, \
                        and not yet in audit: run `countersign migrate` again";

/// The records are safe, and the service needs none of them.
fn warn_of_detached(attached: diesel::QueryResult<()>) {
    if let Err(error) = attached {
        tracing::warn!(%error, "{DETACHED}");
    }
}

/// Returns the isolation level that YugabyteDB uses in the place of READ COMMITTED, if it does, as
/// it does unless it is told not to. Other engines have no such function.
async fn other_isolation(
    connection: &mut AsyncPgConnection,
) -> diesel::QueryResult<Option<String>> {
    const EXISTS: &str =
        "SELECT to_regproc('yb_get_effective_transaction_isolation_level') IS NOT NULL";
    if !statement::<Bool>(EXISTS).get_result(connection).await? {
        return Ok(None);
    }
    connection.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let level: String =
        statement::<Text>("SELECT yb_get_effective_transaction_isolation_level()::text")
            .get_result(connection)
            .await?;
    connection.batch_execute("ROLLBACK").await?;
    Ok((!level.eq_ignore_ascii_case("read committed")).then_some(level))
}

/// Makes the records of the audit from before it had partitions one of these, unless that is done
/// or another process is at it.
///
/// Not in the transaction of the migration, because the whole table is read and an index of it made
/// first, for minutes if it is large. Nobody writes to it any more meanwhile.
async fn attach_audit_before(
    target: &Target,
    connection: &mut AsyncPgConnection,
) -> diesel::QueryResult<()> {
    if detached_bytes(connection).await?.is_none() {
        return Ok(());
    }
    connection
        .batch_execute(
            "BEGIN; SET LOCAL statement_timeout = '1h'; SET LOCAL lock_timeout = '500ms'",
        )
        .await?;
    if target.has_locks && !try_lock(connection, ATTACH_LOCK).await? {
        return connection.batch_execute("ROLLBACK").await;
    }
    let is_left = detached_bytes(connection).await?.is_some();
    if is_left {
        let prepare = "CREATE UNIQUE INDEX IF NOT EXISTS audit_before_key ON audit_before (at, \
                       id); ALTER TABLE audit_before VALIDATE CONSTRAINT audit_before_at";
        connection.batch_execute(prepare).await?;
    }
    connection.batch_execute("COMMIT").await?;
    // Records since the migration, of which few are left to be moved under a lock.
    while is_left && statement::<()>(MOVE_TO_AUDIT_BEFORE).execute(connection).await? > 0 {}
    let mut lock_timeouts = LOCK_TIMEOUTS.iter().peekable();
    while let Some(lock_timeout) = lock_timeouts.next() {
        connection
            .batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '{lock_timeout}'"))
            .await?;
        match connection.batch_execute(ATTACH_AUDIT_BEFORE).await {
            Err(error) if is_lock_not_available(&error) && lock_timeouts.peek().is_some() => {
                connection.batch_execute("ROLLBACK").await?;
                sleep(LOCK_PAUSE).await;
            }
            attached => {
                attached?;
                return connection.batch_execute("COMMIT").await;
            }
        }
    }
    Ok(())
}

/// Returns the size of the records of the audit from before it had partitions, if they are a table
/// by themselves.
async fn detached_bytes(connection: &mut AsyncPgConnection) -> diesel::QueryResult<Option<i64>> {
    let sql = "SELECT pg_relation_size(c.oid)
        FROM pg_class AS c
        JOIN pg_constraint AS k ON k.conrelid = c.oid AND k.conname = 'audit_before_at'
        WHERE c.oid = to_regclass('audit_before') AND NOT c.relispartition";
    Ok(statement::<BigInt>(sql).load(connection).await?.into_iter().next())
}

/// Makes pending migrations, if it may, and returns them.
async fn update_schema(
    target: &mut Target,
    connection: &mut AsyncPgConnection,
    may_migrate: bool,
) -> Result<Vec<&'static str>, OpenError> {
    let database = target.name().to_owned();
    let other = |error: diesel::result::Error| OpenError::other(&database, &error);
    // An engine without such locks fails here and not in the transaction; there, who comes second
    // fails and starts again.
    let is_free = try_lock(connection, MIGRATION_LOCK).await;
    target.has_locks = is_free.is_ok();
    if !may_migrate {
        let pending = pending(target, connection).await?;
        return match pending.as_slice().first() {
            Some((migration, _)) => {
                Err(OpenError::Older { database, migration: (*migration).to_owned() })
            }
            None => Ok(vec![]),
        };
    }
    if is_free == Ok(false) {
        tracing::info!("another process is migrating the database; waiting for it");
    }
    let mut lock_timeouts = LOCK_TIMEOUTS.iter().peekable();
    loop {
        let lock_timeout = lock_timeouts.next().copied().unwrap_or_default();
        match try_to_migrate(target, connection, lock_timeout).await {
            Err(OpenError::Migration { problem, .. })
                if is_held(&problem) && lock_timeouts.peek().is_some() =>
            {
                connection.batch_execute("ROLLBACK").await.map_err(other)?;
                sleep(LOCK_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Makes pending migrations in a transaction of its own, or none. They wait this long for a table.
async fn try_to_migrate(
    target: &Target,
    connection: &mut AsyncPgConnection,
    lock_timeout: &str,
) -> Result<Vec<&'static str>, OpenError> {
    let other = |error: diesel::result::Error| OpenError::other(target.name(), &error);
    connection
        .batch_execute("BEGIN; SET LOCAL statement_timeout = '10min'")
        .await
        .map_err(other)?;
    if target.has_locks {
        let lock =
            statement::<()>("SELECT pg_advisory_xact_lock(?)").bind::<BigInt, _>(MIGRATION_LOCK);
        lock.execute(connection).await.map_err(other)?;
    }
    // Not before: for another process that migrates one waits as long as it takes.
    connection
        .batch_execute(&format!("SET LOCAL lock_timeout = '{lock_timeout}'"))
        .await
        .map_err(other)?;
    let made = migrate(target, connection).await?;
    connection.batch_execute("COMMIT").await.map_err(other)?;
    for version in &made {
        tracing::info!(migration = version, "database migrated");
    }
    Ok(made)
}

/// Returns whether nobody else had this lock, which the transaction has now.
async fn try_lock(connection: &mut AsyncPgConnection, lock: i64) -> diesel::QueryResult<bool> {
    statement::<Bool>("SELECT pg_try_advisory_xact_lock(?)")
        .bind::<BigInt, _>(lock)
        .get_result(connection)
        .await
}

/// The migrations that the database lacks. It must not have one that we do not know.
async fn pending(
    target: &Target,
    connection: &mut AsyncPgConnection,
) -> Result<Vec<&'static (&'static str, &'static str)>, OpenError> {
    let other = |error: diesel::result::Error| OpenError::other(target.name(), &error);
    if !is_recorded(connection).await.map_err(other)? {
        return Ok(MIGRATIONS.iter().collect());
    }
    let applied: Vec<String> =
        statement::<Text>("SELECT version::text FROM __diesel_schema_migrations ORDER BY version")
            .load(connection)
            .await
            .map_err(other)?;
    if let Some(newer) =
        applied.iter().find(|version| !MIGRATIONS.iter().any(|(known, _)| known == version))
    {
        return Err(OpenError::Newer {
            database: target.name().to_owned(),
            migration: newer.clone(),
        });
    }
    Ok(MIGRATIONS
        .iter()
        .filter(|(version, _)| !applied.iter().any(|applied| applied == version))
        .collect())
}

/// Returns whether there is a table of migrations. A role without the right to create may not even
/// say IF NOT EXISTS.
async fn is_recorded(connection: &mut AsyncPgConnection) -> diesel::QueryResult<bool> {
    statement::<Bool>("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL")
        .get_result(connection)
        .await
}

/// Makes pending migrations in the transaction that is open: all of them or none.
async fn migrate(
    target: &Target,
    connection: &mut AsyncPgConnection,
) -> Result<Vec<&'static str>, OpenError> {
    let other = |error: diesel::result::Error| OpenError::other(target.name(), &error);
    if !is_recorded(connection).await.map_err(other)? {
        connection
            .batch_execute(
                "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY NOT \
                 NULL, run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            )
            .await
            .map_err(other)?;
    }
    let mut made = vec![];
    for (version, sql) in pending(target, connection).await? {
        let failed = |error: diesel::result::Error| OpenError::Migration {
            database: target.name().to_owned(),
            migration: (*version).to_owned(),
            is_temporary: Class::of(&error).is_temporary(),
            problem: error.to_string(),
        };
        connection.batch_execute(sql).await.map_err(failed)?;
        statement::<()>("INSERT INTO __diesel_schema_migrations (version) VALUES (?)")
            .bind::<Text, _>(*version)
            .execute(connection)
            .await
            .map_err(failed)?;
        made.push(*version);
    }
    if !made.is_empty() {
        connection.batch_execute("SAVEPOINT tuning").await.map_err(other)?;
        if let Err(error) = connection.batch_execute(TUNING).await {
            tracing::warn!(%error, "the tables keep the storage settings of the server");
            connection.batch_execute("ROLLBACK TO SAVEPOINT tuning").await.map_err(other)?;
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These leave a table of the same name that takes the same statements:
    /// `a_replica_of_the_version_before_partitions_writes_and_sweeps` in `tests/store`.
    const EXCEPTIONS: [(&str, &str); 5] = [
        ("0011", "ALTER TABLE audit RENAME TO audit_before;"),
        ("0011", "ALTER INDEX audit_pkey RENAME TO audit_before_pkey;"),
        // Of the new table, and for the same statements.
        ("0011", "ALTER TABLE audit DROP CONSTRAINT audit_pkey;"),
        ("0011", "CREATE UNIQUE INDEX audit_key ON audit (at, id);"),
        // Nobody writes to this table any more.
        (
            "0011",
            "'ALTER TABLE audit_before ADD CONSTRAINT audit_before_at CHECK (at < %L) NOT VALID'",
        ),
    ];

    /// A migration that takes something away, or demands more of a row than before, breaks the
    /// replicas that are still of the version before. An index may go where another one serves
    /// them.
    #[test]
    fn a_migration_only_adds() {
        for (version, sql) in &MIGRATIONS[1..] {
            let mut sql = (*sql).to_owned();
            for (_, exception) in EXCEPTIONS.iter().filter(|(of, _)| of == version) {
                assert_eq!(sql.matches(exception).count(), 1, "{version}: {exception}");
                sql = sql.replace(exception, "");
            }
            let statements: Vec<_> =
                sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            let sql = statements.join("\n").to_uppercase().replace("DROP INDEX", "");
            for word in [
                "DROP ",
                "RENAME ",
                " TYPE ",
                "SET NOT NULL",
                "ADD CONSTRAINT",
                "UNIQUE INDEX",
                "TRUNCATE ",
            ] {
                assert!(!sql.contains(word), "{version}: {word}");
            }
            for column in sql.split("ADD COLUMN").skip(1) {
                let column = column.split([',', ';']).next().unwrap();
                assert!(
                    !column.contains("NOT NULL") || column.contains("DEFAULT"),
                    "{version}: {column}"
                );
            }
        }
    }
}
