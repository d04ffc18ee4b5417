//! `database_url`: which database holds the sessions.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::error::{ConfigError, invalid};

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// The embedded engine, in this file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUrl),
}

impl DatabaseUrl {
    /// Whether other processes may use it at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

/// Without the password: this is what logs, errors and `config print` show.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => f.write_str(&url.shown),
        }
    }
}

/// A URL that may hold a password, which it does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    whole: String,
    shown: String,
}

impl PostgresUrl {
    /// All of it, with the password.
    pub fn with_password(&self) -> &str {
        &self.whole
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Reads the URL; without one, a file in the data directory.
pub fn parse(url: Option<&str>, data_dir: &Path) -> Result<DatabaseUrl, ConfigError> {
    let Some(url) = url else { return Ok(DatabaseUrl::Sqlite(data_dir.join("countersign.db"))) };
    match url.split_once("://") {
        // SQLite reads more into some names: a database in memory, or options that would undo its durability.
        Some(("sqlite", path)) if path.is_empty() || path.starts_with([':', '?']) || path.starts_with("file:") => {
            Err(invalid("database_url", "sqlite:// must be followed by the path of a file"))
        }
        Some(("sqlite", path)) => Ok(DatabaseUrl::Sqlite(path.into())),
        Some(("postgres" | "postgresql", rest)) => postgres(url, rest).map(DatabaseUrl::Postgres),
        // The rest may hold a password, so it is not repeated.
        Some((scheme, _)) => Err(invalid(
            "database_url",
            format!("{scheme}:// is not supported: use sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE"),
        )),
        None => Err(invalid("database_url", "must be a URL: sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE")),
    }
}

/// Finds the password, to leave it out. Where it ends must not be a matter of opinion.
fn postgres(url: &str, rest: &str) -> Result<PostgresUrl, ConfigError> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if authority.matches('@').count() > 1 || tail.contains('@') {
        return Err(invalid("database_url", "@ / ? and # in a user or a password are written as %40 %2F %3F and %23"));
    }
    if tail.to_ascii_lowercase().contains("password") {
        return Err(invalid("database_url", "the password belongs in front of the host: USER:PASSWORD@HOST"));
    }
    let (user, hosts) = authority.split_once('@').unwrap_or(("", authority));
    if hosts.is_empty() && !tail.contains("host=") {
        return Err(invalid("database_url", "must name a host: postgres://USER:PASSWORD@HOST/DATABASE"));
    }
    let shown = match user.split(':').next().unwrap_or_default() {
        "" => format!("postgres://{hosts}{tail}"),
        user => format!("postgres://{user}@{hosts}{tail}"),
    };
    Ok(PostgresUrl { whole: url.to_owned(), shown })
}
