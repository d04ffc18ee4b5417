//! Claims of one's own: `google.protobuf.Struct` to JSON and back.

use prost_types::{Struct, Value, value::Kind};
use serde_json::{Map, Number};

/// A message of the request as JSON. `Struct` has numbers of one kind; whole ones become integers again.
pub fn json_object(message: Struct) -> Result<Map<String, serde_json::Value>, &'static str> {
    message.fields.into_iter().map(|(name, value)| Ok((name, json_value(value)?))).collect()
}

fn json_value(value: Value) -> Result<serde_json::Value, &'static str> {
    /// Beyond this, not every whole number has a double of its own (RFC 8259, section 6).
    const EXACT: f64 = 9_007_199_254_740_991.0;

    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        #[allow(clippy::cast_possible_truncation)] // Checked: whole and within what an i64 holds.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() <= EXACT => (value as i64).into(),
        Some(Kind::NumberValue(value)) => {
            Number::from_f64(value).ok_or("holds a number that JSON cannot write")?.into()
        }
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_value).collect::<Result<_, _>>()?,
        Some(Kind::StructValue(object)) => json_object(object)?.into(),
    })
}

pub fn struct_of(map: &Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.iter().map(|(name, value)| (name.clone(), value_of(value))).collect() }
}

fn value_of(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        // Whatever JSON number a token carries came from a double.
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(value_of).collect() })
        }
        serde_json::Value::Object(map) => Kind::StructValue(struct_of(map)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_survive_the_way_through_a_struct() {
        let claims = json!({
            "text": "é", "whole": 42, "negative": -7, "fraction": 0.5, "large": 9_007_199_254_740_991i64, "null": null,
            "list": [1, [true, {}], "x"], "deep": { "a": { "b": [] } },
        });
        let map = claims.as_object().unwrap();
        assert_eq!(&json_object(struct_of(map)).unwrap(), map);
    }

    #[test]
    fn a_number_that_json_cannot_write_is_refused() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            assert!(json_object(Struct { fields: [("n".to_owned(), value)].into() }).is_err());
        }
    }
}
