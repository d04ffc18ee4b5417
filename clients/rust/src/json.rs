//! Claims and metadata as JSON. Messages have them as `google.protobuf.Struct`.

use prost_types::{ListValue, Struct, value::Kind};
use serde_json::{Map, Number, Value};

/// The largest integer up to which doubles hold all integers: 2^53.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Converts a JSON object to a `Struct`, as [`CreateSessionRequest`] has it for claims.
///
/// ```
/// # use countersign_client::{json, proto::CreateSessionRequest};
/// let claims = serde_json::json!({ "plan": "gold" });
/// let request = CreateSessionRequest {
///     subject: "alice".to_owned(),
///     claims: claims.as_object().map(json::to_struct),
///     ..Default::default()
/// };
/// ```
///
/// [`CreateSessionRequest`]: crate::proto::CreateSessionRequest
pub fn to_struct(object: &Map<String, Value>) -> Struct {
    let fields = object.iter().map(|(name, value)| (name.clone(), to_value(value)));
    Struct { fields: fields.collect() }
}

fn to_value(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(to_value).collect() })
        }
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Converts a `Struct` to a JSON object. Whole numbers up to 2^53 become integers. A number that
/// JSON cannot write becomes null.
pub fn from_struct(message: Struct) -> Map<String, Value> {
    message.fields.into_iter().map(|(name, value)| (name, from_value(value))).collect()
}

fn from_value(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(text)) => text.into(),
        #[allow(clippy::cast_possible_truncation)] // The guard checks the range.
        Some(Kind::NumberValue(number))
            if number.fract() == 0.0 && number.abs() <= MAX_EXACT_INTEGER =>
        {
            (number as i64).into()
        }
        Some(Kind::NumberValue(number)) => Number::from_f64(number).map_or(Value::Null, Into::into),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_value).collect(),
        Some(Kind::StructValue(object)) => from_struct(object).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_survives_the_conversion_to_a_struct_and_back() {
        let claims = json!({
            "text": "é", "whole": 42, "negative": -7, "fraction": 0.5, "null": null, "yes": true,
            "list": [1, [true, {}], "x"], "deep": { "a": { "b": [] } },
        });
        let claims = claims.as_object().unwrap();
        assert_eq!(&from_struct(to_struct(claims)), claims);
    }
}
