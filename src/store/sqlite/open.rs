//! Checks that the file is an intact database of this service, and brings its schema up to date.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    dsl::sql,
    migration::MigrationSource,
    sql_query,
    sql_types::{BigInt, Integer, Text},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{
    connection::{
        BUSY_TIMEOUT, configure_writer, open_ignoring_log, open_leaving_no_trace, open_with,
    },
    error::OpenError,
    files::{self, beside, check_access},
    ring,
    space::KEEP_TRACK,
    stamp,
};
use crate::{
    domain::{
        disk,
        file_access::{Role, Rule},
    },
    store::{StoreError, ring::SealedRing},
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// The message of SQLite after it has waited too long for a lock. Diesel passes on the message of
/// an error, but not its code.
const LOCKED: &str = "database is locked";
/// The messages of SQLite if it cannot create the files beside the database.
const NOT_WRITABLE: [&str; 2] =
    ["unable to open database file", "attempt to write a readonly database"];

/// The depth of a check for damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The header, the length of the file and the schema.
    Header,
    /// Each page by itself.
    Quick,
    /// Also each index against its table. This takes several times as long as the quick check.
    Full,
}

/// The identifier in the header of our files (`PRAGMA application_id`): "CSgn" in ASCII.
const APPLICATION_ID: i32 = 0x4353_676e;

#[derive(QueryableByName)]
struct Header {
    #[diesel(sql_type = Integer)]
    application_id: i32,
    #[diesel(sql_type = BigInt)]
    tables: i64,
}

/// Checks the file, and brings its schema up to date if `may_migrate` is true. A file that is
/// rejected is left as it was. Returns the migrations that were run.
pub fn prepare(path: &Path, may_migrate: bool) -> Result<Vec<String>, OpenError> {
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    for file in files::all(path) {
        check_access(&file, Role::Database, Rule::OthersOnlyRead)?;
        files::require_writable(&file)?;
    }
    files::refuse_unfinished_restore(path)?;
    // Checking all pages takes seconds for each gigabyte, so this is skipped if the file was closed
    // cleanly.
    let depth = if stamp::check(path)? { Depth::Header } else { Depth::Quick };
    let is_there = path.metadata().is_ok_and(|metadata| metadata.len() > 0);
    let applied = if is_there { check(path, depth)? } else { vec![] };
    let is_ours = !applied.is_empty();
    if let Some(migration) = known(path)?.into_iter().find(|version| !applied.contains(version)) {
        if !may_migrate {
            return Err(OpenError::Older { path: path.to_owned(), migration });
        }
        stamp::forget(path)?;
    }
    if !is_there {
        // The file is created here, because SQLite would create it readable for all users.
        let mut options = OpenOptions::new();
        let made = options.write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    }
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())
        .map_err(|error| other(error.to_string()))?;
    // `KEEP_TRACK` is executed only if the file has no tables yet, because SQLite writes the
    // setting to the file even if the file already has it.
    let first =
        if is_ours { BUSY_TIMEOUT.to_owned() } else { format!("{BUSY_TIMEOUT}; {KEEP_TRACK}") };
    let configured =
        connection.batch_execute(&first).and_then(|()| configure_writer(&mut connection));
    configured.map_err(|error| match error.to_string() {
        problem if NOT_WRITABLE.contains(&problem.as_str()) => {
            OpenError::ReadOnly { path: path.to_owned(), problem }
        }
        problem => other(problem),
    })?;
    files::make_private(path)?;
    if !is_ours {
        let mark = format!("PRAGMA application_id = {APPLICATION_ID}");
        connection.batch_execute(&mark).map_err(|error| other(error.to_string()))?;
    }
    let made =
        connection.run_pending_migrations(MIGRATIONS).map_err(|error| other(error.to_string()))?;
    Ok(made.iter().map(ToString::to_string).collect())
}

/// Returns the versions of all migrations, in order.
fn known(path: &Path) -> Result<Vec<String>, OpenError> {
    let known = MigrationSource::<diesel::sqlite::Sqlite>::migrations(&MIGRATIONS)
        .map_err(|error| OpenError::Other { path: path.to_owned(), problem: error.to_string() })?;
    Ok(known.iter().map(|migration| migration.name().version().to_string()).collect())
}

#[derive(QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Rejects a file that is damaged, that belongs to another program, or that is too new. Otherwise
/// returns the versions of the migrations that were run on the file; if it has no tables, there are
/// none.
///
/// The file is opened read-only. If a connection that can write were closed, SQLite would write the
/// log of an earlier crash back into the file, even into a rejected one.
pub fn check(path: &Path, depth: Depth) -> Result<Vec<String>, OpenError> {
    // If there is no log, the file is complete by itself, and can be read without the files beside
    // it.
    let mut connection = match beside(path, "-wal").exists() {
        true => open_with(path, "mode=ro")?,
        false => open_ignoring_log(path)?,
    };
    check_over(&mut connection, path, depth)
}

/// Checks a file as [`check`] does, over a connection that is open already.
fn check_over(
    connection: &mut SqliteConnection,
    path: &Path,
    depth: Depth,
) -> Result<Vec<String>, OpenError> {
    let damaged = |problem: String| OpenError::Damaged { path: path.to_owned(), problem };
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    let refused = |error: diesel::result::Error| {
        let problem = error.to_string();
        // A lock or a full disk is no damage, and must not induce an operator to restore a backup.
        if problem == LOCKED || disk::remedy(&problem).is_some() {
            other(problem)
        } else {
            damaged(problem)
        }
    };
    let findings: Vec<String> = match depth {
        Depth::Header => vec![],
        Depth::Quick => sql::<Text>("PRAGMA quick_check(1)").load(connection).map_err(refused)?,
        Depth::Full => {
            sql::<Text>("PRAGMA integrity_check(1)").load(connection).map_err(refused)?
        }
    };
    // A page that cannot be read because of an I/O error is not necessarily damaged.
    if let Some(problem) = findings.iter().find_map(|finding| disk::io_error_in(finding)) {
        return Err(other(problem));
    }
    if let Some(finding) = findings.iter().find(|finding| *finding != "ok") {
        // A finding may have several lines, but an error message has one.
        return Err(damaged(finding.replace('\n', " ")));
    }
    let header: Header = sql_query(
        "SELECT application_id, (SELECT count(*) FROM sqlite_master) AS tables
        FROM pragma_application_id",
    )
    .get_result(connection)
    .map_err(refused)?;
    if header.tables == 0 {
        return Ok(vec![]);
    }
    if header.application_id != APPLICATION_ID {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let applied: Vec<Applied> =
        sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version")
            .load(connection)
            .map_err(refused)?;
    let known = known(path)?;
    let applied: Vec<String> = applied.into_iter().map(|applied| applied.version).collect();
    match applied.iter().find(|version| !known.contains(version)) {
        Some(newer) => Err(OpenError::Newer { path: path.to_owned(), migration: newer.clone() }),
        None => Ok(applied),
    }
}

/// Checks a whole database for damage, even while a service uses it.
pub fn check_whole(path: &Path) -> Result<(), OpenError> {
    let path = files::resolve(path)?;
    files::refuse_unfinished_restore(&path)?;
    check(&path, Depth::Full).map(drop)
}

/// The state of a database file.
#[derive(Debug)]
pub struct Inspection {
    /// The version of the SQLite library.
    pub library_version: String,
    /// The migrations that have not been run on the file.
    pub pending: Vec<String>,
    /// True if the file has no tables.
    pub is_empty: bool,
    /// The sealed keys; none if the schema is not the one of this version.
    pub ring: Option<Result<SealedRing, StoreError>>,
}

/// Reads the header, the schema and the keys of a database file, even while a service uses it.
/// Changes nothing, and creates no file.
pub fn inspect(path: &Path) -> Result<Inspection, OpenError> {
    let other = |problem: String| OpenError::Other { path: path.to_owned(), problem };
    let mut connection = open_leaving_no_trace(path)?;
    let applied = check_over(&mut connection, path, Depth::Header)?;
    let library_version = sql::<Text>("SELECT sqlite_version()")
        .get_result(&mut connection)
        .map_err(|error| other(error.to_string()))?;
    let pending: Vec<_> =
        known(path)?.into_iter().filter(|version| !applied.contains(version)).collect();
    let ring = pending.is_empty().then(|| ring::ring(&mut connection));
    Ok(Inspection { library_version, pending, is_empty: applied.is_empty(), ring })
}
