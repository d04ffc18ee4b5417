//! Encodes claims and metadata as JSON text, in such a way that `jsonb` returns the same values.
//!
//! `jsonb` keeps every digit of a number, and the zeros after the decimal point, but no exponent.
//! So a float like `1e16` would come back as an integer, unless it is written with a decimal point.

use std::fmt::Write;

use serde_json::{Number, Value};

use crate::domain::json_object::JsonObject;

pub fn to_jsonb(object: &JsonObject) -> String {
    let map = object.to_map();
    if !map.values().any(has_large) {
        return object.as_str().to_owned();
    }
    let mut out = String::new();
    write(&Value::Object(map), &mut out);
    out
}

/// Returns the number if it is a float that `jsonb` would return as an integer. From 1e16 on,
/// serde_json writes a float with an exponent. From 2e19 on, the digits that come back are too many
/// for an integer type, so they are read as a float again.
fn large(number: &Number) -> Option<f64> {
    number.as_f64().filter(|float| number.is_f64() && (1e16..2e19).contains(&float.abs()))
}

fn has_large(value: &Value) -> bool {
    match value {
        Value::Number(number) => large(number).is_some(),
        Value::Array(values) => values.iter().any(has_large),
        Value::Object(map) => map.values().any(has_large),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

fn write(value: &Value, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Number(number) => match large(number) {
            Some(float) => write!(out, "{float:.1}"),
            None => write!(out, "{number}"),
        },
        Value::Array(values) => {
            out.push('[');
            for (n, value) in values.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write(value, out);
            }
            out.write_char(']')
        }
        Value::Object(map) => {
            out.push('{');
            for (n, (name, value)) in map.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write(&Value::String(name.clone()), out);
                out.push(':');
                write(value, out);
            }
            out.write_char('}')
        }
        other => write!(out, "{other}"),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `jsonb` keeps the digits of a number, but not its exponent.
    #[test]
    fn large_floats_are_written_with_a_decimal_point_and_other_values_unchanged() {
        let Value::Object(map) = json!({
            "floats": [1e16, -1.5e17, 1.8446744073709552e19, 0.5, 1e-7, 1e300],
            "integers": [10_000_000_000_000_000_u64, -7],
            "text": "a\"b", "nested": { "empty": [], "none": {} , "null": null },
        }) else {
            panic!("an object")
        };
        let text = to_jsonb(&JsonObject::from(&map));
        assert!(
            text.contains(
                "[10000000000000000.0,-150000000000000000.0,18446744073709551616.0,0.5,1e-7,1e+300]"
            ),
            "{text}"
        );
        assert!(text.contains("[10000000000000000,-7]"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(map));
    }
}
