//! The reasons why a database cannot be opened.

use std::{io, path::PathBuf};

use super::sqlstate::{Class, LOCK_NOT_AVAILABLE, coded};

/// The reason why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL, or a file that it names, cannot be used.
    #[error("setting database_url: {0}")]
    Url(String),
    /// The file with the password cannot be read.
    #[error("setting database.password_file: {path}: {source}")]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No connection can be made.
    #[error("database {database} cannot be reached: {problem}")]
    Connect {
        /// The database, without the password.
        database: String,
        /// The reason.
        problem: String,
        /// True if a later attempt may succeed although nobody changes anything.
        is_temporary: bool,
    },
    /// The server is too old.
    #[error("database {database} is of PostgreSQL {version}: 13 or newer is needed")]
    TooOld {
        /// The database, without the password.
        database: String,
        /// The version of the server.
        version: i64,
    },
    /// The encoding of the database cannot represent all texts that the service stores.
    #[error(
        "database {database} has the encoding {encoding}: make one with `createdb --encoding=UTF8 \
         --template=template0`"
    )]
    Encoding {
        /// The database, without the password.
        database: String,
        /// The encoding of the database.
        encoding: String,
    },
    /// The engine does not run transactions at the isolation level that it is asked for.
    #[error(
        "database {database} is a YugabyteDB that runs READ COMMITTED as {level}, under which \
         limits of sessions do not hold: start its servers with \
         --yb_enable_read_committed_isolation=true (docs/scale.md)"
    )]
    Isolation {
        /// The database, without the password.
        database: String,
        /// The level that it uses instead.
        level: String,
    },
    /// A newer version of the service has migrated the database.
    #[error(
        "database {database} has the schema of a newer countersign (migration {migration}): run \
         that version or a newer one"
    )]
    Newer {
        /// The database, without the password.
        database: String,
        /// The first migration that this version does not know.
        migration: String,
    },
    /// The schema is of an older version, and this process may not migrate it.
    #[error(
        "database {database} has the schema of an older countersign (migration {migration} is \
         missing): run `countersign migrate` with the rights of its owner, or start without \
         --no-migrate"
    )]
    Older {
        /// The database, without the password.
        database: String,
        /// The first migration that is missing.
        migration: String,
    },
    /// A migration failed. The database is unchanged.
    #[error("database {database} cannot be migrated to {migration}: {problem}")]
    Migration {
        /// The database, without the password.
        database: String,
        /// The migration.
        migration: String,
        /// The message of the database.
        problem: String,
        /// True if a later attempt may succeed although nobody changes anything.
        is_temporary: bool,
    },
    /// The database reported another error.
    #[error("database {database} cannot be opened: {problem}")]
    Other {
        /// The database, without the password.
        database: String,
        /// The message of the database.
        problem: String,
        /// True if a later attempt may succeed although nobody changes anything.
        is_temporary: bool,
    },
}

impl OpenError {
    /// Returns whether a later attempt may succeed although nobody changes anything: the server may
    /// still be starting, or its name may not resolve yet. An error such as a wrong password, a
    /// wrong database or a wrong certificate is permanent.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Connect { is_temporary: true, .. }
                | Self::Migration { is_temporary: true, .. }
                | Self::Other { is_temporary: true, .. }
        )
    }

    /// Creates the error for a statement that failed.
    pub fn other(database: &str, error: &diesel::result::Error) -> Self {
        let is_temporary = Class::of(error).is_temporary();
        Self::Other { database: database.to_owned(), problem: error.to_string(), is_temporary }
    }

    /// Adds a remedy to the message of the database, if the message is about a right that this role
    /// lacks or about a table that another session has locked.
    pub fn with_remedy(self, role: &str) -> Self {
        let explain = |problem: String| match (missing_right(&problem, role), is_held(&problem)) {
            (Some(remedy), _) => {
                format!("{problem}: {remedy} (docs/postgresql.md, Roles and rights)")
            }
            (None, true) => format!("{problem}: {HELD} (docs/postgresql.md, Upgrades)"),
            (None, false) => problem,
        };
        match self {
            Self::Migration { database, migration, problem, is_temporary } => {
                Self::Migration { database, migration, problem: explain(problem), is_temporary }
            }
            Self::Other { database, problem, is_temporary } => {
                Self::Other { database, problem: explain(problem), is_temporary }
            }
            other => other,
        }
    }
}

/// The remedy if another session has locked a table.
const HELD: &str = "some session holds the table, and the service's own writes must not wait \
                    behind a migration: see pg_stat_activity for it, and run `countersign \
                    migrate` again when it is idle";

/// Returns the remedy if the code of the error says that the role lacks a right. The schema that
/// the remedy names is taken from the message, or is `public` if the server writes messages in
/// another language.
fn missing_right(problem: &str, role: &str) -> Option<String> {
    const MIGRATE: &str =
        "run `countersign migrate` as their owner, and then `countersign serve --no-migrate`";
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    const INVALID_SCHEMA_NAME: &str = "3F000";
    let (text, code) = coded(problem)?;
    if ![INSUFFICIENT_PRIVILEGE, INVALID_SCHEMA_NAME].contains(&code) {
        return None;
    }
    let schema = text.strip_prefix("permission denied for schema ");
    if let Some(schema) = schema.or_else(|| (code == INVALID_SCHEMA_NAME).then_some("public")) {
        return Some(format!(
            "run `countersign migrate` as the owner of the database, and then `countersign serve \
             --no-migrate`, or let this role make the tables by `GRANT USAGE, CREATE ON SCHEMA \
             {schema} TO {role}`"
        ));
    }
    if text.starts_with("must be owner of ") {
        return Some(MIGRATE.to_owned());
    }
    Some(format!(
        "let their owner run `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public \
         TO {role}`; to change tables, {MIGRATE}"
    ))
}

/// Returns whether the problem is that another session has locked a table.
pub fn is_held(problem: &str) -> bool {
    coded(problem).is_some_and(|(_, code)| code == LOCK_NOT_AVAILABLE)
}
