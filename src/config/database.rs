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
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
        }
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
        // The rest may hold a password, so it is not repeated.
        Some((scheme, _)) => Err(invalid("database_url", format!("{scheme}:// is not supported: use sqlite://PATH"))),
        None => Err(invalid("database_url", "must be a URL: sqlite://PATH")),
    }
}
