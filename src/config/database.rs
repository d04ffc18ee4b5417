//! `database_url` and `[database]`: the database that holds the sessions, and the limits of the
//! connections to it.

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

/// The database to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// The embedded engine, with this file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUrl),
}

impl DatabaseUrl {
    /// Returns whether several processes may serve from the database at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

/// Omits the password, because logs, errors and `config print` show this text.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => f.write_str(&url.shown),
        }
    }
}

/// A URL that may contain a password, which `Debug` omits.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    whole: String,
    shown: String,
    has_password: bool,
}

impl PostgresUrl {
    /// Returns the whole URL, with the password.
    pub fn with_password(&self) -> &str {
        &self.whole
    }

    /// Returns whether the URL contains a password.
    pub fn has_password(&self) -> bool {
        self.has_password
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The environment variable from which clients of PostgreSQL read the password.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

/// A password, which `Debug` omits.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Returns the password in the environment, if there is one.
    pub fn from_environment() -> Option<Self> {
        std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty()).map(Self)
    }

    /// Returns the password itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The section `[database]`. All its settings except `migrate` are for PostgreSQL alone.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// True if `serve` migrates the schema.
    pub migrate: bool,
    /// A file with the password, which is read again for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The most connections of this process.
    pub max_connections: u32,
    /// The longest time that it may take to open a connection. If the URL names several servers,
    /// each of them gets this time.
    #[serde(with = "super::span")]
    pub connect_timeout: Duration,
    /// The longest time that a call waits for a connection before it fails with UNAVAILABLE.
    #[serde(with = "super::span")]
    pub acquire_timeout: Duration,
    /// The longest time that `serve` waits at its start for a database that cannot be reached yet.
    /// If it is zero, `serve` gives up at once.
    #[serde(with = "super::span")]
    pub startup_timeout: Duration,
    /// The longest time that the server works on a statement before it cancels the statement.
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

/// The fewest connections that may be configured: with fewer, writes, reads and the feed would wait
/// for each other's connections.
const FEWEST_CONNECTIONS: u32 = 4;
/// The longest `startup_timeout`. A container that is not ready after this time should fail
/// visibly.
const LONGEST_STARTUP: Duration = Duration::from_secs(3600);

impl Database {
    /// Checks that the values are in range, and that there is at most one password.
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

/// Parses the URL. Without a URL, the database is an SQLite file in the data directory.
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
        // The rest may contain a password, so the error does not repeat it.
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

/// Returns the URL with its path made absolute; `None` if it has no relative path. The path is the
/// file of SQLite, or `sslrootcert` of PostgreSQL.
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

/// The characters of a path that are percent-encoded because they may have a meaning in a URL.
const ENCODED_IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Parses a URL of PostgreSQL, and makes a copy without the password, to be shown. Refuses a URL in
/// which parsers could disagree about where the password ends.
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
