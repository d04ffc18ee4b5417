//! Authentication methods in arguments.

use std::{collections::BTreeMap, time::Duration};

use prost_types::Timestamp;

use super::{Failure, client::duration, parse_span};
use crate::proto;

/// A method that the user has proved.
#[derive(Clone, Debug)]
pub struct Method {
    name: String,
    verified_at: Option<Timestamp>,
}

impl Method {
    /// Reads METHOD or METHOD@TIME.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((name, time)) = text.rsplit_once('@') else {
            return Ok(Self { name: text.to_owned(), verified_at: None });
        };
        let at = time.parse().map_err(|_| {
            format!("{time:?} after the @ is not an instant like 2026-01-01T00:00:00Z")
        })?;
        Ok(Self { name: name.to_owned(), verified_at: Some(at) })
    }
}

/// Returns the names of methods.
pub fn names(methods: &[Method]) -> Vec<String> {
    methods.iter().map(|method| method.name.clone()).collect()
}

/// Returns the times at which methods were verified, as far as they were given.
pub fn times(methods: &[Method]) -> BTreeMap<String, Timestamp> {
    methods.iter().filter_map(|method| Some((method.name.clone(), method.verified_at?))).collect()
}

/// A method that a token must name.
#[derive(Clone, Debug)]
pub struct Demand {
    name: String,
    max_age: Option<Duration>,
}

impl Demand {
    /// Reads METHOD or METHOD@AGE.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((name, age)) = text.rsplit_once('@') else {
            return Ok(Self { name: text.to_owned(), max_age: None });
        };
        let max_age = parse_span(age).map_err(|problem| format!("{problem}, after the @"))?;
        Ok(Self { name: name.to_owned(), max_age: Some(max_age) })
    }

    /// Converts the demand to a message.
    pub fn message(self) -> Result<proto::FactorDemand, Failure> {
        let max_age = self.max_age.map(duration).transpose()?;
        Ok(proto::FactorDemand { method: self.name, max_age })
    }
}
