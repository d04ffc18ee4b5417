//! The configuration file. Relative paths in it are relative to its folder, so that they do not
//! depend on the directory in which the service is started.

use std::{
    fs,
    path::{Path, PathBuf},
};

use figment::{
    Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{
    database,
    error::{ConfigError, invalid},
    path,
};

/// The text of a configuration file and the folder that its relative paths start from.
pub struct ConfigFile {
    text: String,
    path: Option<PathBuf>,
    folder: PathBuf,
}

impl ConfigFile {
    /// Reads a file. Its folder is taken from its path without resolving symbolic links. A
    /// configuration that is mounted into a container is a link into another folder, which is
    /// replaced at each change.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let folder = std::path::absolute(path)
            .map_err(unreadable)?
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned();
        Ok(Self { text, path: Some(path.to_owned()), folder })
    }

    /// Uses a text as if it were a file in the working directory.
    pub fn from_text(text: &str) -> Result<Self, ConfigError> {
        Ok(Self { text: text.to_owned(), path: None, folder: working_directory()? })
    }

    fn resolve_all(&self, section: &mut Dict) -> Result<(), String> {
        for (name, value) in section {
            if let Value::String(_, text) = value
                && let Some(resolved) = resolve(name, text, &self.folder)?
            {
                *text = resolved;
            }
        }
        Ok(())
    }
}

impl Provider for ConfigFile {
    fn metadata(&self) -> Metadata {
        match &self.path {
            Some(path) => Metadata::from("TOML file", path.as_path()),
            None => Metadata::named("TOML text"),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut settings: Dict = Toml::from_str(&self.text).map_err(|error| error.to_string())?;
        self.resolve_all(&mut settings)?;
        for value in settings.values_mut() {
            if let Value::Dict(_, section) = value {
                self.resolve_all(section)?;
            }
        }
        Ok(Profile::Default.collect(settings))
    }
}

/// Returns the working directory. Relative paths start from it if they are not set in a file.
pub fn working_directory() -> Result<PathBuf, ConfigError> {
    std::env::current_dir()
        .map_err(|error| invalid("data_dir", format!("there is no working directory: {error}")))
}

/// Returns the value of a setting with its path made absolute; `None` if it is not a relative path.
/// The names of all settings that are paths end in `_file` or `_dir`. The URL of the database may
/// contain a path.
pub fn resolve(name: &str, text: &str, folder: &Path) -> Result<Option<String>, String> {
    match name {
        "database_url" => database::resolve(text, folder),
        name if name.ends_with("_file") || name.ends_with("_dir") => path::resolve(text, folder),
        _ => Ok(None),
    }
}
