//! The files of `clients/vectors`, by which every client library is tested. Tests write them from
//! the answers of the service. Otherwise they check that the service still gives the same answers.

use std::{env, fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use countersign::proto::{FactorDemand, ValidateRequest, ValidateResponse};
use prost_types::{Duration, Timestamp, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value, json};

/// The variable that makes the tests write the files (`scripts/vectors`).
const WRITE: &str = "WRITE_VECTORS";

/// The members whose values differ each time that the files are written.
const RANDOM: &[&str] = &[
    "applied",
    "at",
    "authenticated_at",
    "cursor",
    "expires_at",
    "issued_at",
    "jwks",
    "message",
    "name",
    "session_id",
    "token",
    "tokens",
];

/// Writes a file, if the tests are to write them. Otherwise checks that the file has the same
/// answers in the same order.
pub fn settle(file: &str, contents: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../clients/vectors").join(file);
    if env::var_os(WRITE).is_some_and(|value| !value.is_empty()) {
        fs::write(&path, lines(contents, 2)).unwrap();
        return;
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let committed: Value = serde_json::from_str(&text).unwrap();
    let (is, was) = (shape(contents), shape(&committed));
    for (is, was) in is.iter().zip(&was) {
        assert_eq!(is, was, "{file} differs from the service: run scripts/vectors");
    }
    assert_eq!(is.len(), was.len(), "{file} differs from the service: run scripts/vectors");
}

/// Returns JSON as text, in which the members and items of the outer levels have lines of their own.
fn lines(value: &Value, levels: usize) -> String {
    let inner = |value: &Value| match levels {
        0 => value.to_string(),
        _ => lines(value, levels - 1).trim_end().to_owned(),
    };
    match value {
        Value::Object(members) if levels > 0 && members.values().any(Value::is_array) => {
            let members =
                members.iter().map(|(name, value)| format!("{}: {}", json!(name), inner(value)));
            format!("{{\n{}\n}}\n", members.collect::<Vec<_>>().join(",\n"))
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let items: Vec<_> = items.iter().map(inner).collect();
            format!("[\n{}\n]\n", items.join(",\n"))
        }
        single => single.to_string(),
    }
}

/// Returns everything that stays the same, one line for each value. The messages of a recorded
/// stream may be divided in another way each time.
fn shape(value: &Value) -> Vec<String> {
    let mut lines = vec![];
    match value {
        Value::Object(members) if members.get("is_recorded") == Some(&Value::Bool(true)) => {
            let steps = members["steps"].as_array().unwrap().iter();
            lines.extend(steps.filter(|step| step["step"] == "check").flat_map(shape));
        }
        Value::Object(members) => {
            for (name, member) in members {
                lines.push(format!("{name}:"));
                if !RANDOM.contains(&&**name) {
                    lines.extend(shape(member));
                }
            }
        }
        Value::Array(items) => lines.extend(items.iter().flat_map(shape)),
        single => lines.push(single.to_string()),
    }
    lines
}

/// Returns the contents of a file of tokens, which the service has checked at this second.
pub fn tokens(at: i64, jwks: &Value, vectors: Vec<Value>) -> Value {
    json!({
        "issuer": "https://auth.test",
        "max_lifetime": 3600,
        "leeway": 5,
        "at": at,
        "jwks": jwks,
        "vectors": vectors,
    })
}

/// Returns bytes as the files have them.
pub fn bytes(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

/// Returns the demands of a request as the files have them.
pub fn demands(request: &ValidateRequest) -> Value {
    let seconds = |span: &Duration| span.seconds;
    let mut demands = Map::new();
    let mut add = |name: &str, value: Value, is_made: bool| {
        if is_made {
            demands.insert(name.to_owned(), value);
        }
    };
    add("audience", json!(request.audience), !request.audience.is_empty());
    add("scopes", json!(request.scopes), !request.scopes.is_empty());
    add("acr_values", json!(request.acr_values), !request.acr_values.is_empty());
    let age = request.max_authentication_age.as_ref().map(seconds);
    add("max_authentication_age", json!(age), age.is_some());
    let factor = |factor: &FactorDemand| match &factor.max_age {
        None => json!({ "method": factor.method }),
        Some(age) => json!({ "method": factor.method, "max_age": seconds(age) }),
    };
    let factors: Vec<_> = request.factors.iter().map(factor).collect();
    add("factors", json!(factors), !factors.is_empty());
    Value::Object(demands)
}

/// Adds the answer to a vector: ACTIVE with the session, or the reason.
pub fn add_answer(vector: &mut Map<String, Value>, answer: &ValidateResponse) {
    vector.insert("answer".to_owned(), word(answer).into());
    if answer.active {
        vector.insert("session".to_owned(), session(answer));
    }
}

/// Returns ACTIVE, or the reason for which a token is inactive.
pub fn word(answer: &ValidateResponse) -> &'static str {
    match answer.active {
        true => "ACTIVE",
        false => answer.inactive_reason().as_str_name().strip_prefix("INACTIVE_REASON_").unwrap(),
    }
}

fn session(answer: &ValidateResponse) -> Value {
    let seconds = |at: &Option<Timestamp>| at.as_ref().unwrap().seconds;
    let times = answer.amr_verified_at.iter();
    let mut times: Vec<_> = times.map(|(method, at)| (method.clone(), at.seconds.into())).collect();
    times.sort_by(|(a, _): &(String, Value), (b, _)| a.cmp(b));
    let claims = answer.claims.clone().unwrap_or_default().decode().unwrap().fields.into_iter();
    json!({
        "session_id": answer.session_id,
        "subject": answer.subject,
        "tenant": answer.tenant,
        "client_id": answer.client_id,
        "audience": answer.audience,
        "scopes": answer.scopes,
        "issued_at": seconds(&answer.issued_at),
        "expires_at": seconds(&answer.expires_at),
        "authenticated_at": seconds(&answer.authenticated_at),
        "acr": answer.acr,
        "amr": answer.amr,
        "amr_verified_at": Map::from_iter(times),
        "claims": Map::from_iter(claims.map(|(name, value)| (name, plain(value)))),
    })
}

fn plain(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        // Whole numbers are written as JWTs have them.
        #[allow(clippy::cast_possible_truncation)]
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 => (number as i64).into(),
        Some(Kind::NumberValue(number)) => number.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
        Some(Kind::StructValue(object)) => {
            let members = object.fields.into_iter();
            Value::Object(members.map(|(name, value)| (name, plain(value))).collect())
        }
    }
}
