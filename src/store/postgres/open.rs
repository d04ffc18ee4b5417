//! Connecting, and bringing the schema up to date.

use std::{error::Error as _, fmt, time::Duration};

use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio_postgres::{
    Config, NoTls,
    config::{Host, SslMode, TargetSessionAttrs},
};

use super::sql::statement;

/// Each migration with its version, in order. The table that records them is the one that Diesel's own tool uses.
const MIGRATIONS: [(&str, &str); 1] = [("0001", include_str!("../../../migrations/postgres/0001_initial/up.sql"))];
/// How the tables are stored. Not a migration, because an engine may do without.
const TUNING: &str = include_str!("tuning.sql");

/// The oldest version that works, as `server_version_num` has it.
const OLDEST_VERSION: i64 = 130_000;

/// How long a host may take to answer when it is being connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a silent network may keep a connection.
const SILENCE: Duration = Duration::from_secs(15);

/// What every connection is set to. Nothing acknowledged may be lost, so commits wait for the disk even where the server is
/// set up not to; and a statement or a transaction that nobody waits for any more must not keep its locks.
const SETTINGS: &str = "SET default_transaction_isolation = 'read committed'; SET statement_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '20s'; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
/// Each statement has its index, and reads it in order, also where a plan was made while the table was still empty. An engine
/// may not know these.
const PLANNING: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
     SET enable_mergejoin = off; SET jit = off";

/// The name of the lock under which migrations run: "CSgn" in ASCII.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(1129539438)";

/// The database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL says what the driver does not understand.
    #[error("setting database_url: {0}")]
    Url(String),
    /// The URL demands TLS.
    #[error(
        "setting database_url: this version connects to PostgreSQL without TLS: use sslmode=disable, and a network that \
         nobody else reads"
    )]
    Tls,
    /// There is no way in.
    #[error("database {database} cannot be reached: {problem}")]
    Connect {
        /// Which, without the password.
        database: String,
        /// Why not.
        problem: String,
    },
    /// The server is too old.
    #[error("database {database} is of PostgreSQL {version}: 13 or newer is needed")]
    TooOld {
        /// Which.
        database: String,
        /// Its version.
        version: i64,
    },
    /// The database does not keep every text.
    #[error(
        "database {database} has the encoding {encoding}: make one with `createdb --encoding=UTF8 --template=template0`"
    )]
    Encoding {
        /// Which.
        database: String,
        /// Its encoding.
        encoding: String,
    },
    /// A newer version of the service has changed it.
    #[error(
        "database {database} has the schema of a newer countersign (migration {migration}): run that version or a newer \
         one"
    )]
    Newer {
        /// Which.
        database: String,
        /// The first migration that this version does not know.
        migration: String,
    },
    /// A migration failed; the database is as it was.
    #[error("database {database} cannot be migrated to {migration}: {problem}")]
    Migration {
        /// Which.
        database: String,
        /// The migration.
        migration: String,
        /// What the database said.
        problem: String,
    },
    /// Anything else that the database said.
    #[error("database {database} cannot be opened: {problem}")]
    Other {
        /// Which.
        database: String,
        /// What it said.
        problem: String,
    },
}

/// Where the database is. Prints without the password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    name: String,
    /// Whether there are advisory locks. Where there are none, what they order is ordered less strictly.
    pub has_locks: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Target {
    /// Reads a URL; `name` is what errors call the database.
    pub fn parse(url: &str, name: String) -> Result<Self, OpenError> {
        let mut config: Config = url.parse().map_err(|error| OpenError::Url(chain(&error)))?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(OpenError::Tls);
        }
        config.ssl_mode(SslMode::Disable);
        if config.get_application_name().is_none() {
            config.application_name("countersign");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // After a failover the standby of yesterday answers, and the primary of yesterday only reads.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.keepalives_idle(SILENCE).tcp_user_timeout(SILENCE);
        Ok(Self { config, name, has_locks: false })
    }

    /// Whether others on the network can read along.
    pub fn is_exposed(&self) -> bool {
        self.config.get_hosts().iter().any(|host| match host {
            Host::Tcp(name) => {
                name != "localhost" && !name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
            }
            Host::Unix(_) => false,
        })
    }
}

/// An error in one line, with its causes.
fn chain(error: &tokio_postgres::Error) -> String {
    let mut line = if error.as_db_error().is_some() { String::new() } else { error.to_string() };
    let mut source = error.source();
    while let Some(cause) = source {
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Makes a connection.
pub async fn connect(target: &Target) -> Result<AsyncPgConnection, OpenError> {
    let failed = |problem| OpenError::Connect { database: target.name.clone(), problem };
    let (client, connection) = target.config.connect(NoTls).await.map_err(|error| failed(chain(&error)))?;
    let mut connection = AsyncPgConnection::try_from_client_and_connection(client, connection)
        .await
        .map_err(|error| failed(error.to_string()))?;
    connection.batch_execute(SETTINGS).await.map_err(|error| failed(error.to_string()))?;
    // If this failed because the connection is lost, the next statement will say so.
    if let Err(error) = connection.batch_execute(PLANNING).await {
        tracing::debug!(%error, "the planner takes no advice");
    }
    Ok(connection)
}

/// Brings the schema up to date. Of several who do this at once, one does it and the others wait.
pub async fn prepare(target: &mut Target) -> Result<(), OpenError> {
    let mut connection = connect(target).await?;
    let database = target.name.clone();
    let other =
        |error: diesel::result::Error| OpenError::Other { database: database.clone(), problem: error.to_string() };
    let (version, encoding): (i64, String) = statement::<(BigInt, Text)>(
        "SELECT current_setting('server_version_num')::bigint, current_setting('server_encoding')",
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

    // An engine without such locks fails here and not in the transaction; there, who comes second fails and starts again.
    target.has_locks = connection.batch_execute(MIGRATION_LOCK).await.is_ok();
    let target = &*target;
    connection.batch_execute("BEGIN; SET LOCAL statement_timeout = '10min'").await.map_err(other)?;
    if target.has_locks {
        connection.batch_execute(MIGRATION_LOCK).await.map_err(other)?;
    }
    migrate(target, &mut connection).await?;
    connection.batch_execute("COMMIT").await.map_err(other)
}

/// Runs pending migrations in the transaction that is open: all of them or none.
async fn migrate(target: &Target, connection: &mut AsyncPgConnection) -> Result<(), OpenError> {
    let database = || target.name.clone();
    let other = |error: diesel::result::Error| OpenError::Other { database: database(), problem: error.to_string() };
    // Asked before, because a role without the right to create may not even say IF NOT EXISTS.
    let is_there: i64 = statement::<BigInt>(
        "SELECT count(*) FROM (SELECT to_regclass('__diesel_schema_migrations') AS t) AS x WHERE t IS NOT NULL",
    )
    .get_result(connection)
    .await
    .map_err(other)?;
    if is_there == 0 {
        connection
            .batch_execute(
                "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY NOT NULL, \
                 run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            )
            .await
            .map_err(other)?;
    }
    let applied: Vec<String> =
        statement::<Text>("SELECT version::text FROM __diesel_schema_migrations ORDER BY version")
            .load(connection)
            .await
            .map_err(other)?;
    if let Some(newer) = applied.iter().find(|version| !MIGRATIONS.iter().any(|(known, _)| known == version)) {
        return Err(OpenError::Newer { database: database(), migration: newer.clone() });
    }
    let pending = || MIGRATIONS.iter().filter(|(version, _)| !applied.iter().any(|applied| applied == version));
    for (version, sql) in pending() {
        let failed = |error: diesel::result::Error| OpenError::Migration {
            database: database(),
            migration: (*version).to_owned(),
            problem: error.to_string(),
        };
        connection.batch_execute(sql).await.map_err(failed)?;
        statement::<()>("INSERT INTO __diesel_schema_migrations (version) VALUES (?)")
            .bind::<Text, _>(*version)
            .execute(connection)
            .await
            .map_err(failed)?;
        tracing::info!(migration = version, "database migrated");
    }
    if pending().next().is_some() {
        connection.batch_execute("SAVEPOINT tuning").await.map_err(other)?;
        if let Err(error) = connection.batch_execute(TUNING).await {
            tracing::warn!(%error, "the tables keep the storage settings of the server");
            connection.batch_execute("ROLLBACK TO SAVEPOINT tuning").await.map_err(other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_migration_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
        let mut versions: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().split('_').next().unwrap().to_owned())
            .collect();
        versions.sort();
        assert_eq!(versions, MIGRATIONS.map(|(version, _)| version));
    }

    #[test]
    fn what_is_printed_has_no_password() {
        let target = Target::parse("postgres://u:secret@h/d", "postgres://u@h/d".to_owned()).unwrap();
        assert!(!format!("{target:?}").contains("secret"));
    }
}
