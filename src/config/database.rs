//! `database_url` and `[database]`: which database holds the sessions, and what is asked of it.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid},
    path, word,
};

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// The embedded engine, in this file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUrl),
}

impl DatabaseUrl {
    /// Returns whether other processes may use it at the same time.
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
    has_password: bool,
}

impl PostgresUrl {
    /// All of it, with the password.
    pub fn with_password(&self) -> &str {
        &self.whole
    }

    /// Returns whether there is one in it.
    pub fn has_password(&self) -> bool {
        self.has_password
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The environment variable with the password, as all clients of PostgreSQL know it.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

/// A password, which it does not show.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// The one in the environment, if there is one.
    pub fn from_environment() -> Option<Self> {
        std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty()).map(Self)
    }

    /// What it is.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What is asked of a PostgreSQL server. The embedded engine needs none of it but `migrate`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// Whether `serve` brings the schema up to date by itself.
    pub migrate: bool,
    /// A file with the password, read anew for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Most connections of this process.
    pub max_connections: u32,
    /// How long each server may take until a connection to it can be used.
    #[serde(with = "super::span")]
    pub connect_timeout: Duration,
    /// How long a call waits for a connection before the database counts as away.
    #[serde(with = "super::span")]
    pub acquire_timeout: Duration,
    /// The longest time that `serve` waits at its start for a database that cannot be reached yet;
    /// zero to give up at once.
    #[serde(with = "super::span")]
    pub startup_timeout: Duration,
    /// How long the server works on a statement before it gives up.
    #[serde(with = "super::span")]
    pub statement_timeout: Duration,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            migrate: true,
            password_file: None,
            max_connections: 16,
            connect_timeout: Duration::from_secs(3),
            acquire_timeout: Duration::from_secs(3),
            startup_timeout: Duration::from_secs(60),
            statement_timeout: Duration::from_secs(10),
        }
    }
}

/// Below this many, writes, reads and the feed would wait for each other's connection.
const FEWEST_CONNECTIONS: u32 = 4;
/// Beyond this, a container that never becomes ready should be seen as failed.
const LONGEST_STARTUP: Duration = Duration::from_secs(3600);

impl Database {
    /// Refuses what cannot work.
    pub fn check(&self, url: &DatabaseUrl) -> Result<(), ConfigError> {
        if self.max_connections < FEWEST_CONNECTIONS {
            return Err(invalid(
                "database.max_connections",
                format!("must be at least {FEWEST_CONNECTIONS}"),
            ));
        }
        for (name, span) in [
            ("connect_timeout", self.connect_timeout),
            ("acquire_timeout", self.acquire_timeout),
            ("statement_timeout", self.statement_timeout),
        ] {
            if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&span) {
                return Err(invalid(format!("database.{name}"), "must be from 100ms to 10m"));
            }
        }
        if self.startup_timeout > LONGEST_STARTUP {
            return Err(invalid("database.startup_timeout", "must be from 0s to 1h"));
        }
        match url {
            DatabaseUrl::Postgres(url) if url.has_password && self.password_file.is_some() => {
                Err(invalid(
                    "database.password_file",
                    "there is a password in database_url too: leave one of them out",
                ))
            }
            DatabaseUrl::Postgres(_) | DatabaseUrl::Sqlite(_) => Ok(()),
        }
    }
}

/// Reads the URL; without one, a file in the data directory.
pub fn parse(url: Option<&str>, data_dir: &Path) -> Result<DatabaseUrl, ConfigError> {
    let Some(url) = url else {
        let path = data_dir.join("countersign.db");
        if path.to_str().is_some_and(path::has_special_meaning) {
            return Err(invalid(
                "data_dir",
                "must not begin with : or ? or file: (put ./ in front)",
            ));
        }
        return Ok(DatabaseUrl::Sqlite(path));
    };
    match url.split_once("://") {
        Some(("sqlite", path)) if path.is_empty() || path::has_special_meaning(path) => {
            Err(invalid("database_url", "sqlite:// must be followed by the path of a file"))
        }
        Some(("sqlite", path)) => Ok(DatabaseUrl::Sqlite(path.into())),
        Some(("postgres" | "postgresql", rest)) => postgres(url, rest).map(DatabaseUrl::Postgres),
        // The rest may hold a password, so it is not repeated.
        Some((scheme, _)) => {
            let hint = match word::nearest(scheme, &["sqlite", "postgres"]) {
                Some(near) => format!("did you mean {near}://? Use"),
                None => "use".to_owned(),
            };
            let problem = format!(
                "{scheme}:// is not supported: {hint} sqlite://PATH or \
                 postgres://USER:PASSWORD@HOST/DATABASE"
            );
            Err(invalid("database_url", problem))
        }
        None => Err(invalid(
            "database_url",
            "must be a URL: sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE",
        )),
    }
}

/// Returns the URL with its path made absolute, if it has a relative one: the file of SQLite, or
/// the authorities of PostgreSQL.
pub fn resolve(url: &str, folder: &Path) -> Result<Option<String>, String> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        return Ok(path::resolve(path, folder)?.map(|path| format!("sqlite://{path}")));
    }
    let Some((start, query)) = url.split_once('?').filter(|_| url.starts_with("postgres")) else {
        return Ok(None);
    };
    let mut is_changed = false;
    let mut pairs = vec![];
    for pair in query.split('&') {
        let path = pair.strip_prefix("sslrootcert=").filter(|path| *path != "system");
        let path = path.and_then(|path| percent_decode_str(path).decode_utf8().ok());
        let resolved = path.map(|path| path::resolve(&path, folder)).transpose()?.flatten();
        is_changed |= resolved.is_some();
        pairs.push(match resolved {
            Some(path) => format!("sslrootcert={}", utf8_percent_encode(&path, ENCODED_IN_PATHS)),
            None => pair.to_owned(),
        });
    }
    Ok(is_changed.then(|| format!("{start}?{}", pairs.join("&"))))
}

/// The characters of a path that have a meaning in a URL, or may have one.
const ENCODED_IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Finds the password, to leave it out. Where it ends must not be a matter of opinion.
fn postgres(url: &str, rest: &str) -> Result<PostgresUrl, ConfigError> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if authority.matches('@').count() > 1 || tail.contains('@') {
        return Err(invalid(
            "database_url",
            "@ / ? and # in a user or a password are written as %40 %2F %3F and %23",
        ));
    }
    if tail.to_ascii_lowercase().contains("password") {
        return Err(invalid(
            "database_url",
            "the password belongs in front of the host: USER:PASSWORD@HOST",
        ));
    }
    let (user, hosts) = authority.split_once('@').unwrap_or(("", authority));
    if hosts.is_empty() && !tail.contains("host=") {
        return Err(invalid(
            "database_url",
            "must name a host: postgres://USER:PASSWORD@HOST/DATABASE",
        ));
    }
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let shown = match user {
        "" => format!("postgres://{hosts}{tail}"),
        user => format!("postgres://{user}@{hosts}{tail}"),
    };
    Ok(PostgresUrl { whole: url.to_owned(), shown, has_password: !password.is_empty() })
}
