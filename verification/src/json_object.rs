//! JSON objects kept as text, because a decoded object may take 65 times as much memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

/// A JSON object as compact text, with its members sorted by name.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonObject(Box<str>);

/// The text is not a JSON object.
#[derive(Debug, thiserror::Error)]
#[error("is not a JSON object")]
pub struct NotAnObject;

/// The name of a member of a [`JsonObject`], and its value, which is not decoded.
pub type Member<'a> = (Cow<'a, str>, &'a RawValue);

impl JsonObject {
    /// Returns whether the object has no members.
    pub fn is_empty(&self) -> bool {
        &*self.0 == "{}"
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the members at the top level, sorted by name.
    pub fn members(&self) -> impl Iterator<Item = Member<'_>> {
        self.read::<Members<'_>>().unwrap_or_default().0.into_iter()
    }

    /// Returns the undecoded value of the member with this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        if self.is_empty() {
            return None;
        }
        Find(name).deserialize(&mut serde_json::Deserializer::from_str(&self.0)).ok().flatten()
    }

    /// Decodes the object. The result may take much memory, so do not keep it.
    pub fn to_map(&self) -> Map<String, Value> {
        self.read().unwrap_or_default()
    }

    /// Deserializes the text, which is always an object.
    fn read<'de, T: Deserialize<'de>>(&'de self) -> Option<T> {
        serde_json::from_str(&self.0).ok()
    }
}

impl Default for JsonObject {
    fn default() -> Self {
        Self("{}".into())
    }
}

/// Prints only the size, because objects may hold personal data.
impl fmt::Debug for JsonObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes of JSON]", self.0.len())
    }
}

impl From<&Map<String, Value>> for JsonObject {
    fn from(map: &Map<String, Value>) -> Self {
        // Serializing a map with text keys to memory cannot fail.
        serde_json::to_string(map).map_or_else(|_| Self::default(), |text| Self(text.into()))
    }
}

/// Accepts members whose values pass [`check`]. The map rules out duplicate names at the top level.
impl TryFrom<&BTreeMap<String, &RawValue>> for JsonObject {
    type Error = serde_json::Error;

    fn try_from(members: &BTreeMap<String, &RawValue>) -> Result<Self, serde_json::Error> {
        if members.is_empty() {
            return Ok(Self::default());
        }
        members.values().try_for_each(|value| check(value))?;
        Ok(Self(serde_json::to_string(members)?.into()))
    }
}

/// Checks a value without keeping it decoded: it must not nest deeper than serde_json allows, its
/// numbers must be in range, and no object in it may have two members with the same name (RFC 8259,
/// section 4).
pub fn check(value: &RawValue) -> Result<(), serde_json::Error> {
    serde_json::from_str::<Checked>(value.get()).map(|_| ())
}

/// Any JSON value that passes [`check`].
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Check)
    }
}

struct Check;

impl<'de> Visitor<'de> for Check {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_str<E>(self, _: &str) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Checked, A::Error> {
        while sequence.next_element::<Checked>()?.is_some() {}
        Ok(Checked)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Checked, A::Error> {
        let mut names = BTreeSet::new();
        while let Some(Name(name)) = map.next_key::<Name<'_>>()? {
            if !names.insert(name) {
                return Err(Error::custom("an object has two members with the same name"));
            }
            map.next_value::<Checked>()?;
        }
        Ok(Checked)
    }
}

/// The name of a member. It is borrowed if it has no escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Default)]
struct Members<'a>(Vec<Member<'a>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = vec![];
                while let Some((Name(name), value)) = map.next_entry::<Name<'_>, &RawValue>()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Finds the member with this name while the text is parsed.
struct Find<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key::<Name<'_>>()? {
            if name == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

impl Serialize for JsonObject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.members())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> JsonObject {
        JsonObject::from(value.as_object().unwrap())
    }

    #[test]
    fn members_are_found_by_name_and_listed_in_the_order_of_their_names() {
        let value = json!({ "b": [1, { "c": null }], "a": "x", "\"\u{1f980}": 1.5 });
        let object = object(value.clone());
        assert_eq!(Value::Object(object.to_map()), value);
        let members: Vec<_> =
            object.members().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(members, ["\"\u{1f980}=1.5", "a=\"x\"", "b=[1,{\"c\":null}]"]);
        assert_eq!(object.get("b").unwrap().get(), "[1,{\"c\":null}]");
        assert_eq!(object.get("\"\u{1f980}").unwrap().get(), "1.5");
        assert!(object.get("c").is_none());
        assert_eq!(serde_json::to_string(&object).unwrap(), object.as_str());
        assert!(!object.is_empty() && JsonObject::default().is_empty());
        assert_eq!(JsonObject::default().members().count(), 0);
    }

    #[test]
    fn nested_values_are_checked_as_strictly_as_the_outermost_one() {
        let checked = |text: &str| check(serde_json::from_str(text).unwrap()).is_ok();
        for good in [
            "{}",
            "[[],{},null,true,-1,1.5e300,\"\\u0041\"]",
            r#"{"a":{"b":1},"b":[{"b":1},{"b":1}]}"#,
        ] {
            assert!(checked(good), "{good}");
        }
        for bad in [r#"{"a":1,"a":1}"#, r#"[{"a":{"b":1,"\u0062":2}}]"#, "1e400", &"[".repeat(200)]
        {
            let text = format!(
                "{bad}{}",
                if bad.starts_with("[[") { "]".repeat(200) } else { String::new() }
            );
            assert!(!checked(&text), "{text}");
        }
    }
}
