//! The factors of an authentication: the times at which its methods were verified, and demands for
//! recent ones.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use countersign_verification::factors::FactorDemand;

use super::{text::Amr, time::Timestamp};

/// The times at which authentication methods were verified. A method whose time no caller gave is
/// not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactorTimes(BTreeMap<Amr, Timestamp>);

/// The reason why times are refused. The displayed text completes a sentence that starts with the
/// field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("names \"{0}\", which is not in amr")]
pub struct NotInAmr(String);

/// The longest name in an error message. A longer name is cut.
const MAX_NAME_CHARS: usize = 64;

fn shown(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(MAX_NAME_CHARS).collect()
}

impl FactorTimes {
    /// Checks times by the names of their methods. Each method must be one of `amr`.
    pub fn new(
        times: impl IntoIterator<Item = (String, Timestamp)>,
        amr: &[Amr],
    ) -> Result<Self, NotInAmr> {
        let known = |name: &str| amr.iter().find(|method| &***method == name).cloned();
        let checked = times.into_iter().map(|(name, at)| {
            let method = known(&name).ok_or_else(|| NotInAmr(shown(&name)))?;
            Ok((method, at))
        });
        checked.collect::<Result<_, _>>().map(Self)
    }

    /// Reads times from the form of [`Self::to_json`]. Leaves out methods that are not in `amr`: a
    /// replica of a version without these times may have replaced the methods and left the times as
    /// they were.
    pub fn from_stored(times: &Map<String, Value>, amr: &[Amr]) -> Option<Self> {
        let of = |method: &Amr| {
            let at: jiff::Timestamp = times.get(&**method)?.as_str()?.parse().ok()?;
            Some((method.clone(), Timestamp::from_micros(at.as_microsecond())))
        };
        let listed = amr.iter().filter(|method| times.contains_key(&***method));
        listed.map(of).collect::<Option<_>>().map(Self)
    }

    /// Returns the times as a JSON object, which has a text as in RFC 3339 for each method.
    pub fn to_json(&self) -> String {
        let text = |at: Timestamp| {
            jiff::Timestamp::from_microsecond(at.micros()).unwrap_or_default().to_string()
        };
        let times = self.0.iter().map(|(method, at)| (method.to_string(), text(*at).into()));
        Value::Object(times.collect()).to_string()
    }

    /// Returns whether there are no times.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the methods with their times, sorted by the name of the method.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Amr, Timestamp)> {
        self.0.iter().map(|(method, at)| (method, *at))
    }

    /// Returns the method that was verified last.
    pub fn latest(&self) -> Option<(&Amr, Timestamp)> {
        self.iter().max_by_key(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn methods(names: &[&str]) -> Vec<Amr> {
        names.iter().map(|name| Amr::try_from((*name).to_owned()).unwrap()).collect()
    }

    fn times(times: &[(&str, i64)]) -> FactorTimes {
        let amr: Vec<_> = times.iter().map(|(name, _)| *name).collect();
        let times =
            times.iter().map(|(name, at)| ((*name).to_owned(), Timestamp::from_micros(*at)));
        FactorTimes::new(times, &methods(&amr)).unwrap()
    }

    #[test]
    fn a_time_of_a_method_that_is_not_in_amr_is_refused() {
        let given = [("otp".to_owned(), Timestamp::from_micros(1))];
        assert_eq!(
            FactorTimes::new(given, &methods(&["pwd", "otp ", "ot"])),
            Err(NotInAmr("otp".to_owned()))
        );
    }

    #[test]
    fn times_are_read_back_to_the_microsecond_without_methods_that_left_amr() {
        let given = times(&[("pwd", 1_767_225_600_000_001), ("hwk", -1), ("otp", 0)]);
        let Value::Object(stored) = serde_json::from_str(&given.to_json()).unwrap() else {
            panic!("an object")
        };
        assert_eq!(stored["pwd"], json!("2026-01-01T00:00:00.000001Z"));
        let amr = |names: &[&str]| FactorTimes::from_stored(&stored, &methods(names));
        assert_eq!(amr(&["hwk", "otp", "pwd", "sms"]), Some(given));
        assert_eq!(amr(&["hwk", "sms"]), Some(times(&[("hwk", -1)])));
        for damaged in [json!({ "hwk": 1 }), json!({ "hwk": "yesterday" }), json!({ "hwk": null })]
        {
            let damaged = damaged.as_object().unwrap();
            assert_eq!(FactorTimes::from_stored(damaged, &methods(&["hwk"])), None);
        }
    }
}
