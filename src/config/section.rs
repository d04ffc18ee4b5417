//! What is written as a section is read from a section alone, and what is one of some names from
//! its name.
//!
//! serde reads a sequence into a struct too, field after field in the order of their declaration,
//! and figment a number or a section into an enum. Nobody who writes a configuration means that,
//! and another order of the fields would give the same text another meaning.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, StringDeserializer},
    },
};

/// A struct that is read from a map alone.
struct Section<T>(T);

struct SectionVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SectionVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for SectionVisitor<T> {
    type Value = Section<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Section<T>, M::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Section)
    }
}

/// Reads a section.
pub fn read<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Section::deserialize(deserializer).map(|section| section.0)
}

/// Reads sections in a list.
pub fn read_list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let sections = Vec::<Section<T>>::deserialize(deserializer)?;
    Ok(sections.into_iter().map(|section| section.0).collect())
}

/// Reads sections that have names.
pub fn read_named<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let sections = BTreeMap::<String, Section<T>>::deserialize(deserializer)?;
    Ok(sections.into_iter().map(|(name, section)| (name, section.0)).collect())
}

/// Reads an enum by the name of its variant.
pub fn read_choice<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let name: StringDeserializer<D::Error> = String::deserialize(deserializer)?.into_deserializer();
    T::deserialize(name)
}

/// Reads an enum by the name of its variant, where there is one.
pub fn read_optional_choice<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    read_choice(deserializer).map(Some)
}
