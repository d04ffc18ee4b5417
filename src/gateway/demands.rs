//! Reads the demands that a gateway makes on the tokens of a route: `audience`, `scope`,
//! `acr_values`, `max_age` and `amr`.

use std::time::Duration;

use crate::domain::{
    factors::FactorDemand,
    text::{Acr, Amr, Audience, Scope, TextError},
};

/// The names of demands. They are names of parameters in RFC 6749 (section 3.3), RFC 9470 (section
/// 3) and OpenID Connect Core (section 3.1.2.1), except for `amr`, which is the claim of RFC 8176.
pub const NAMES: [&str; 5] = ["audience", "scope", "acr_values", "max_age", "amr"];

/// The maximum number of scopes, of acr values, and of methods, that a route may demand.
const MAX_VALUES: usize = 64;

/// The demands of a route. An empty field demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// The token must be meant for this audience.
    pub audience: String,
    /// The token must carry each of these scopes.
    pub scopes: Vec<String>,
    /// The token's acr must be one of these.
    pub acr_values: Vec<String>,
    /// The user must have authenticated within this time.
    pub max_age: Option<Duration>,
    /// The token must meet all of these demands for authentication methods.
    pub factors: Vec<Factor>,
}

/// A demand for an authentication method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factor {
    /// The token's `amr` must name this method.
    pub method: String,
    /// The method must have been verified within this time.
    pub max_age: Option<Duration>,
}

impl Factor {
    /// Returns the demand with its text borrowed.
    pub fn demand(&self) -> FactorDemand<'_> {
        FactorDemand { method: &self.method, max_age: self.max_age }
    }
}

/// The error if the demands of a gateway cannot be understood. In this case no request may pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandsError {
    /// There is no such demand.
    #[error("the gateway asks for {name:?}, which is not known: there are {}", NAMES.join(", "))]
    Unknown {
        /// The name of the demand.
        name: String,
    },
    /// The demand was stated twice. One of the two statements may come from the client.
    #[error("the gateway asks for {0} more than once")]
    Twice(&'static str),
    /// The demand has an invalid value.
    #[error("the gateway asks for {name}, which {problem}")]
    Invalid {
        /// The name of the demand.
        name: &'static str,
        /// The problem with its value.
        problem: String,
    },
}

impl Demands {
    /// Reads the demands from pairs of a name and a value.
    pub fn read<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, DemandsError> {
        let (mut demands, mut seen) = (Self::default(), [false; NAMES.len()]);
        for (name, value) in pairs {
            let known = NAMES.iter().zip(&mut seen).find(|(known, _)| **known == name);
            let (&name, seen) = known
                .ok_or_else(|| DemandsError::Unknown { name: name.chars().take(64).collect() })?;
            if std::mem::replace(seen, true) {
                return Err(DemandsError::Twice(name));
            }
            demands.set(name, value).map_err(|problem| DemandsError::Invalid { name, problem })?;
        }
        Ok(demands)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "audience" => self.audience = checked(value, Audience::into_string)?,
            "scope" => self.scopes = list(value, Scope::into_string)?,
            "acr_values" => self.acr_values = list(value, Acr::into_string)?,
            "amr" => {
                let factors = list(value, Amr::into_string)?;
                self.factors = factors.iter().map(|text| factor(text)).collect::<Result<_, _>>()?;
            }
            _ => self.max_age = Some(seconds(value)?),
        }
        Ok(())
    }

    /// Returns the shortest of the demanded times since the user authenticated or since a method was
    /// verified.
    pub fn shortest_age(&self) -> Option<Duration> {
        self.factors.iter().filter_map(|factor| factor.max_age).chain(self.max_age).min()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "must be a number of whole seconds".to_owned())?;
    Ok(Duration::from_secs(seconds))
}

/// Reads a demand for a method: its name, or the name, `@`, and a number of seconds.
fn factor(text: &str) -> Result<Factor, String> {
    let (method, max_age) = match text.rsplit_once('@') {
        None => (text, None),
        Some(("", _)) => return Err("must name a method before the @".to_owned()),
        Some((method, age)) => {
            (method, Some(seconds(age).map_err(|problem| format!("{problem} after the @"))?))
        }
    };
    Ok(Factor { method: method.to_owned(), max_age })
}

fn checked<T: TryFrom<String, Error = TextError>>(
    value: &str,
    text: impl FnOnce(T) -> String,
) -> Result<String, String> {
    T::try_from(value.to_owned()).map(text).map_err(|error| error.to_string())
}

/// Reads values that are separated by spaces. An empty list is an error, because it may come from a
/// variable of the gateway that is not set, and such a mistake must not open the route.
fn list<T: TryFrom<String, Error = TextError>>(
    value: &str,
    text: fn(T) -> String,
) -> Result<Vec<String>, String> {
    let values = value
        .split_ascii_whitespace()
        .map(|value| checked(value, text))
        .collect::<Result<Vec<_>, _>>()?;
    if !value.bytes().all(|byte| matches!(byte, b'\t' | b' ' | 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
        return Err(
            "must be printable ASCII without quotes and backslashes, to fit in a header".to_owned()
        );
    }
    match values.len() {
        0 => Err("must not be empty".to_owned()),
        1..=MAX_VALUES => Ok(values),
        many => Err(format!("has {many} values, at most {MAX_VALUES} are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_demand_is_read() {
        let pairs = [
            ("audience", "https://api.test"),
            ("scope", "read  write"),
            ("acr_values", "gold"),
            ("max_age", "300"),
            ("amr", "pwd hwk@60"),
        ];
        assert_eq!(
            Demands::read(pairs),
            Ok(Demands {
                audience: "https://api.test".to_owned(),
                scopes: vec!["read".to_owned(), "write".to_owned()],
                acr_values: vec!["gold".to_owned()],
                max_age: Some(Duration::from_secs(300)),
                factors: vec![
                    Factor { method: "pwd".to_owned(), max_age: None },
                    Factor { method: "hwk".to_owned(), max_age: Some(Duration::from_secs(60)) },
                ],
            })
        );
        assert_eq!(Demands::read([]), Ok(Demands::default()));
        assert_eq!(Demands::read([("max_age", "0")]).unwrap().max_age, Some(Duration::ZERO));
    }

    #[test]
    fn a_demand_that_is_misspelt_empty_or_invalid_is_an_error() {
        for pairs in [
            &[("audiance", "a")][..],
            &[("Audience", "a")],
            &[("", "")],
            &[("audience", "")],
            &[("audience", "a\nb")],
            &[("scope", "")],
            &[("scope", "  ")],
            &[("scope", "a\"b")],
            &[("acr_values", " ")],
            &[("acr_values", "a\"b")],
            &[("acr_values", "ü")],
            &[("max_age", "")],
            &[("max_age", "-1")],
            &[("max_age", "1.5")],
            &[("max_age", "5m")],
            &[("amr", "")],
            &[("amr", "hwk@")],
            &[("amr", "hwk@5m")],
            &[("amr", "@300")],
            &[("amr", "h\"wk")],
            &[("scope", "a"), ("scope", "a")],
        ] {
            assert!(Demands::read(pairs.iter().copied()).is_err(), "{pairs:?}");
        }
        let many = vec!["a"; MAX_VALUES + 1].join(" ");
        assert!(Demands::read([("scope", &*many)]).is_err());
    }
}
