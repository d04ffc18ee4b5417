//! Fuzzes the parser of access tokens. A text must be accepted as genuine only if the key signed
//! exactly this text. If a payload that the key has signed is accepted, its claims must be those
//! that an independent parser finds in the payload, and they must be within the limits.
//!
//! The input is read as a token. If the input has a line feed, it is also read as a header and a
//! payload, which are signed with the key. An empty header is replaced by a valid one.
#![no_main]

use std::{collections::BTreeMap, fmt, sync::LazyLock, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    domain::{
        claims::{AMR_VERIFIED_AT, AUTHENTICATION_ID, AccessClaims},
        inactive::InactiveReason,
        time::Timestamp,
    },
    keys::{
        pair::{SigningPair, jose},
        ring::VerifyingKey,
    },
    token::{
        access::{Expectations, MAX_BYTES, Signer, TYPE, Unverified, sign},
        refresh,
    },
};
use jsonwebtoken::{Algorithm, DecodingKey};
use libfuzzer_sys::fuzz_target;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

const KID: &str = "the-key";
const GOOD_HEADER: &[u8] = br#"{"typ":"at+jwt","alg":"EdDSA","kid":"the-key"}"#;

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap());
static PUBLIC: LazyLock<VerifyingKey> = LazyLock::new(|| {
    let public = DecodingKey::from_ed_der(KEY.public_key().as_ref());
    VerifyingKey::new(Algorithm::EdDSA, &public).unwrap()
});
const EXPECTED: Expectations<'static> =
    Expectations { issuer: "https://issuer", max_ttl: Duration::from_secs(3600) };

/// Keys of other algorithms, which have signed nothing.
static OTHERS: LazyLock<Vec<VerifyingKey>> = LazyLock::new(|| {
    let pems = [
        &include_bytes!("../../src/keys/test_keys/p256_sec1.pem")[..],
        include_bytes!("../../src/keys/test_keys/rsa2048_pkcs1.pem"),
    ];
    let key = |pem| {
        let (pair, _) = SigningPair::from_pem(pem).unwrap();
        let public = DecodingKey::from_jwk(&pair.jwk().unwrap()).unwrap();
        VerifyingKey::new(jose(pair.algorithm()), &public).unwrap()
    };
    pems.into_iter().map(key).collect()
});

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = str::from_utf8(data) {
        check_text(text);
    }
    if let Some(end) = data.iter().position(|byte| *byte == b'\n') {
        let header = if end == 0 { GOOD_HEADER } else { &data[..end] };
        check_signed(header, &data[end + 1..]);
    }
});

fn read(token: &str) -> Result<AccessClaims, InactiveReason> {
    let unverified = Unverified::parse(token)?;
    for key in &*OTHERS {
        assert!(unverified.verify(key, &EXPECTED).is_err(), "{:?} {token}", key.algorithm());
    }
    unverified.verify(&PUBLIC, &EXPECTED)
}

/// Checks that a token that is accepted was signed with the key. Ed25519 signatures are
/// deterministic, so an accepted token with another signature than the key yields is forged.
fn check_text(text: &str) {
    if read(text).is_err() {
        return;
    }
    assert!(text.len() <= MAX_BYTES && !text.starts_with(refresh::PREFIX));
    let (signed, _) = text.rsplit_once('.').unwrap();
    assert_eq!(text, with_signature(signed.to_owned()), "forged");
}

fn with_signature(signed: String) -> String {
    let signature = URL_SAFE_NO_PAD.encode(KEY.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Signs a header and a payload, and checks the claims if the token is accepted.
fn check_signed(header: &[u8], payload: &[u8]) {
    let [encoded_header, encoded_payload] =
        [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let token = with_signature(format!("{encoded_header}.{encoded_payload}"));
    let claims = match read(&token) {
        Ok(claims) => claims,
        Err(reason) => {
            let is_forged = reason == InactiveReason::BadSignature;
            assert!(
                !is_forged || alg(header).as_deref() != Some("EdDSA"),
                "a genuine signature was refused"
            );
            return;
        }
    };
    assert!(token.len() <= MAX_BYTES);
    assert!(str::from_utf8(header).is_ok() && str::from_utf8(payload).is_ok());

    let header: Header = serde_json::from_slice(header).expect("a header that was accepted");
    assert_eq!(
        header.0,
        [("alg", "EdDSA".to_owned()), ("kid", header.0["kid"].clone()), ("typ", TYPE.to_owned())]
            .into()
    );

    let Members(mut members) =
        serde_json::from_slice(payload).expect("a payload that was accepted");
    agree(&mut members, &claims);

    // The service can issue the claims that it accepts, and reads the same claims again. This does
    // not hold for instants beyond the range of `Timestamp`.
    let instants = [claims.issued_at, claims.expires_at, claims.authenticated_at];
    let all = instants.into_iter().chain(claims.not_before);
    if all.into_iter().all(|instant| Timestamp::from_seconds(instant.seconds()) == instant) {
        let with = |message: &[u8]| Some(KEY.sign(message).as_ref().to_vec());
        let again = sign(&claims, Signer { kid: KID, algorithm: "EdDSA", sign: with }).unwrap();
        assert!(again.len() > MAX_BYTES || read(&again).as_ref() == Ok(&claims), "{again}");
    }
}

/// Checks that each claim equals the member with its name in the payload, and is within its limits.
fn agree(members: &mut BTreeMap<String, Value>, claims: &AccessClaims) {
    let mut take = |name: &str| members.remove(name);
    let text = |value: Option<Value>| {
        value.map_or_else(String::new, |value| value.as_str().unwrap().to_owned())
    };
    let texts = |value: &Value| {
        value.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let seconds = |value: Option<Value>| value.unwrap().as_i64().unwrap();

    assert_eq!(claims.issuer, EXPECTED.issuer);
    assert_eq!(text(take("iss")), claims.issuer);
    assert_eq!(take("sub").unwrap(), *claims.subject);
    assert_eq!(take("client_id").unwrap(), *claims.client_id);
    assert_eq!(take("sid").unwrap(), *claims.session_id.to_string());
    assert_eq!(take("jti").unwrap(), *claims.token_id.to_string());
    assert_eq!(text(take("tenant")), claims.tenant);
    assert_eq!(text(take("acr")), claims.acr);
    assert!(claims.scopes.iter().all(|scope| !scope.is_empty()));
    assert!(text(take("scope")).split(' ').filter(|scope| !scope.is_empty()).eq(&claims.scopes));
    assert_eq!(take("amr").as_ref().map_or_else(Vec::new, texts), claims.amr);
    let times = take(AMR_VERIFIED_AT).map_or_else(Map::new, |times| {
        let Value::Object(times) = times else { panic!("{times}") };
        times
    });
    assert_eq!(claims.amr_verified_at.len(), times.len());
    for (method, at) in &claims.amr_verified_at {
        assert_eq!(*at, Timestamp::from_seconds(times[method].as_i64().unwrap()));
    }
    let authentication = claims.authentication_id.map(|id| id.to_string());
    assert_eq!(text(take(AUTHENTICATION_ID)), authentication.unwrap_or_default());
    assert!(!claims.audience.is_empty());
    match take("aud").unwrap() {
        Value::String(one) => assert_eq!([one][..], claims.audience),
        many => assert_eq!(texts(&many), claims.audience),
    }

    let (issued, expires) = (seconds(take("iat")), seconds(take("exp")));
    assert_eq!(claims.issued_at, Timestamp::from_seconds(issued));
    assert_eq!(claims.expires_at, Timestamp::from_seconds(expires));
    assert_eq!(claims.authenticated_at, Timestamp::from_seconds(seconds(take("auth_time"))));
    assert_eq!(
        claims.not_before,
        take("nbf").map(|value| Timestamp::from_seconds(seconds(Some(value))))
    );
    assert!(issued >= 0);
    assert!(claims.issued_at <= claims.expires_at);
    assert!(claims.expires_at.since(claims.issued_at) <= EXPECTED.max_ttl);

    assert!(members.iter().eq(claims.custom.to_map().iter()), "{members:?} {:?}", claims.custom);
}

/// The members of a payload. Reading a payload that has a member twice panics.
struct Members(BTreeMap<String, Value>);

/// The members of a header that are understood. Reading fails if one of them is there twice, or if
/// the header has a member that changes how a token is to be read.
struct Header(BTreeMap<&'static str, String>);

fn alg(header: &[u8]) -> Option<String> {
    serde_json::from_slice::<Header>(header).ok()?.0.remove("alg")
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    assert!(
                        members.insert(name, value).is_none(),
                        "a payload that has a claim twice was accepted"
                    );
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an unambiguous object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                use serde::de::Error;
                let mut members = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    match ["alg", "kid", "typ"].into_iter().find(|known| *known == name) {
                        Some(known) if members.insert(known, map.next_value()?).is_some() => {
                            return Err(M::Error::custom("twice"));
                        }
                        Some(_) => {}
                        None if name == "crit" || name == "b64" => {
                            return Err(M::Error::custom("not understood"));
                        }
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Header(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
