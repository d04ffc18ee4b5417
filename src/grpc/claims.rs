//! Converts a session's own claims from `google.protobuf.Struct` to JSON and back.

use std::{borrow::Cow, fmt};

use prost::encoding::encode_varint;
use prost_types::{Struct, Value, value::Kind};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number};

use crate::{
    domain::{json_object::JsonObject, stored_object::MAX_EXACT_INTEGER},
    proto::EncodedStruct,
};

/// Converts a message to JSON. All numbers of a `Struct` are doubles. Whole numbers become integers
/// if their absolute value is at most [`MAX_EXACT_INTEGER`].
pub fn json_object(message: Struct) -> Result<Map<String, serde_json::Value>, &'static str> {
    message.fields.into_iter().map(|(name, value)| Ok((name, json_value(value)?))).collect()
}

fn json_value(value: Value) -> Result<serde_json::Value, &'static str> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        #[allow(clippy::cast_possible_truncation)] // The guard checks the range.
        Some(Kind::NumberValue(value))
            if value.fract() == 0.0 && value.abs() <= MAX_EXACT_INTEGER =>
        {
            (value as i64).into()
        }
        Some(Kind::NumberValue(value)) => {
            Number::from_f64(value).ok_or("holds a number that JSON cannot write")?.into()
        }
        Some(Kind::ListValue(list)) => {
            list.values.into_iter().map(json_value).collect::<Result<_, _>>()?
        }
        Some(Kind::StructValue(object)) => json_object(object)?.into(),
    })
}

/// Encodes a JSON object as a `Struct` directly from its text, without first decoding the text to a
/// tree of values.
pub fn encoded_struct(object: &JsonObject) -> EncodedStruct {
    let mut bytes = Vec::with_capacity(object.as_str().len());
    let mut json = serde_json::Deserializer::from_str(object.as_str());
    match (Encode { as_value: false, out: &mut bytes }).deserialize(&mut json) {
        Ok(()) => EncodedStruct::from_bytes(bytes),
        // A `JsonObject` is always valid JSON, so this does not happen.
        Err(_) => EncodedStruct::default(),
    }
}

// The keys of fields. A key is the field number (google/protobuf/struct.proto) and the wire type in
// one byte.
const ENTRY_KEY: u8 = (1 << 3) | 2;
const ENTRY_VALUE: u8 = (2 << 3) | 2;
const LIST_VALUES: u8 = (1 << 3) | 2;
const NULL_VALUE: u8 = 1 << 3;
const NUMBER_VALUE: u8 = (2 << 3) | 1;
const STRING_VALUE: u8 = (3 << 3) | 2;
const BOOL_VALUE: u8 = 4 << 3;
const STRUCT_VALUE: u8 = (5 << 3) | 2;
const LIST_VALUE: u8 = (6 << 3) | 2;
const STRUCT_FIELDS: u8 = (1 << 3) | 2;

/// Encodes JSON: the outermost object as a `Struct`, and everything within it as a `Value`.
struct Encode<'a> {
    as_value: bool,
    out: &'a mut Vec<u8>,
}

/// Appends a length-delimited field. Its length is inserted after its content has been written.
fn delimited<E>(
    out: &mut Vec<u8>,
    key: u8,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    out.push(key);
    let start = out.len();
    write(out)?;
    let mut length = vec![];
    encode_varint(u64::try_from(out.len() - start).unwrap_or(u64::MAX), &mut length);
    out.splice(start..start, length);
    Ok(())
}

fn put_text(out: &mut Vec<u8>, key: u8, text: &str) {
    out.push(key);
    encode_varint(u64::try_from(text.len()).unwrap_or(u64::MAX), out);
    out.extend_from_slice(text.as_bytes());
}

impl<'de> DeserializeSeed<'de> for Encode<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Encode<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.extend([NULL_VALUE, 0]);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.out.extend([BOOL_VALUE, value.into()]);
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.out.push(NUMBER_VALUE);
        self.out.extend(value.to_le_bytes());
        Ok(())
    }

    // The integers in claims were doubles before (`json_value`), so the cast loses nothing.
    #[allow(clippy::cast_precision_loss)]
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        put_text(self.out, STRING_VALUE, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        delimited(self.out, LIST_VALUE, |out| {
            loop {
                let before = out.len();
                let mut element = None;
                delimited(out, LIST_VALUES, |out| {
                    element = values.next_element_seed(Encode { as_value: true, out })?;
                    Ok(())
                })?;
                if element.is_none() {
                    out.truncate(before);
                    return Ok(());
                }
            }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = |out: &mut Vec<u8>| {
            while let Some(name) = map.next_key::<Cow<'_, str>>()? {
                delimited(out, STRUCT_FIELDS, |out| {
                    // An empty name is the default value, which protobuf omits.
                    if !name.is_empty() {
                        put_text(out, ENTRY_KEY, &name);
                    }
                    delimited(out, ENTRY_VALUE, |out| {
                        map.next_value_seed(Encode { as_value: true, out })
                    })
                })?;
            }
            Ok(())
        };
        if self.as_value { delimited(self.out, STRUCT_VALUE, fields) } else { fields(self.out) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use serde_json::json;

    use super::*;

    fn round_trip(claims: serde_json::Value) {
        let map = claims.as_object().unwrap();
        let encoded = encoded_struct(&map.into());
        let decoded = encoded.decode().unwrap();
        assert_eq!(
            EncodedStruct::from(decoded.clone()),
            encoded,
            "`encoded_struct` writes the same bytes as prost"
        );
        assert_eq!(<EncodedStruct as Message>::decode(&*encoded.encode_to_vec()).unwrap(), encoded);
        assert_eq!(&json_object(decoded).unwrap(), map);
    }

    #[test]
    fn claims_survive_the_conversion_to_a_struct_and_back() {
        round_trip(json!({
            "text": "é", "whole": 42, "negative": -7, "fraction": 0.5,
            "large": 9_007_199_254_740_991i64, "null": null,
            "list": [1, [true, {}], "x"], "deep": { "a": { "b": [] } },
            "": [{ "": 0 }, { "": "" }, null, []],
            "long": "x".repeat(300), "no": false,
        }));
        round_trip(json!({}));
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            (-1e9..1e9)
                .prop_filter("whole numbers become integers", |number: &f64| number.fract() != 0.0)
                .prop_map(Into::into),
            "\\PC{0,140}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                proptest::collection::btree_map("\\PC{0,4}", inner, 0..8)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_claims_survive_a_round_trip(
            claims in proptest::collection::btree_map("\\PC{0,4}", any_json(), 0..4),
        ) {
            round_trip(serde_json::Value::Object(claims.into_iter().collect()));
        }
    }

    #[test]
    fn a_number_that_json_cannot_write_is_refused() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            assert!(json_object(Struct { fields: [("n".to_owned(), value)].into() }).is_err());
        }
    }

    #[test]
    fn malformed_structs_are_not_decoded() {
        // A truncated number, and a string that is not UTF-8.
        for value in [&[NUMBER_VALUE, 1][..], &[STRING_VALUE, 1, 0xff]] {
            let entry = [&[ENTRY_VALUE, u8::try_from(value.len()).unwrap()], value].concat();
            let message =
                [&[STRUCT_FIELDS, u8::try_from(entry.len()).unwrap()], &entry[..]].concat();
            assert!(
                <EncodedStruct as Message>::decode(&*message).unwrap().decode().is_err(),
                "{value:?}"
            );
        }
        assert!(
            <EncodedStruct as Message>::decode(&[STRUCT_FIELDS, 9, 0][..]).is_err(),
            "the message ends within a field"
        );
    }
}
