//! Tests of the tokens that the strict parser refuses. Almost all are signed by the right key, so
//! that the fault under test is their only fault.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jsonwebtoken::DecodingKey;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const KID: &str = "the-key";

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

fn key() -> VerifyingKey {
    let public = DecodingKey::from_ed_der(pair().public_key().as_ref());
    VerifyingKey::new(Algorithm::EdDSA, &public).unwrap()
}

fn signed(claims: &AccessClaims) -> Result<String, SignError> {
    let sign = |message: &[u8]| Some(pair().sign(message).as_ref().to_vec());
    sign_with(claims, sign)
}

fn sign_with(
    claims: &AccessClaims,
    with: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Result<String, SignError> {
    sign(claims, Signer { kid: KID, algorithm: "EdDSA", sign: with })
}

#[test]
fn the_error_of_a_failed_signature_names_the_key() {
    assert!(sign_with(&claims(), |_| None).unwrap_err().to_string().contains(KID));
}

fn expected() -> Expectations<'static> {
    Expectations { issuer: "https://issuer", max_ttl: Duration::from_secs(3600) }
}

fn claims() -> AccessClaims {
    let at = Timestamp::from_seconds(1_700_000_000);
    AccessClaims {
        issuer: "https://issuer".to_owned(),
        session_id: SessionId::new(at, [2; 10]),
        token_id: TokenId::new([3; 16]),
        authentication_id: None,
        subject: "alice".to_owned(),
        tenant: "acme".to_owned(),
        client_id: "web".to_owned(),
        audience: vec!["api".to_owned()],
        scopes: vec!["read".to_owned(), "write".to_owned()],
        issued_at: at,
        expires_at: at.plus(Duration::from_secs(600)),
        not_before: None,
        authenticated_at: at,
        acr: "urn:mfa".to_owned(),
        amr: vec!["pwd".to_owned(), "hwk".to_owned()],
        amr_verified_at: vec![("hwk".to_owned(), at)],
        custom: json!({ "role": "admin", "deep": { "a": [1, 2] } }).as_object().unwrap().into(),
    }
}

fn token_of(header: &str, payload: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(pair().sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn good_header() -> String {
    json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": KID }).to_string()
}

fn good_payload() -> Map<String, Value> {
    serde_json::to_value(Payload(&claims())).unwrap().as_object().unwrap().clone()
}

fn read(token: &str) -> Result<AccessClaims, InactiveReason> {
    Unverified::parse(token)?.verify(&key(), &expected())
}

fn with_header(header: &str) -> Result<AccessClaims, InactiveReason> {
    read(&token_of(header, &Value::Object(good_payload()).to_string()))
}

fn with_payload(payload: &str) -> Result<AccessClaims, InactiveReason> {
    read(&token_of(&good_header(), payload))
}

fn with_claim(name: &str, value: Value) -> Result<AccessClaims, InactiveReason> {
    let mut payload = good_payload();
    payload.insert(name.to_owned(), value);
    with_payload(&Value::Object(payload).to_string())
}

#[test]
fn signed_claims_are_read_back() {
    let token = signed(&claims()).unwrap();
    assert_eq!(Unverified::parse(&token).unwrap().kid, KID);
    assert_eq!(read(&token), Ok(claims()));
}

#[test]
fn a_malformed_header_or_another_type_or_algorithm_is_refused() {
    let kid = format!(r#""kid":"{KID}""#);
    for (header, rejection) in [
        (format!(r#"{{"alg":"EdDSA",{kid}}}"#), InactiveReason::WrongType),
        (format!(r#"{{"alg":"EdDSA","typ":"JWT",{kid}}}"#), InactiveReason::WrongType),
        (format!(r#"{{"alg":"EdDSA","typ":"AT+JWT",{kid}}}"#), InactiveReason::WrongType),
        (format!(r#"{{"alg":"EdDSA","typ":"dpop+jwt",{kid}}}"#), InactiveReason::WrongType),
        (format!(r#"{{"alg":"EdDSA","typ":7,{kid}}}"#), InactiveReason::Malformed),
        (format!(r#"{{"typ":"at+jwt",{kid}}}"#), InactiveReason::Malformed),
        (format!(r#"{{"alg":7,"typ":"at+jwt",{kid}}}"#), InactiveReason::Malformed),
        (
            format!(r#"{{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt",{kid}}}"#),
            InactiveReason::Malformed,
        ),
        (
            format!(r#"{{"alg":"EdDSA","\u0061lg":"none","typ":"at+jwt",{kid}}}"#),
            InactiveReason::Malformed,
        ),
        (r#"{"alg":"EdDSA","typ":"at+jwt"}"#.to_owned(), InactiveReason::Malformed),
        (r#"{"alg":"EdDSA","typ":"at+jwt","kid":7}"#.to_owned(), InactiveReason::Malformed),
        (r#"{"alg":"EdDSA","typ":"at+jwt","kid":null}"#.to_owned(), InactiveReason::Malformed),
        (
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt",{kid},"crit":["exp"]}}"#),
            InactiveReason::Malformed,
        ),
        (
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt",{kid},"crit":null}}"#),
            InactiveReason::Malformed,
        ),
        (
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt",{kid},"b64":false}}"#),
            InactiveReason::Malformed,
        ),
        (format!("\u{feff}{}", good_header()), InactiveReason::Malformed),
        ("[]".to_owned(), InactiveReason::Malformed),
        ("".to_owned(), InactiveReason::Malformed),
        ("[".repeat(2000), InactiveReason::Malformed),
    ] {
        assert_eq!(with_header(&header), Err(rejection), "{header}");
    }
    for alg in ["none", "None", "nOnE", "HS256", "ES256", "RS256", "PS512", "eddsa", "", "EdDSA "] {
        let header = json!({ "alg": alg, "typ": "at+jwt", "kid": KID }).to_string();
        assert_eq!(with_header(&header), Err(InactiveReason::BadSignature), "{alg}");
    }
}

#[test]
fn keys_offered_by_the_token_are_ignored() {
    let header = json!({
        "alg": "EdDSA", "typ": "at+jwt", "kid": KID, "jku": "https://evil", "x5u": "https://evil",
        "jwk": { "kty": "OKP" }, "x5c": ["evil"],
    });
    assert!(with_header(&header.to_string()).is_ok());
}

#[test]
fn a_required_claim_that_is_missing_or_of_another_type_is_refused() {
    for name in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "sid", "auth_time"] {
        let mut payload = good_payload();
        payload.remove(name);
        assert_eq!(
            with_payload(&Value::Object(payload).to_string()),
            Err(InactiveReason::Malformed),
            "no {name}"
        );
        for value in [json!(null), json!({}), json!([1]), json!(true)] {
            assert_eq!(
                with_claim(name, value.clone()),
                Err(InactiveReason::Malformed),
                "{name} {value}"
            );
        }
    }
    for (name, value) in [
        ("iss", json!(["https://issuer"])),
        ("aud", json!([])),
        ("aud", json!(7)),
        ("sid", json!("not-a-uuid")),
        ("jti", json!("not-a-uuid")),
        ("scope", json!(["read"])),
        ("tenant", json!(7)),
        ("amr", json!("pwd")),
        (AMR_VERIFIED_AT, json!([])),
        (AMR_VERIFIED_AT, json!(1_700_000_000)),
        (AMR_VERIFIED_AT, json!(null)),
        (AMR_VERIFIED_AT, json!({ "hwk": "2026-01-01T00:00:00Z" })),
        (AMR_VERIFIED_AT, json!({ "hwk": 0.5 })),
        (AMR_VERIFIED_AT, json!({ "hwk": null })),
    ] {
        assert_eq!(
            with_claim(name, value.clone()),
            Err(InactiveReason::Malformed),
            "{name} {value}"
        );
    }
    assert!(
        with_claim("aud", json!("api")).is_ok(),
        "a single audience may be a string (RFC 7519, section 4.1.3)"
    );
}

#[test]
fn instants_are_integers_in_a_valid_range() {
    for name in ["exp", "nbf", "iat", "auth_time"] {
        for value in [
            "\"1700000600\"",
            "1700000600.0",
            "1700000600.5",
            "1e19",
            "null",
            "99999999999999999999",
        ] {
            let mut payload = good_payload();
            payload.remove(name);
            let text = Value::Object(payload).to_string();
            let text = format!("{},\"{name}\":{value}}}", text.strip_suffix('}').unwrap());
            assert_eq!(with_payload(&text), Err(InactiveReason::Malformed), "{name} {value}");
        }
    }
    for (name, value) in [
        ("exp", json!(-1)),
        ("exp", json!(i64::MAX)),
        ("exp", json!(1_699_999_999)),
        ("exp", json!(1_700_003_601)),
        ("iat", json!(i64::MIN)),
        ("iat", json!(-5)),
    ] {
        assert_eq!(
            with_claim(name, value.clone()),
            Err(InactiveReason::Malformed),
            "{name} {value}"
        );
    }
    assert!(
        with_claim("exp", json!(1_700_003_600)).is_ok(),
        "the longest lifetime itself is allowed"
    );
}

#[test]
fn duplicate_claims_are_refused() {
    let text = Value::Object(good_payload()).to_string();
    let text = text.strip_suffix('}').unwrap();
    for twice in [
        r#""sub":"mallory""#,
        r#""\u0073ub":"mallory""#,
        r#""role":"x""#,
        r#""aud":"x""#,
        r#""exp":1700000600"#,
        r#""countersign_amr_verified_at":{"hwk":1}"#,
    ] {
        assert_eq!(
            with_payload(&format!("{text},{twice}}}")),
            Err(InactiveReason::Malformed),
            "{twice}"
        );
    }
}

#[test]
fn a_method_with_two_times_is_refused() {
    let mut payload = good_payload();
    payload.remove(AMR_VERIFIED_AT);
    let text = Value::Object(payload).to_string();
    let twice = r#"{"hwk":1,"\u0068wk":2}"#;
    let text = format!("{},\"{AMR_VERIFIED_AT}\":{twice}}}", text.strip_suffix('}').unwrap());
    assert_eq!(with_payload(&text), Err(InactiveReason::Malformed));
}

#[test]
fn a_token_of_another_issuer_is_refused_with_a_reason_of_its_own() {
    for issuer in ["https://issuer/", "https://ISSUER", ""] {
        assert_eq!(with_claim("iss", json!(issuer)), Err(InactiveReason::WrongIssuer));
    }
}

#[test]
fn a_payload_that_is_not_an_object_or_too_deep_is_refused() {
    for payload in ["", "[]", "null", "\u{feff}{}", &("[".repeat(5000))] {
        assert_eq!(with_payload(payload), Err(InactiveReason::Malformed));
    }
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let text = Value::Object(good_payload()).to_string();
    let text = format!("{},\"deep2\":{deep}}}", text.strip_suffix('}').unwrap());
    assert_eq!(with_payload(&text), Err(InactiveReason::Malformed), "deep nesting");
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let payload = [b"{\"sub\":\"".as_slice(), &[0xff, 0xfe], b"\"}"].concat();
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(good_header()), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(pair().sign(signed.as_bytes()));
    assert_eq!(read(&format!("{signed}.{signature}")), Err(InactiveReason::Malformed));
}

#[test]
fn a_token_that_is_not_exactly_in_compact_form_is_malformed() {
    let good = token_of(&good_header(), &Value::Object(good_payload()).to_string());
    assert!(read(&good).is_ok());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    for wrong in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        signed.to_owned(),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}.{signature}\n"),
        format!(" {good}"),
        format!("{header}.{payload}.+/{}", &signature[2..]),
    ] {
        assert_eq!(read(&wrong), Err(InactiveReason::Malformed), "{wrong}");
    }
    // The 64 bytes of a signature take 86 characters, and four bits of the last character are
    // unused. A signature that differs only in these bits is refused.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = alphabet.find(last).unwrap();
    let twin = alphabet.as_bytes()[index + 1] as char;
    let trailing = format!("{signed}.{}{twin}", &signature[..signature.len() - 1]);
    assert_eq!(read(&trailing), Err(InactiveReason::Malformed), "trailing bits");
    assert_eq!(read(&"x".repeat(MAX_BYTES + 1)), Err(InactiveReason::Malformed));
    assert_eq!(read(&format!("cs_rt_{}", "A".repeat(103))), Err(InactiveReason::WrongType));
}

#[test]
fn a_signature_that_the_key_did_not_make_is_refused() {
    let good = token_of(&good_header(), &Value::Object(good_payload()).to_string());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    // S + L is a second encoding of the same scalar, which RFC 8032, section 5.1.7, forbids.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut malleable = bytes.clone();
    let mut carry = 0u16;
    for (byte, add) in malleable[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = (sum & 0xff) as u8;
        carry = sum >> 8;
    }
    let mut flipped = bytes.clone();
    flipped[0] ^= 1;
    for wrong in [
        vec![],
        vec![0; 64],
        vec![0xff; 64],
        bytes[..63].to_vec(),
        [bytes.as_slice(), &[0]].concat(),
        malleable,
        flipped,
    ] {
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&wrong));
        assert_eq!(read(&token), Err(InactiveReason::BadSignature), "{wrong:?}");
    }
    let hmac = jsonwebtoken::crypto::sign(
        signed.as_bytes(),
        &jsonwebtoken::EncodingKey::from_secret(pair().public_key().as_ref()),
        Algorithm::HS256,
    );
    assert_eq!(
        read(&format!("{signed}.{}", hmac.unwrap())),
        Err(InactiveReason::BadSignature),
        "HS256 under the public key"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        text in "\\PC*",
        a in "[A-Za-z0-9_-]{0,60}",
        b in "[A-Za-z0-9_-]{0,60}",
    ) {
        prop_assert!(read(&text).is_err());
        let token = format!("{a}.{b}.{a}");
        prop_assert!(read(&token).is_err());
    }

    #[test]
    fn no_signed_bytes_make_the_reader_panic(
        header in proptest::collection::vec(any::<u8>(), 0..80),
        payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        for header in [header, good_header().into_bytes()] {
            let header = URL_SAFE_NO_PAD.encode(header);
            let claims = URL_SAFE_NO_PAD.encode(&payload);
            let signed = format!("{header}.{claims}");
            let signature = URL_SAFE_NO_PAD.encode(pair().sign(signed.as_bytes()));
            let token = format!("{signed}.{signature}");
            prop_assert!(read(&token).is_err());
        }
    }

    #[test]
    fn claims_survive_the_round_trip(
        subject in "\\PC{1,40}", tenant in "\\PC{0,20}",
        scopes in proptest::collection::vec("[!#-\\[\\]-~]{1,12}", 0..5),
        audience in proptest::collection::vec("\\PC{1,12}", 1..4),
        ttl in 1u64..3600, custom in "\\PC{0,30}",
    ) {
        let mut claims = claims();
        claims.subject = subject;
        claims.tenant = tenant;
        claims.scopes = scopes;
        claims.audience = audience;
        claims.expires_at = claims.issued_at.plus(Duration::from_secs(ttl));
        claims.custom = json!({ "mine": custom }).as_object().unwrap().into();
        let token = signed(&claims).unwrap();
        prop_assume!(token.len() <= MAX_BYTES);
        prop_assert_eq!(read(&token), Ok(claims));
    }
}
