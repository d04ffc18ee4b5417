//! Deserializes structs only from sections, and enums only from the name of a variant.
//!
//! By default, serde also deserializes a struct from a sequence, in the order in which its fields
//! are declared, and figment deserializes an enum from a number or a section. Nobody who writes a
//! configuration means that, and reordering the fields or variants in the code would change what
//! the configuration means.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        Error, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, StringDeserializer},
    },
};

/// Deserializes a struct only from a map.
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

/// Deserializes a section.
pub fn read<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Section::deserialize(deserializer).map(|section| section.0)
}

/// Deserializes a list of sections.
pub fn read_list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let sections = Vec::<Section<T>>::deserialize(deserializer)?;
    Ok(sections.into_iter().map(|section| section.0).collect())
}

/// Deserializes a map of sections by name.
pub fn read_named<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let sections = BTreeMap::<String, Section<T>>::deserialize(deserializer)?;
    Ok(sections.into_iter().map(|(name, section)| (name, section.0)).collect())
}

/// The text of a setting whose value must be one of a few words. TOML or the environment may yield
/// a boolean or a number instead. Such a value is turned into text, so that the error lists the
/// valid words.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor)
    }
}

struct WordVisitor;

impl Visitor<'_> for WordVisitor {
    type Value = Word;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Word, E> {
        Ok(Word(word.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Word, E> {
        Ok(Word(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Word, E> {
        Ok(Word(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Word, E> {
        Ok(Word(value.to_string()))
    }
}

/// Deserializes an enum from the name of its variant.
pub fn read_choice<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let Word(word) = Word::deserialize(deserializer)?;
    let name: StringDeserializer<D::Error> = word.into_deserializer();
    T::deserialize(name)
}

/// Deserializes an optional setting whose value is an enum, from the name of the variant.
pub fn read_optional_choice<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    read_choice(deserializer).map(Some)
}
