//! Checks the database, and brings its schema up to date.

use std::time::Duration;

use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio::time::sleep;

use super::{
    audit::partitions::{ATTACH_AUDIT_BEFORE, MOVE_TO_AUDIT_BEFORE},
    connection::{
        connect::Target,
        open_error::{OpenError, is_held},
        sqlstate::{Class, is_lock_not_available},
    },
    sql::statement,
};

/// The migrations with their versions, in order. They are recorded in the table that Diesel's own
/// tool uses.
///
/// The previous version of the service must work with the schema that a migration leaves behind,
/// because replicas are replaced one after the other. So a migration only adds to the schema; the
/// test `a_migration_only_adds` checks this. What a migration makes obsolete may be removed only by
/// the next version.
const MIGRATIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/postgres_migrations.rs"));
/// The storage settings of the tables. They are not part of a migration, because they may fail: an
/// engine that lacks such settings works too.
const TUNING: &str = include_str!("tuning.sql");

/// The oldest version of PostgreSQL that works, in the form of `server_version_num`.
const OLDEST_VERSION: i64 = 130_000;

/// The key of the advisory lock under which migrations run: "CSgn" in ASCII.
const MIGRATION_LOCK: i64 = 1_129_539_438;
/// The key of the advisory lock under which the old audit records are attached. A process that
/// finds the lock taken does not wait for it.
const ATTACH_LOCK: i64 = MIGRATION_LOCK + 1;

/// The time for which each statement of a migration waits for the lock of a table, one value for
/// each attempt. Writers of the table queue behind the waiting migration. The last attempt waits
/// longer than the server's `deadlock_timeout` (1 second), after which the server cancels an
/// automatic vacuum that holds the lock.
const LOCK_TIMEOUTS: [&str; 5] = ["500ms", "500ms", "500ms", "500ms", "1500ms"];
/// The pause between two attempts, in which the writers that have queued behind the migration
/// proceed.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// The largest size, in bytes, up to which the table of the audit records from before there were
/// partitions is attached during the start. This takes less than a second. A larger table is
/// attached later, so that the process can serve before that is done.
const LARGEST_IN_PASSING: i64 = 8 << 20;

/// The result of [`prepare`].
pub struct Prepared {
    /// The versions of the migrations that were run.
    pub made: Vec<&'static str>,
    /// True if the audit records from before there were partitions are still in a table of their
    /// own, which [`attach_audit`] attaches.
    pub has_detached_records: bool,
}

/// Checks the database, and brings its schema up to date if `may_migrate` is true. If several
/// processes call this function at once, one of them migrates and the others wait.
pub async fn prepare(target: &mut Target, may_migrate: bool) -> Result<Prepared, OpenError> {
    let mut connection = target.connect().await?.connection;
    let database = target.name().to_owned();
    let other = |error: diesel::result::Error| OpenError::other(&database, &error);
    let role = check_server(target, &mut connection).await?;
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

/// Rejects a server or a database that the service cannot use. Returns the quoted name of the role
/// of this session.
pub(super) async fn check_server(
    target: &Target,
    connection: &mut AsyncPgConnection,
) -> Result<String, OpenError> {
    let database = target.name().to_owned();
    let other = |error: diesel::result::Error| OpenError::other(&database, &error);
    let (version, encoding, role): (i64, String, String) = statement::<(BigInt, Text, Text)>(
        "SELECT
            current_setting('server_version_num')::bigint,
            current_setting('server_encoding'),
            quote_ident(current_user)",
    )
    .get_result(connection)
    .await
    .map_err(other)?;
    if version < OLDEST_VERSION {
        return Err(OpenError::TooOld { database, version: version / 10_000 });
    }
    if encoding != "UTF8" {
        return Err(OpenError::Encoding { database, encoding });
    }
    if let Some(level) = other_isolation(connection).await.map_err(other)? {
        return Err(OpenError::Isolation { database, level });
    }
    Ok(role)
}

/// Makes the table of the audit records from before there were partitions a partition of the audit,
/// over a connection of its own. A failure is only logged.
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

/// Logs a warning if the old records could not be attached. The records are safe, and the service
/// does not need them.
fn warn_of_detached(attached: diesel::QueryResult<()>) {
    if let Err(error) = attached {
        tracing::warn!(%error, "{DETACHED}");
    }
}

/// Returns the isolation level that YugabyteDB uses instead of READ COMMITTED, as it does by
/// default. Returns none if READ COMMITTED is in effect. On other engines the answer is none,
/// because they lack the function that returns the level in effect.
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

/// Makes the table of the audit records from before there were partitions a partition of the audit,
/// unless this has been done or another process is doing it.
///
/// The attachment is not part of the migration's transaction, because the server first reads and
/// indexes the whole table, which takes minutes if the table is large. No process writes to that
/// table any more.
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
    // Moves the records that were written after the migration, in small steps, so that few are left
    // to be moved under a lock.
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

/// Returns the size, in bytes, of the table of the audit records from before there were partitions.
/// Returns none if there is no such table, or if it is a partition already.
async fn detached_bytes(connection: &mut AsyncPgConnection) -> diesel::QueryResult<Option<i64>> {
    let sql = "SELECT pg_relation_size(c.oid)
        FROM pg_class AS c
        JOIN pg_constraint AS k ON k.conrelid = c.oid AND k.conname = 'audit_before_at'
        WHERE c.oid = to_regclass('audit_before') AND NOT c.relispartition";
    Ok(statement::<BigInt>(sql).load(connection).await?.into_iter().next())
}

/// Runs the pending migrations if `may_migrate` is true, and returns their versions. If it is false
/// and a migration is pending, this function fails.
async fn update_schema(
    target: &mut Target,
    connection: &mut AsyncPgConnection,
    may_migrate: bool,
) -> Result<Vec<&'static str>, OpenError> {
    let database = target.name().to_owned();
    let other = |error: diesel::result::Error| OpenError::other(&database, &error);
    // An engine without advisory locks rejects this statement. It is sent before the transaction
    // begins, because an error there would abort the transaction. If two processes migrate on such
    // an engine, the second one fails and has to start again.
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

/// Runs all pending migrations in one transaction. Each statement waits at most `lock_timeout` for
/// the lock of a table.
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
    // `lock_timeout` is set only after the advisory lock was taken, because it would otherwise end
    // the wait for another process that migrates.
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

/// Tries to take an advisory lock until the end of the transaction, and returns whether this
/// succeeded.
async fn try_lock(connection: &mut AsyncPgConnection, lock: i64) -> diesel::QueryResult<bool> {
    statement::<Bool>("SELECT pg_try_advisory_xact_lock(?)")
        .bind::<BigInt, _>(lock)
        .get_result(connection)
        .await
}

/// Returns the migrations that have not been run on the database. Fails if the database records one
/// that this version does not know.
pub(super) async fn pending(
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

/// Returns the number of migrations that this version knows.
pub(super) fn migrations() -> usize {
    MIGRATIONS.len()
}

/// Returns whether the table of migrations exists. The statement CREATE TABLE IF NOT EXISTS cannot
/// be used instead: for a role without the right to create tables, it fails even if the table
/// exists.
async fn is_recorded(connection: &mut AsyncPgConnection) -> diesel::QueryResult<bool> {
    statement::<Bool>("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL")
        .get_result(connection)
        .await
}

/// Runs the pending migrations in the open transaction, and returns their versions.
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

    /// Statements that only seem to remove something: they leave a table of the same name, on which
    /// the statements of older replicas work, as
    /// `a_replica_of_the_version_without_partitions_writes_and_sweeps` in `tests/store` shows.
    const EXCEPTIONS: [(&str, &str); 5] = [
        ("0011", "ALTER TABLE audit RENAME TO audit_before;"),
        ("0011", "ALTER INDEX audit_pkey RENAME TO audit_before_pkey;"),
        // The following two change the new table. The statements of older replicas work on it too.
        ("0011", "ALTER TABLE audit DROP CONSTRAINT audit_pkey;"),
        ("0011", "CREATE UNIQUE INDEX audit_key ON audit (at, id);"),
        // No process writes to this table any more.
        (
            "0011",
            "'ALTER TABLE audit_before ADD CONSTRAINT audit_before_at CHECK (at < %L) NOT VALID'",
        ),
    ];

    /// A migration breaks replicas of the previous version if it removes something, or demands more
    /// of a row than before. It may drop an index if another index serves the statements of those
    /// replicas.
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
