//! `[replica]`: the name by which people know a replica.

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section before it is checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawReplica {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// The section, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The name in the register of the replicas.
    pub name: String,
}

/// The most characters of a name.
const LONGEST_NAME: usize = 64;

impl RawReplica {
    /// Refuses an empty or long name, and one with invisible characters or spaces. Without a name,
    /// the replica is named like its host.
    pub fn check(&self, host_name: impl FnOnce() -> String) -> Result<Replica, ConfigError> {
        let Some(name) = &self.name else { return Ok(Replica { name: readable(&host_name()) }) };
        let length = name.chars().count();
        if name.is_empty() {
            return Err(invalid(
                "replica.name",
                "must not be empty: leave it out for the host name",
            ));
        }
        if length > LONGEST_NAME {
            let problem = format!("has {length} characters, at most {LONGEST_NAME} are allowed");
            return Err(invalid("replica.name", problem));
        }
        if !name.chars().all(is_visible) {
            return Err(invalid(
                "replica.name",
                "may only contain visible characters, and no spaces",
            ));
        }
        Ok(Replica { name: name.clone() })
    }
}

/// Returns the host name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Turns any host name into a valid name of a replica, so that the service starts on every machine.
fn readable(host_name: &str) -> String {
    let name: String =
        host_name.chars().filter(|&character| is_visible(character)).take(LONGEST_NAME).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// Returns whether a character is visible. Formatting characters, which change how their neighbours
/// are displayed, do not count as visible.
fn is_visible(character: char) -> bool {
    let is_formatting = matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    !character.is_control() && !character.is_whitespace() && !is_formatting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<Replica, String> {
        let raw = RawReplica { name: Some(name.to_owned()) };
        raw.check(|| "host".to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_1_to_64_visible_characters() {
        let longest = "é".repeat(64);
        for name in ["a", "auth-1", "auth.example.com:50051", "Zürich/2", &longest] {
            assert_eq!(named(name), Ok(Replica { name: name.to_owned() }));
        }
        for (name, problem) in [
            ("", "must not be empty"),
            (" ", "visible characters"),
            ("a b", "visible characters"),
            ("a\u{7}", "visible characters"),
            ("a\u{202e}b", "visible characters"),
            ("a\u{200b}", "visible characters"),
            (&"a".repeat(65), "has 65 characters, at most 64"),
        ] {
            let error = named(name).unwrap_err();
            assert!(error.contains("replica.name") && error.contains(problem), "{name:?}: {error}");
        }
    }

    #[test]
    fn the_default_name_is_the_host_name() {
        let long = "b".repeat(70);
        for (host, name) in [("vm", "vm"), ("a b\n", "ab"), ("", "unnamed"), (&*long, &long[..64])]
        {
            let checked = RawReplica::default().check(|| host.to_owned()).unwrap();
            assert_eq!(checked, Replica { name: name.to_owned() });
        }
    }
}
