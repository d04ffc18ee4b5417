//! What Validate says of tokens that are not good, and that asking changes nothing.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::proto::{
    CreateSessionRequest,
    InactiveReason::{self, *},
    ValidateRequest,
};
use serde_json::{Value, json};

use crate::{
    forge::{Forge, claims, parts, unsigned},
    server::{START, Server, SignedIn, request},
};

/// Each of the tokens is inactive for its reason; after that no row has been added and good tokens are good.
async fn each_is_inactive(server: &Server, good: &SignedIn, tokens: Vec<(String, InactiveReason)>) {
    let rows = server.rows().await;
    for (token, reason) in tokens {
        // Twice: the second time it might come from the cache.
        for time in ["first", "second"] {
            let start = &token[..token.len().min(300)];
            assert_eq!(server.verdict(&token).await, Err(reason), "{time} time: {start}");
        }
    }
    assert_eq!(server.rows().await, rows);
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    assert!(server.refresh(&good.refresh).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_token_is_malformed() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let [header, payload, signature] = parts(&good.access);
    let wrong = [
        "x".to_owned(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "\0".to_owned(),
        "Bearer ".to_owned() + &good.access,
        format!("{} ", good.access),
        format!("{}\n", good.access),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{signature}."),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}=="),
        "x".repeat(8192),
        "x".repeat(8193),
        format!("{}{}", good.access, "A".repeat(8193)),
        "x".repeat(60_000),
        format!("{header}.{}.{signature}", "A".repeat(60_000)),
        "[".repeat(60_000),
    ];
    each_is_inactive(&server, &good, wrong.map(|token| (token, Malformed)).to_vec()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_the_service_never_writes_is_refused() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let forge = Forge::of(&server).await;
    let payload = Value::Object(claims(&good.access)).to_string();
    let kid: Value = serde_json::from_str::<Value>(&forge.header(json!({}))).unwrap()["kid"].clone();
    let mut tokens = vec![];
    for alg in ["none", "None", "NONE", "nOnE"] {
        let header = json!({ "alg": alg, "typ": "at+jwt", "kid": kid });
        for signature in ["", "AA", parts(&good.access)[2]] {
            tokens.push((unsigned(&good.access, &header, signature), BadSignature));
        }
    }
    for alg in ["HS256", "HS512", "ES256", "RS256", "eddsa"] {
        tokens.push((forge.sign(&forge.header(json!({ "alg": alg })), &payload), BadSignature));
    }
    let hmac_key = jsonwebtoken::EncodingKey::from_secret(kid.as_str().unwrap().as_bytes());
    let hs256 = unsigned(&good.access, &json!({ "alg": "HS256", "typ": "at+jwt", "kid": kid }), "");
    let signed = hs256.trim_end_matches('.');
    let mac = jsonwebtoken::crypto::sign(signed.as_bytes(), &hmac_key, jsonwebtoken::Algorithm::HS256).unwrap();
    tokens.push((format!("{signed}.{mac}"), BadSignature));
    for kid in ["", "other", "../../../../etc/passwd", "' OR 1=1; DROP TABLE sessions; --", "a\0b", &"k".repeat(4096)] {
        tokens.push((forge.sign(&forge.header(json!({ "kid": kid })), &payload), UnknownKey));
    }
    tokens.push((forge.sign(&forge.header(json!({ "kid": "k".repeat(10_240) })), &payload), Malformed));
    for (changes, reason) in [
        (json!({ "kid": 7 }), Malformed),
        (json!({ "kid": null }), Malformed),
        (json!({ "alg": null }), Malformed),
        (json!({ "typ": null }), WrongType),
        (json!({ "typ": "JWT" }), WrongType),
        (json!({ "typ": "refresh+jwt" }), WrongType),
        (json!({ "typ": "AT+JWT" }), WrongType),
        (json!({ "crit": ["exp"] }), Malformed),
        (json!({ "b64": false }), Malformed),
    ] {
        tokens.push((forge.sign(&forge.header(changes), &payload), reason));
    }
    let doubled = format!("{},\"alg\":\"EdDSA\"}}", forge.header(json!({})).strip_suffix('}').unwrap());
    tokens.push((forge.sign(&doubled, &payload), Malformed));
    each_is_inactive(&server, &good, tokens).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_the_service_never_signs_are_refused() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let forge = Forge::of(&server).await;
    assert_eq!(server.verdict(&forge.resign(&good.access, json!({}))).await, Ok(()), "the forge itself is good");
    let now = START.seconds();
    let mut tokens = vec![];
    for (changes, reason) in [
        (json!({ "iss": "https://other.test" }), WrongIssuer),
        (json!({ "iss": ["https://auth.test"] }), Malformed),
        (json!({ "exp": (now + 600).to_string() }), Malformed),
        (json!({ "exp": 600.5 }), Malformed),
        (json!({ "exp": i64::MAX }), Malformed),
        (json!({ "exp": null }), Malformed),
        (json!({ "exp": now + 3601 }), Malformed),
        (json!({ "iat": now - 600, "exp": now }), Expired),
        (json!({ "iat": now + 6, "exp": now + 600 }), NotYetValid),
        (json!({ "nbf": now + 6 }), NotYetValid),
        (json!({ "aud": null }), Malformed),
        (json!({ "aud": [] }), Malformed),
        (json!({ "sid": "1" }), Malformed),
        (json!({ "jti": null }), Malformed),
        (json!({ "sub": 7 }), Malformed),
        (json!({ "tenant": ["acme"] }), Malformed),
    ] {
        tokens.push((forge.resign(&good.access, changes), reason));
    }
    let payload = Value::Object(claims(&good.access)).to_string();
    for twin in [r#""sub":"mallory""#, r#""s\u0075b":"mallory""#, r#""exp":1"#, r#""mine":1,"mine":2"#] {
        let payload = format!("{},{twin}}}", payload.strip_suffix('}').unwrap());
        tokens.push((forge.sign(&forge.header(json!({})), &payload), Malformed));
    }
    each_is_inactive(&server, &good, tokens).await;

    for (changes, why) in [
        (json!({ "iat": now + 5, "exp": now + 600 }), "clocks may differ by the leeway"),
        (json!({ "exp": now + 3600 }), "the longest lifetime"),
        (json!({ "iat": now - 3599, "exp": now + 1 }), "the last second"),
    ] {
        assert_eq!(server.verdict(&forge.resign(&good.access, changes)).await, Ok(()), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_anywhere_makes_a_token_inactive() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let mut tokens = vec![];
    for part in 0..3 {
        let bytes = URL_SAFE_NO_PAD.decode(parts(&good.access)[part]).unwrap();
        for position in (0..bytes.len() * 8).step_by(if part == 1 { 37 } else { 5 }) {
            let mut flipped = bytes.clone();
            flipped[position / 8] ^= 1 << (position % 8);
            let mut changed = parts(&good.access).map(str::to_owned);
            changed[part] = URL_SAFE_NO_PAD.encode(flipped);
            tokens.push((part, changed.join(".")));
        }
    }
    let rows = server.rows().await;
    for (part, token) in tokens {
        let verdict = server.verdict(&token).await;
        match part {
            // A header may come to name another key, algorithm or type, or nothing readable.
            0 => assert!(matches!(verdict, Err(Malformed | BadSignature | UnknownKey | WrongType)), "{verdict:?}"),
            _ => assert_eq!(verdict, Err(BadSignature), "part {part}: {token}"),
        }
    }
    assert_eq!(server.rows().await, rows);
    assert_eq!(server.verdict(&good.access).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_no_access_token() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let token = good.refresh.clone();
    each_is_inactive(&server, &good, vec![(token, WrongType), ("cs_rt_".to_owned(), WrongType)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_service_names_an_unknown_key_even_if_it_has_the_same_issuer() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let other = Server::start().await.sign_in("alice").await;
    each_is_inactive(&server, &good, vec![(other.access, UnknownKey)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demands_that_a_token_does_not_meet_are_told_apart() {
    let server = Server::start().await;
    let good = server
        .create(CreateSessionRequest {
            audience: ["https://a.test", "https://b.test"].map(str::to_owned).to_vec(),
            scopes: ["read", "write"].map(str::to_owned).to_vec(),
            acr: "urn:mfa".to_owned(),
            ..request("alice")
        })
        .await
        .unwrap();
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let demand = |audience: &str, scopes: &[&str], acr_values: &[&str]| ValidateRequest {
        access_token: good.access.clone(),
        audience: audience.to_owned(),
        scopes: texts(scopes),
        acr_values: texts(acr_values),
        ..Default::default()
    };
    for (request, expected) in [
        (demand("", &[], &[]), Ok(())),
        (demand("https://b.test", &["write"], &["urn:pwd", "urn:mfa"]), Ok(())),
        (demand("https://c.test", &[], &[]), Err(WrongAudience)),
        (demand("https://a.tes", &[], &[]), Err(WrongAudience)),
        (demand("", &["read", "admin"], &[]), Err(InsufficientScope)),
        (demand("", &["rea"], &[]), Err(InsufficientScope)),
        (demand("", &["read write"], &[]), Err(InsufficientScope)),
        (demand("", &[], &["urn:hardware"]), Err(StepUpRequired)),
        (demand("https://c.test", &["admin"], &["urn:hardware"]), Err(WrongAudience)),
        (demand("", &["admin"], &["urn:hardware"]), Err(InsufficientScope)),
    ] {
        assert_eq!(server.demand(request.clone()).await, expected, "{:?} {:?}", request.scopes, request.acr_values);
    }
    server.revoke(crate::server::of_token(&good.access)).await.unwrap();
    assert_eq!(server.demand(demand("https://c.test", &[], &[])).await, Err(Revoked), "revocation before demands");
}
