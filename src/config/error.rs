//! Configuration errors. Each error is one line that says which setting is wrong, where it was set,
//! and how to correct it.

use std::{fmt, io, path::PathBuf};

use figment::{
    Metadata, Source,
    error::{Actual, Kind},
};

use super::word;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A setting is unknown or wrong.
    #[error("{0}")]
    Setting(String),
}

/// Returns the error for a setting with an invalid value.
pub fn invalid(setting: impl fmt::Display, problem: impl fmt::Display) -> ConfigError {
    ConfigError::Setting(escaped(&format!("setting {setting}: {problem}")))
}

/// Returns the error for a setting whose value is none of the known words.
pub fn unknown_word(setting: impl fmt::Display, word: &str, known: &[&str]) -> ConfigError {
    invalid(setting, word::unknown(word, known))
}

impl From<figment::Error> for ConfigError {
    fn from(error: figment::Error) -> Self {
        let origin = origin(&error);
        let path = error.path.join(".");
        let text = match &error.kind {
            Kind::UnknownField(name, known) => {
                // The path ends with the section or with the field itself, depending on where serde
                // noticed the error.
                let section =
                    path.strip_suffix(name.as_str()).unwrap_or(&path).trim_end_matches('.');
                let setting =
                    if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
                match word::nearest(name, known) {
                    Some(near) => {
                        format!("unknown setting {setting}{origin}: did you mean {near}?")
                    }
                    None => {
                        format!("unknown setting {setting}{origin}: there are {}", known.join(", "))
                    }
                }
            }
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                let expected = plain(expected);
                // The string may be a URL with a password that was written in the place of a
                // section, so the error does not repeat it.
                let actual = match actual {
                    Actual::Str(_)
                        if ["a section", "a sequence", "a list"].contains(&expected.as_str()) =>
                    {
                        "a string".to_owned()
                    }
                    actual => actual.to_string(),
                };
                format!("setting {path}{origin}: must be {expected}, not {actual}")
            }
            Kind::UnknownVariant(name, known) => {
                format!("setting {path}{origin}: {}", word::unknown(name, known))
            }
            Kind::Message(message) if path.is_empty() => {
                format!("configuration{origin}: {}", one_line(message))
            }
            Kind::Message(message) => format!("setting {path}{origin}: {}", one_line(message)),
            other => format!("setting {path}{origin}: {other}"),
        };
        Self::Setting(escaped(&text))
    }
}

fn origin(error: &figment::Error) -> String {
    match &error.metadata {
        // figment would print the path relative to the working directory, which readers of a log do
        // not know.
        Some(Metadata { source: Some(Source::File(path)), .. }) => {
            format!(" in {}", path.display())
        }
        Some(metadata) if metadata.name.contains("environment") => {
            let variable = format!("COUNTERSIGN_{}", error.path.join("__").to_uppercase());
            format!(" (environment variable {variable})")
        }
        _ => String::new(),
    }
}

/// Returns in plain words what serde expected, without the names of Rust's types.
fn plain(expected: &impl fmt::Display) -> String {
    match expected.to_string() {
        name if name.starts_with("struct ") || name == "a map" => "a section".to_owned(),
        name if ["u8", "u16", "u32", "u64", "usize", "i32", "i64"].contains(&name.as_str()) => {
            "a whole number".to_owned()
        }
        name if name == "a duration" => "a duration like 10m, 14d or 1h 30m".to_owned(),
        name if name == "a boolean" || name == "bool" => "true or false".to_owned(),
        name => name,
    }
}

/// Returns a parser's message in one line, without its excerpt of the file, which may contain a
/// password.
fn one_line(text: &str) -> String {
    let is_excerpt = |line: &str| {
        line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|')
    };
    let lines = text
        .lines()
        .filter(|line| !is_excerpt(line))
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(": ")
}

/// Escapes the control characters that names and values may contain, such as line ends.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}
