//! The claim with the times at which authentication methods were verified.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use crate::time::Timestamp;

/// Serializes the times at which methods were verified as an object of `NumericDate`s.
pub struct EncodedTimes<'a>(pub &'a [(String, Timestamp)]);

impl Serialize for EncodedTimes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(method, at)| (method, at.seconds())))
    }
}

/// Deserializes such an object. No method may occur twice.
#[derive(Default)]
pub struct DecodedTimes(pub Vec<(String, Timestamp)>);

impl<'de> Deserialize<'de> for DecodedTimes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TimesVisitor)
    }
}

struct TimesVisitor;

impl<'de> Visitor<'de> for TimesVisitor {
    type Value = DecodedTimes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the times at which authentication methods were verified")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<DecodedTimes, M::Error> {
        let mut times = vec![];
        while let Some((method, seconds)) = map.next_entry::<String, i64>()? {
            if times.iter().any(|(earlier, _)| *earlier == method) {
                return Err(serde::de::Error::custom("duplicate method"));
            }
            times.push((method, Timestamp::from_seconds(seconds)));
        }
        Ok(DecodedTimes(times))
    }
}
