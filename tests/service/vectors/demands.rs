//! Vectors about the demands of routes, the times of tokens, and the sessions that are returned.

use std::collections::BTreeMap;

use countersign::proto::{CreateSessionRequest, FactorDemand, ValidateRequest, ValidateView};
use countersign_test_support::{
    forge::Forge,
    server::{START, Server, at, request, seconds},
    vectors,
};
use serde_json::{Map, Value, json};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn age(age: u64) -> Option<prost_types::Duration> {
    Some(seconds(age).try_into().unwrap())
}

/// Returns a token of a session that has everything.
async fn full(server: &Server) -> String {
    let claims = [
        ("plan", "gold".into()),
        ("seats", 12.0.into()),
        ("flags", vec![prost_types::Value::from(true)].into()),
        ("name", "Zoë ✓".into()),
    ];
    let fields = claims.map(|(name, value)| (name.to_owned(), value));
    let otp = at(START.minus(seconds(200)));
    let request = CreateSessionRequest {
        client_id: "web".to_owned(),
        audience: texts(&["https://a.test", "https://b.test"]),
        scopes: texts(&["read", "write"]),
        acr: "urn:mfa".to_owned(),
        amr: texts(&["pwd", "otp"]),
        amr_verified_at: BTreeMap::from([("otp".to_owned(), otp)]),
        authenticated_at: Some(at(START.minus(seconds(100)))),
        claims: Some(prost_types::Struct { fields: fields.into() }.into()),
        ..request("alice")
    };
    server.create(request).await.unwrap().access
}

/// Returns demands that the full session meets, and those that it does not meet.
fn demands() -> Vec<(&'static str, ValidateRequest)> {
    let factor = |method: &str, max_age| FactorDemand { method: method.to_owned(), max_age };
    let none = ValidateRequest::default;
    let audience = |name: &str| ValidateRequest { audience: name.to_owned(), ..none() };
    let scopes = |names: &[&str]| ValidateRequest { scopes: texts(names), ..none() };
    let acr = |names: &[&str]| ValidateRequest { acr_values: texts(names), ..none() };
    let max_age = |seconds| ValidateRequest { max_authentication_age: age(seconds), ..none() };
    let factors = |factors| ValidateRequest { factors, ..none() };
    vec![
        ("nothing is demanded", none()),
        ("an audience of two", audience("https://b.test")),
        ("another audience", audience("https://c.test")),
        ("the beginning of an audience", audience("https://a.tes")),
        ("an audience in capitals", audience("HTTPS://A.TEST")),
        ("a scope", scopes(&["write"])),
        ("both scopes in another order", scopes(&["write", "read"])),
        ("a scope that is missing", scopes(&["read", "admin"])),
        ("the beginning of a scope", scopes(&["rea"])),
        ("two scopes in one text", scopes(&["read write"])),
        ("one of two context classes", acr(&["urn:pwd", "urn:mfa"])),
        ("another context class", acr(&["urn:hardware"])),
        ("an authentication within 101 s", max_age(101)),
        ("an authentication within 99 s", max_age(99)),
        ("a method", factors(vec![factor("pwd", None)])),
        ("a method that was not used", factors(vec![factor("hwk", None)])),
        ("a method within 201 s", factors(vec![factor("otp", age(201))])),
        ("a method within 199 s", factors(vec![factor("otp", age(199))])),
        ("a method whose time is not known", factors(vec![factor("pwd", age(3600))])),
        ("two methods, one too old", factors(vec![factor("pwd", None), factor("otp", age(10))])),
        (
            "everything that it has",
            ValidateRequest {
                audience: "https://a.test".to_owned(),
                scopes: texts(&["read"]),
                acr_values: texts(&["urn:mfa"]),
                max_authentication_age: age(3600),
                factors: vec![factor("otp", age(3600))],
                ..none()
            },
        ),
        (
            "everything is wrong: the audience comes first",
            ValidateRequest {
                audience: "https://c.test".to_owned(),
                scopes: texts(&["admin"]),
                acr_values: texts(&["urn:hardware"]),
                ..none()
            },
        ),
        (
            "scope and context class are wrong: the scope comes first",
            ValidateRequest {
                scopes: texts(&["admin"]),
                acr_values: texts(&["urn:hardware"]),
                ..none()
            },
        ),
    ]
}

/// Returns tokens whose times are at the limits.
fn times(forge: &Forge, good: &str) -> Vec<(&'static str, String)> {
    let now = START.seconds();
    let cases = [
        ("issued ahead by the leeway", json!({ "iat": now + 5, "exp": now + 600 })),
        ("issued ahead by more", json!({ "iat": now + 6, "exp": now + 600 })),
        ("nbf ahead by the leeway", json!({ "nbf": now + 5 })),
        ("nbf ahead by more", json!({ "nbf": now + 6 })),
        ("the longest lifetime", json!({ "exp": now + 3600 })),
        ("a longer lifetime", json!({ "exp": now + 3601 })),
        ("the last second", json!({ "iat": now - 600, "exp": now + 1 })),
        ("the second after the last one", json!({ "iat": now - 600, "exp": now })),
    ];
    cases.map(|(name, changes)| (name, forge.resign(good, changes))).into()
}

/// Returns the contents of the file.
pub async fn contents() -> Value {
    let server = Server::start().await;
    let forge = Forge::of(&server).await;
    let (full, plain) = (full(&server).await, server.sign_in("bob").await.access);
    let default_tenant = CreateSessionRequest { tenant: String::new(), ..request("carol") };
    let default_tenant = server.create(default_tenant).await.unwrap().access;
    let mut asked = vec![];
    asked.extend(demands().into_iter().map(|(name, demand)| (name, full.clone(), demand)));
    let bare = |(name, token)| (name, token, ValidateRequest::default());
    asked.extend(times(&forge, &plain).into_iter().map(bare));
    asked.push(bare(("a session without anything", plain)));
    asked.push(bare(("the default tenant", default_tenant)));
    let mut all = vec![];
    for (name, access_token, demand) in asked {
        let mut vector = Map::new();
        vector.insert("name".to_owned(), name.into());
        vector.insert("token".to_owned(), access_token.clone().into());
        vector.insert("demands".to_owned(), vectors::demands(&demand));
        let view = ValidateView::Full.into();
        let answer = server.validate(ValidateRequest { access_token, view, ..demand }).await;
        vectors::add_answer(&mut vector, &answer.unwrap());
        all.push(Value::Object(vector));
    }
    let jwks: Value = serde_json::from_str(&forge.ring.jwks().json).unwrap();
    vectors::tokens(START.seconds(), &jwks, all)
}
