//! Tests of bad JWTs. Each row is a token and the answer that Validate must give to it: at the
//! first call, at the second, and in a batch. Refresh must accept none of them, and Revoke only
//! those whose signature is good.
//!
//! Cases that need more than a token are elsewhere: the audience or tenant of another caller in
//! `service/callers.rs`, a revoked key in `service/keys.rs`, and flipped bits in
//! `service/inactive.rs`.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{self, Ed25519KeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use countersign::{
    keys::pair::SigningPair,
    proto::{
        BatchValidateRequest, InactiveReason::*, RefreshRequest, ValidateRequest, ValidateResponse,
        ValidateView,
    },
};
use countersign_test_support::{
    forge::{Forge, claims, parts},
    server::of_token,
    site::{Keys, Site},
    vectors,
};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Map, Value, json};
use tonic::Status;
use tonic_types::StatusExt;

/// The longest token that is written to the vectors for client libraries.
const LONGEST_VECTOR: usize = 10_000;

/// A token, and the answer that must be given to it.
struct Row {
    name: String,
    token: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Active,
    Inactive(countersign::proto::InactiveReason),
    /// The request is refused because the token is too long.
    TooLarge,
}
use Verdict::{Active, Inactive, TooLarge};

const MALFORMED: Verdict = Inactive(Malformed);
const BAD_SIGNATURE: Verdict = Inactive(BadSignature);
const UNKNOWN_KEY: Verdict = Inactive(UnknownKey);
const WRONG_TYPE: Verdict = Inactive(WrongType);

/// The rows made so far, and the good token and its signer, from which further rows are made.
struct Table<'a> {
    forge: &'a Forge,
    good: String,
    claims: Map<String, Value>,
    /// An address on which the test listens, and to which the service must not connect.
    trap: String,
    rows: Vec<Row>,
}

impl Table<'_> {
    fn row(&mut self, name: impl Into<String>, token: impl Into<String>, verdict: Verdict) {
        self.rows.push(Row { name: name.into(), token: token.into(), verdict });
    }

    /// Adds a token with this text as its header, the claims of the good token, and a good
    /// signature.
    fn header(&mut self, name: impl Into<String>, header: &str, verdict: Verdict) {
        let token = self.forge.sign(header, &Value::Object(self.claims.clone()).to_string());
        self.row(name, token, verdict);
    }

    /// Adds a token with the good header, in which these members are replaced. A null removes a
    /// member.
    fn member(&mut self, changes: Value, verdict: Verdict) {
        self.header(
            format!("header {}", short(&changes.to_string())),
            &self.forge.header(changes),
            verdict,
        );
    }

    /// Adds a token with the good header and one more member, given as text. The header may already
    /// have a member of that name.
    fn one_more(&mut self, member: &str, verdict: Verdict) {
        let header = self.forge.header(json!({}));
        self.header(
            format!("header and {}", short(member)),
            &with_one_more(&header, member),
            verdict,
        );
    }

    /// Adds a token with these bytes as its payload, a good header and a good signature.
    fn payload(&mut self, name: impl Into<String>, payload: impl AsRef<[u8]>, verdict: Verdict) {
        let header = URL_SAFE_NO_PAD.encode(self.forge.header(json!({})));
        let token = self.forge.sign_parts(&header, &URL_SAFE_NO_PAD.encode(payload));
        self.row(name, token, verdict);
    }

    /// Adds a token with the good claims, in which one claim has this value, given as JSON. An
    /// empty value removes the claim.
    fn claim(&mut self, name: &str, value: &str, verdict: Verdict) {
        let mut claims = self.claims.clone();
        claims.remove(name);
        let text = Value::Object(claims).to_string();
        let text = if value.is_empty() {
            text
        } else {
            with_one_more(&text, &format!("\"{name}\":{value}"))
        };
        self.payload(
            format!("{name}: {}", if value.is_empty() { "missing" } else { value }),
            text,
            verdict,
        );
    }

    /// Adds the good token with this signature instead of its own.
    fn signature(&mut self, name: &str, signature: &[u8], verdict: Verdict) {
        let [header, payload, _] = parts(&self.good);
        let token = format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(signature));
        self.row(format!("signature: {name}"), token, verdict);
    }

    fn algorithm(&self) -> &'static str {
        self.forge.ring.signing().unwrap().pair.algorithm().as_str()
    }

    /// Adds tokens whose header names another algorithm than the key's.
    fn algorithms(&mut self) {
        let [_, payload, signature] = parts(&self.good).map(str::to_owned);
        let kid = self.forge.ring.signing().unwrap().kid.clone();
        for alg in ["none", "None", "NONE", "nOnE", "none ", ""] {
            let header = URL_SAFE_NO_PAD.encode(self.forge.header(json!({ "alg": alg })));
            for signature in ["", "AA", &signature] {
                let name = format!("alg {alg:?}, signature of {} bytes", signature.len());
                self.row(name, format!("{header}.{payload}.{signature}"), BAD_SIGNATURE);
            }
            // Some libraries write an unsigned JWT without the last dot.
            self.row(format!("alg {alg:?}, two parts"), format!("{header}.{payload}"), MALFORMED);
        }

        let jwk = public_key(self.forge);
        let bytes = |member: &str| {
            URL_SAFE_NO_PAD.decode(jwk[member].as_str().unwrap_or_default()).unwrap()
        };
        let (x, y, n) = (bytes("x"), bytes("y"), bytes("n"));
        let mut point = vec![4];
        point.extend([&x[..], &y].concat());
        let der = match self.algorithm() {
            "EdDSA" => {
                [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0][..], &x].concat()
            }
            "ES256" => [
                &[0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8][..],
                &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0],
                &point,
            ]
            .concat(),
            _ => n.clone(),
        };
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(&der)
        );
        let jwk = jwk.to_string();
        let secrets: [(&str, &[u8]); 9] = [
            ("x", &x),
            ("the point", &point),
            ("the modulus", &n),
            ("DER", &der),
            ("PEM", pem.as_bytes()),
            ("PEM without its last line feed", pem.trim_end().as_bytes()),
            ("JWK", jwk.as_bytes()),
            ("kid", kid.as_bytes()),
            ("nothing", &[]),
        ];
        for (what, secret) in secrets {
            for (alg, hmac) in [
                ("HS256", Algorithm::HS256),
                ("HS384", Algorithm::HS384),
                ("HS512", Algorithm::HS512),
            ] {
                let header = URL_SAFE_NO_PAD.encode(self.forge.header(json!({ "alg": alg })));
                let signed = format!("{header}.{payload}");
                let mac = jsonwebtoken::crypto::sign(
                    signed.as_bytes(),
                    &EncodingKey::from_secret(secret),
                    hmac,
                );
                self.row(
                    format!("{alg} under {what}"),
                    format!("{signed}.{}", mac.unwrap()),
                    BAD_SIGNATURE,
                );
            }
        }

        let others = [
            "EdDSA",
            "ES256",
            "RS256",
            "HS256",
            "ES384",
            "ES512",
            "ES256K",
            "RS384",
            "RS512",
            "PS256",
            "PS384",
            "PS512",
            "Ed25519",
            "Ed448",
            "dir",
            "RSA-OAEP",
            "A128KW",
            "eddsa",
            "es256",
            "Rs256",
            " EdDSA",
            "EdDSA\u{0}",
            "\u{0415}dDSA",
        ];
        let own = self.algorithm();
        for alg in others.into_iter().filter(|alg| *alg != own) {
            self.member(json!({ "alg": alg }), BAD_SIGNATURE);
        }
        self.member(json!({ "alg": null }), MALFORMED);
        for value in ["null", "7", "true", "[\"EdDSA\"]", "{\"EdDSA\":1}"] {
            let header = self.forge.header(json!({ "alg": null }));
            self.header(
                format!("alg {value}"),
                &with_one_more(&header, &format!("\"alg\":{value}")),
                MALFORMED,
            );
        }
        for twin in ["alg", r"\u0061lg", r"al\u0067"] {
            for value in [own, "none", "HS256"] {
                self.one_more(&format!("\"{twin}\":\"{value}\""), MALFORMED);
            }
        }
    }

    /// Adds tokens whose header names a key that does not exist, or no key.
    fn keys(&mut self, token_of_deleted_key: &str) {
        let own = self.forge.ring.signing().unwrap().kid.clone();
        let refresh: Vec<_> =
            self.forge.ring.keys().map(|key| key.kid.clone()).filter(|kid| *kid != own).collect();
        assert!(refresh.len() >= 2, "the next signing key, and the key of refresh tokens");
        let kids = [
            "",
            " ",
            "other",
            "../../../../etc/passwd",
            "/dev/zero",
            "file:///etc/passwd",
            "C:\\Windows\\win.ini",
            "' OR '1'='1",
            "'; DROP TABLE sessions; --",
            "1 UNION SELECT sealed FROM signing_keys",
            "$(touch /tmp/x)",
            "`id`",
            "%s%n",
            "${jndi:ldap://127.0.0.1/a}",
            "\0",
            "a\0b",
            "\u{202e}",
            "a\r\nlog line",
            &self.trap.clone(),
            &own.to_uppercase(),
            &own[1..],
            &format!("{own} "),
            &format!("{own}\0"),
            &format!("{own}/../{own}"),
            &"k".repeat(4096),
        ];
        for kid in kids {
            self.member(json!({ "kid": kid }), UNKNOWN_KEY);
        }
        let is_refresh = |kid: &&String| {
            matches!(self.forge.ring.verifying(kid), countersign::keys::ring::Found::Unknown)
        };
        let macs: Vec<_> = refresh.iter().filter(is_refresh).cloned().collect();
        assert!(!macs.is_empty());
        for kid in macs {
            self.member(json!({ "kid": kid, "alg": "HS256" }), UNKNOWN_KEY);
            self.member(json!({ "kid": kid }), UNKNOWN_KEY);
        }
        self.row("of a key that was removed", token_of_deleted_key, UNKNOWN_KEY);
        let gone = countersign_test_support::forge::header(token_of_deleted_key)["kid"].clone();
        self.member(json!({ "kid": gone }), UNKNOWN_KEY);
        self.member(json!({ "kid": "k".repeat(10 << 10) }), MALFORMED);
        self.member(json!({ "kid": null }), MALFORMED);
        for value in [
            "null",
            "7",
            "0",
            "true",
            "[]",
            "{}",
            &format!("[\"{own}\"]"),
            &format!("{{\"kid\":\"{own}\"}}"),
        ] {
            let header = self.forge.header(json!({ "kid": null }));
            self.header(
                format!("kid {value}"),
                &with_one_more(&header, &format!("\"kid\":{value}")),
                MALFORMED,
            );
        }
        for twin in ["kid", r"\u006bid"] {
            for kid in [&own, "other"] {
                self.one_more(&format!("\"{twin}\":\"{kid}\""), MALFORMED);
            }
        }
    }

    /// Adds tokens whose header contains a key, or says where to get one. The service must ignore
    /// both.
    fn keys_that_are_brought_along(&mut self) {
        let pair = Ed25519KeyPair::generate().unwrap();
        let jwk = json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "mine",
            "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
        });
        let trap = self.trap.clone();
        let offers = [
            json!({ "jku": format!("{trap}/jwks.json") }),
            json!({ "jku": [trap] }),
            json!({ "x5u": format!("{trap}/cert.pem") }),
            json!({ "jwk": jwk }),
            json!({ "jwk": { "k": "AAAA", "kty": "oct" } }),
            json!({ "x5c": ["MIIB"] }),
            json!({ "x5t": "AAAA", "x5t#S256": "AAAA" }),
            json!({ "jku": format!("{trap}/a"), "x5u": format!("{trap}/b"), "jwk": jwk, "x5c": ["MIIB"], "url": trap }),
        ];
        let mine = |header: String, payload: &str| {
            let signed = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header));
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes())))
        };
        let payload = parts(&self.good)[1].to_owned();
        for offer in offers {
            let name = short(&offer.to_string());
            // This token is signed by the service's own key. The key that its header offers is
            // ignored, so the token is valid.
            self.member(offer.clone(), Active);
            for (kid, verdict) in
                [(None, BAD_SIGNATURE), (Some("mine"), UNKNOWN_KEY), (Some(&*trap), UNKNOWN_KEY)]
            {
                let mut changes = offer.clone();
                changes["alg"] = "EdDSA".into();
                if let Some(kid) = kid {
                    changes["kid"] = kid.into();
                }
                let token = mine(self.forge.header(changes), &payload);
                self.row(format!("of the key that it offers, kid {kid:?}: {name}"), token, verdict);
            }
        }
        let mut claims = self.claims.clone();
        claims.insert("iss".to_owned(), self.trap.clone().into());
        self.payload(
            "an issuer whose keys could be fetched",
            Value::Object(claims).to_string(),
            Inactive(WrongIssuer),
        );
    }

    /// Adds tokens whose header has extensions that change how the token must be read, names
    /// another type, or is not JSON.
    fn headers(&mut self) {
        for value in [
            "[\"exp\"]",
            "[\"b64\"]",
            "[]",
            "null",
            "\"exp\"",
            "{}",
            "false",
            "[\"https://x.test/y\"]",
        ] {
            self.one_more(&format!("\"crit\":{value}"), MALFORMED);
        }
        self.one_more(r#""crit":["b64"],"b64":false"#, MALFORMED);
        for value in ["false", "true", "null", "\"false\"", "0"] {
            self.one_more(&format!("\"b64\":{value}"), MALFORMED);
        }
        self.one_more(r#""\u0062\u0036\u0034":false"#, MALFORMED);
        self.one_more(r#""cri\u0074":["exp"]"#, MALFORMED);

        self.member(json!({ "typ": null }), WRONG_TYPE);
        let types = [
            "JWT",
            "jwt",
            "AT+JWT",
            "at+JWT",
            "application/at+jwt",
            "at+jwt ",
            "refresh+jwt",
            "rt+jwt",
            "dpop+jwt",
            "logout+jwt",
            "secevent+jwt",
            "id+jwt",
            "JOSE",
            "",
        ];
        for typ in types {
            self.member(json!({ "typ": typ }), WRONG_TYPE);
        }
        for typ in ["7", "[\"at+jwt\"]", "{}", "true"] {
            let header = self.forge.header(json!({ "typ": null }));
            self.header(
                format!("typ {typ}"),
                &with_one_more(&header, &format!("\"typ\":{typ}")),
                MALFORMED,
            );
        }
        self.one_more(r#""typ":"JWT""#, MALFORMED);

        let good = self.forge.header(json!({}));
        for header in
            ["", " ", "{}", "[]", "null", "7", "\"alg\"", "{", "}", "{{}}", "{\"alg\"}", "not json"]
        {
            self.header(format!("header is {header:?}"), header, MALFORMED);
        }
        // serde would deserialize a list into a struct, member by member in the order of
        // declaration.
        let own = self.forge.ring.signing().unwrap().kid.clone();
        let list = [json!(self.algorithm()), json!(own), json!("at+jwt")];
        for length in 1..=list.len() {
            self.header(
                format!("header as a list of {length}"),
                &json!(list[..length]).to_string(),
                MALFORMED,
            );
        }
        self.header("header in a list", &format!("[{good}]"), MALFORMED);
        // Names must be unique, including those of members that the service ignores (RFC 7515,
        // section 4).
        for twins in [
            r#""x":1,"x":1"#,
            r#""x":1,"\u0078":2"#,
            r#""jku":"a","y":0,"jku":"a""#,
            r#""":1,"":2"#,
        ] {
            self.one_more(twins, MALFORMED);
        }
        self.one_more(r#""x":1,"X":1,"x ":1"#, Active);
        self.header("header after a byte order mark", &format!("\u{feff}{good}"), MALFORMED);
        self.header("header and more", &format!("{good}{{}}"), MALFORMED);
        self.header("header and NUL", &format!("{good}\0"), MALFORMED);
        self.header("header with a comma too many", &good.replace('}', ",}"), MALFORMED);
        self.header("header with single quotes", &good.replace('"', "'"), MALFORMED);
        self.header("header of brackets", &"[".repeat(5000), MALFORMED);
        self.header("header of braces", &"{\"a\":".repeat(1000), MALFORMED);
        // Unknown members are skipped without recursion. The token is active, because the service's
        // own key has signed it. No attacker can make such a token.
        self.one_more(&format!("\"x\":{}{}", "[".repeat(2500), "]".repeat(2500)), Active);
        self.one_more(r#""x":"\ud800""#, Active);
        let payload = parts(&self.good)[1].to_owned();
        for (name, bytes) in not_utf8(&good) {
            let token = self.forge.sign_parts(&URL_SAFE_NO_PAD.encode(bytes), &payload);
            self.row(format!("header: {name}"), token, MALFORMED);
        }
    }

    /// Adds tokens with claims that this service never signs.
    fn claims(&mut self) {
        let text = Value::Object(self.claims.clone()).to_string();
        for name in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "sid", "auth_time"] {
            for value in ["", "null", "{}", "[]", "[1]", "[[\"a\"]]", "true"] {
                self.claim(name, value, MALFORMED);
            }
        }
        for name in ["iss", "sub", "aud", "client_id", "jti", "sid", "tenant", "scope", "acr"] {
            for value in ["7", "-0.5", "[null]", "{\"a\":\"b\"}"] {
                self.claim(name, value, MALFORMED);
            }
        }
        let audience = self.claims["aud"].clone();
        self.claim("iss", &json!([self.claims["iss"]]).to_string(), MALFORMED);
        self.claim("aud", &json!([audience, 7]).to_string(), MALFORMED);
        self.claim("amr", "\"pwd\"", MALFORMED);
        for issuer in [
            "",
            "https://other.test",
            "https://auth.test/",
            "HTTPS://AUTH.TEST",
            "https://auth.test\0",
            " https://auth.test",
        ] {
            self.claim("iss", &json!(issuer).to_string(), Inactive(WrongIssuer));
        }
        for id in [
            "",
            "1",
            "null",
            "0190a5c8",
            "' OR 1=1",
            "{0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22}",
            "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22x",
            "x0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22",
            "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22\n",
            &"0".repeat(4000),
        ] {
            self.claim("sid", &json!(id).to_string(), MALFORMED);
            self.claim("jti", &json!(id).to_string(), MALFORMED);
        }

        let now = self.claims["iat"].as_i64().unwrap();
        for name in ["exp", "nbf", "iat", "auth_time"] {
            let quoted = format!("\"{}\"", now + 60);
            let fraction = format!("{}.5", now + 60);
            let whole = format!("{}.0", now + 60);
            for value in [
                &*quoted,
                &fraction,
                &whole,
                "1e9",
                "1E400",
                "-1e400",
                "null",
                "true",
                "{}",
                "[1]",
                "18446744073709551616",
                "NaN",
                "Infinity",
                "0x7fffffff",
                "+5",
                "01",
            ] {
                self.claim(name, value, MALFORMED);
            }
            self.claim(name, &"9".repeat(4000), MALFORMED);
        }
        for (name, value) in [
            ("exp", -1),
            ("exp", i64::MAX),
            ("exp", i64::MIN),
            ("exp", now - 1),
            ("exp", now + 3601),
            ("iat", -1),
            ("iat", i64::MAX),
            ("iat", i64::MIN),
        ] {
            self.claim(name, &value.to_string(), MALFORMED);
        }
        let at = |changes: Value| self.forge.resign(&self.good, changes);
        let rows = [
            ("expired", at(json!({ "iat": now - 60, "exp": now })), Inactive(Expired)),
            ("expired as soon as it was issued", at(json!({ "exp": now })), Inactive(Expired)),
            ("of 1970", at(json!({ "iat": 0, "exp": 1 })), Inactive(Expired)),
            (
                "issued in an hour",
                at(json!({ "iat": now + 3600, "exp": now + 4200 })),
                Inactive(NotYetValid),
            ),
            ("good in an hour", at(json!({ "nbf": now + 3600 })), Inactive(NotYetValid)),
            ("good at the end of time", at(json!({ "nbf": i64::MAX })), Inactive(NotYetValid)),
            ("good since the beginning of time", at(json!({ "nbf": i64::MIN })), Active),
            ("authenticated at the end of time", at(json!({ "auth_time": i64::MAX })), Active),
            ("as long as a token may live", at(json!({ "exp": now + 3600 })), Active),
        ];
        for (name, token, verdict) in rows {
            self.row(name, token, verdict);
        }

        for twin in [
            r#""sub":"mallory""#,
            r#""s\u0075b":"mallory""#,
            r#""\u0073\u0075\u0062":"mallory""#,
            r#""aud":"other""#,
            r#""exp":1"#,
            r#""e\u0078p":9999999999"#,
            r#""jti":"0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22""#,
            r#""sid":"0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22""#,
            r#""iss":"https://auth.test""#,
            r#""nbf":1,"nbf":1"#,
            r#""tenant":"a","tenant":"b""#,
            r#""mine":1,"mine":2"#,
            r#""mine":1,"m\u0069ne":1"#,
        ] {
            self.payload(format!("twice: {twin}"), with_one_more(&text, twin), MALFORMED);
        }

        for payload in ["", " ", "null", "7", "[]", "\"claims\"", "{", "{}", "{}{}", "not json"] {
            self.payload(format!("payload is {payload:?}"), payload, MALFORMED);
        }
        self.payload("payload after a byte order mark", format!("\u{feff}{text}"), MALFORMED);
        self.payload("payload and more", format!("{text}{text}"), MALFORMED);
        self.payload("payload and NUL", format!("{text}\0"), MALFORMED);
        self.payload("payload in a list", format!("[{text}]"), MALFORMED);
        let values = Value::Array(self.claims.values().cloned().collect());
        self.payload("payload as a list of values", values.to_string(), MALFORMED);
        self.payload("half a character", with_one_more(&text, r#""x":"\udc00""#), MALFORMED);
        self.payload("a control character", with_one_more(&text, "\"x\":\"\n\""), MALFORMED);
        for (name, bytes) in not_utf8(&text) {
            self.payload(format!("payload: {name}"), bytes, MALFORMED);
        }
        for (name, open, close) in [("lists", "[", "]"), ("objects", "{\"a\":", "}")] {
            let deep = format!("\"x\":{}1{}", open.repeat(200), close.repeat(200));
            self.payload(
                format!("200 {name} in each other"),
                with_one_more(&text, &deep),
                MALFORMED,
            );
            self.payload(
                format!("{name} without an end"),
                with_one_more(&text, &format!("\"x\":{}", open.repeat(700))),
                MALFORMED,
            );
        }
    }

    /// Adds tokens that do not have three parts, or whose parts are encoded in another way.
    fn forms(&mut self) {
        let good = self.good.clone();
        let [header, payload, signature] = parts(&good);
        for text in [
            "x", ".", "..", "...", "a.b.c", "a.b", "\0", " ", "null", "{}", "Bearer", "cs_at_x",
            "\u{feff}",
        ] {
            self.row(format!("{text:?}"), text, MALFORMED);
        }
        let rows = [
            ("two parts", format!("{header}.{payload}")),
            ("header and signature", format!("{header}.{signature}")),
            ("four parts", format!("{good}.{signature}")),
            ("four parts, the last empty", format!("{good}.")),
            ("four parts, the first empty", format!(".{good}")),
            ("five parts, as a JWE has", format!("{good}.{payload}.{signature}")),
            ("no header", format!(".{payload}.{signature}")),
            ("after Bearer", format!("Bearer {good}")),
            ("in quotes", format!("\"{good}\"")),
            ("a space before", format!(" {good}")),
            ("a space after", format!("{good} ")),
            ("a line feed after", format!("{good}\n")),
            ("NUL after", format!("{good}\0")),
            ("commas instead of dots", good.replace('.', ",")),
            ("twice", format!("{good}{good}")),
            ("padded header", format!("{header}=.{payload}.{signature}")),
            ("padded signature", format!("{header}.{payload}.{signature}==")),
            ("padding alone", "=.=.=".to_owned()),
            (
                "a line feed in the signature",
                format!("{header}.{payload}.{}\n{}", &signature[..40], &signature[40..]),
            ),
            ("a line feed after the header", format!("{header}\n.{payload}.{signature}")),
            ("+ and / in the signature", format!("{header}.{payload}.+/{}", &signature[2..])),
            (
                "as JSON (RFC 7515, section 7.2)",
                json!({ "payload": payload, "protected": header, "signature": signature })
                    .to_string(),
            ),
        ];
        for (name, token) in rows {
            self.row(name, token, MALFORMED);
        }
        self.row("no payload", format!("{header}..{signature}"), BAD_SIGNATURE);
        self.row("no signature", format!("{header}.{payload}."), BAD_SIGNATURE);

        // The signature covers the encoded text, so it is good, and only the encoding is wrong.
        let own = self.forge.header(json!({}));
        let mut text = own.clone();
        while !text.len().is_multiple_of(3) {
            text.push(' ');
        }
        for spaces in 1..3 {
            text.push(' ');
            let loose = loose_bits(&URL_SAFE_NO_PAD.encode(&text));
            self.row(
                format!("loose bits in the header, {spaces}"),
                self.forge.sign_parts(&loose, payload),
                MALFORMED,
            );
            let padded = base64::engine::general_purpose::URL_SAFE.encode(&text);
            self.row(
                format!("padding in the header, {spaces}"),
                self.forge.sign_parts(&padded, payload),
                MALFORMED,
            );
        }
        let mut text = Value::Object(self.claims.clone()).to_string();
        while !text.len().is_multiple_of(3) {
            text.push(' ');
        }
        for spaces in 1..3 {
            text.push(' ');
            let loose = loose_bits(&URL_SAFE_NO_PAD.encode(&text));
            self.row(
                format!("loose bits in the payload, {spaces}"),
                self.forge.sign_parts(header, &loose),
                MALFORMED,
            );
            let padded = base64::engine::general_purpose::URL_SAFE.encode(&text);
            self.row(
                format!("padding in the payload, {spaces}"),
                self.forge.sign_parts(header, &padded),
                MALFORMED,
            );
        }
        let standard = with_one_more(text.trim_end(), r#""x":"~~~???>>>""#);
        let standard = (0..3).map(|spaces| {
            base64::engine::general_purpose::STANDARD_NO_PAD
                .encode(format!("{}{standard}", " ".repeat(spaces)))
        });
        let standard = standard.into_iter().find(|text| text.contains(['+', '/'])).unwrap();
        self.row("+ and / in the payload", self.forge.sign_parts(header, &standard), MALFORMED);
        self.row(
            "loose bits in the signature",
            format!("{header}.{payload}.{}", loose_bits(signature)),
            MALFORMED,
        );

        // The longest token allowed, and longer ones.
        let of_size = |size: usize| {
            let text = Value::Object(self.claims.clone()).to_string();
            (0..)
                .map(|spaces| {
                    self.forge.sign(
                        &own,
                        &format!("{text}{}", " ".repeat(size * 3 / 4 - good.len() + spaces)),
                    )
                })
                .find(|token| token.len() >= size)
                .unwrap()
        };
        let (largest, larger) = (of_size(8192), of_size(8193));
        assert!(largest.len() == 8192 && larger.len() > 8192);
        self.row("8192 bytes", largest, Active);
        self.row("a byte or two more", larger, MALFORMED);
        for size in [60_000, 64 << 10, 1 << 20, 5 << 20] {
            let verdict = if size < 64 << 10 { MALFORMED } else { TooLarge };
            self.row(format!("{size} bytes"), "x".repeat(size), verdict);
            self.row(format!("{size} brackets"), "[".repeat(size), verdict);
            self.row(
                format!("a payload of {size} bytes"),
                format!("{header}.{}.{signature}", "A".repeat(size)),
                verdict,
            );
            self.row(
                format!("a signature of {size} bytes"),
                format!("{header}.{payload}.{}", "A".repeat(size)),
                verdict,
            );
            self.row(format!("{size} dots"), ".".repeat(size), verdict);
        }
    }

    /// Adds tokens with a signature that the key did not make, or that is encoded in another way.
    #[allow(clippy::disallowed_methods)] // RSA-PSS needs a source of randomness.
    fn signatures(&mut self) {
        let bytes = URL_SAFE_NO_PAD.decode(parts(&self.good)[2]).unwrap();
        let length = bytes.len();
        let flipped = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            bytes
        };
        for (name, wrong) in [
            ("empty", vec![]),
            ("zeros, that is r = s = 0", vec![0; length]),
            ("ones", vec![0xff; length]),
            ("the number one", [vec![0; length - 1], vec![1]].concat()),
            ("a byte short", bytes[..length - 1].to_vec()),
            ("a byte short at the front", bytes[1..].to_vec()),
            ("a byte more", [&bytes[..], &[0]].concat()),
            ("a byte more at the front", [&[0], &bytes[..]].concat()),
            ("twice", [&bytes[..], &bytes].concat()),
            ("backwards", bytes.iter().rev().copied().collect()),
            ("halves swapped", [&bytes[length / 2..], &bytes[..length / 2]].concat()),
            ("first bit flipped", flipped(0)),
            ("last bit flipped", flipped(length - 1)),
        ] {
            self.signature(name, &wrong, BAD_SIGNATURE);
        }
        let other = self.forge.resign(&self.good, json!({ "sub": "mallory" }));
        let [header, payload, _] = parts(&other);
        let token = format!("{header}.{payload}.{}", parts(&self.good)[2]);
        self.row("the signature of another token", token, BAD_SIGNATURE);

        let (r, s) = bytes.split_at(length / 2);
        let message = self.good.rsplit_once('.').unwrap().0.to_owned();
        match &self.forge.ring.signing().unwrap().pair {
            SigningPair::Ed25519(_) => {
                // S + L encodes the same number modulo L; RFC 8032, section 5.1.7, demands S < L.
                let malleable = add_bytes(&reversed(s), &ORDER_25519);
                self.signature("S + L", &[r, &reversed(&malleable)].concat(), BAD_SIGNATURE);
                let zero_s = [r, &[0; 32]].concat();
                self.signature("S = 0", &zero_s, BAD_SIGNATURE);
                self.signature("S = L", &[r, &reversed(&ORDER_25519)].concat(), BAD_SIGNATURE);
                // If R is the identity and S is zero, the signature verifies for every message
                // under a key of small order.
                let neutral = [&[1][..], &[0; 63]].concat();
                self.signature("R of small order", &neutral, BAD_SIGNATURE);
            }
            SigningPair::P256(_) => {
                let zero = [0; 32];
                self.signature("r = 0", &[&zero, s].concat(), BAD_SIGNATURE);
                self.signature("s = 0", &[r, &zero].concat(), BAD_SIGNATURE);
                self.signature("s = n", &[r, &ORDER_P256].concat(), BAD_SIGNATURE);
                self.signature("r = n", &[&ORDER_P256, s].concat(), BAD_SIGNATURE);
                self.signature(
                    "r = s = 1",
                    &[&zero[1..], &[1], &zero[1..], &[1]].concat(),
                    BAD_SIGNATURE,
                );
                self.signature("DER", &der(r, s), BAD_SIGNATURE);
                let between = [r, &[0], s].concat();
                self.signature("a zero between r and s", &between, BAD_SIGNATURE);
                // Anybody who has an ECDSA signature can compute a second valid signature, and RFC
                // 7518 allows both. No revocation depends on the signature (see `revoke.rs`).
                self.signature("n - s", &[r, &subtract(&ORDER_P256, s)].concat(), Active);
            }
            SigningPair::Rsa(pair) => {
                let n =
                    URL_SAFE_NO_PAD.decode(public_key(self.forge)["n"].as_str().unwrap()).unwrap();
                self.signature("n", &n, BAD_SIGNATURE);
                self.signature(
                    "s + n",
                    &[&[1][..], &add_bytes(&bytes, &n)].concat()[1..],
                    BAD_SIGNATURE,
                );
                for (name, padding) in [
                    ("PSS", &signature::RSA_PSS_SHA256 as &'static dyn signature::RsaEncoding),
                    ("SHA-384", &signature::RSA_PKCS1_SHA384),
                    ("SHA-512", &signature::RSA_PKCS1_SHA512),
                ] {
                    let mut other = vec![0; length];
                    pair.sign(padding, &SystemRandom::new(), message.as_bytes(), &mut other)
                        .unwrap();
                    self.signature(name, &other, BAD_SIGNATURE);
                }
            }
        }
    }
}

/// The order L of the group of Ed25519 (RFC 8032, section 5.1), the highest byte first.
const ORDER_25519: [u8; 32] = [
    0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0xde, 0xf9, 0xde, 0xa2, 0xf7, 0x9c,
    0xd6, 0x58, 0x12, 0x63, 0x1a, 0x5c, 0xf5, 0xd3, 0xed,
];
/// The order n of the group of P-256 (FIPS 186), the highest byte first.
pub const ORDER_P256: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

/// Returns the sum of two numbers of the same length, without the last carry.
fn add_bytes(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let sum = a.iter().zip(b).rev().map(|(a, b)| {
        let sum = u16::from(*a) + u16::from(*b) + carry;
        carry = sum >> 8;
        u8::try_from(sum & 0xff).unwrap()
    });
    let mut sum: Vec<_> = sum.collect();
    sum.reverse();
    sum
}

/// Returns the difference of a number and a smaller one.
pub fn subtract(a: &[u8; 32], b: &[u8]) -> Vec<u8> {
    let complement: Vec<_> = b.iter().map(|byte| !byte).collect();
    let mut one = [0; 32];
    one[31] = 1;
    add_bytes(&add_bytes(a, &complement), &one)
}

/// Encodes the two numbers of a signature as DER.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let mut number = number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec();
        if number.first().is_some_and(|byte| *byte > 127) {
            number.insert(0, 0);
        }
        [&[2, u8::try_from(number.len()).unwrap()][..], &number].concat()
    };
    let body = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(body.len()).unwrap()][..], &body].concat()
}

/// Sets one of the unused bits of the last letter of a base64url text. These bits must be zero.
fn loose_bits(encoded: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    assert!(!encoded.len().is_multiple_of(4), "the last letter has unused bits");
    let (rest, last) = encoded.split_at(encoded.len() - 1);
    let index = ALPHABET.iter().position(|letter| *letter == last.as_bytes()[0]).unwrap();
    format!("{rest}{}", char::from(ALPHABET[index + 1]))
}

/// Adds a member to a JSON object, both as text.
fn with_one_more(object: &str, member: &str) -> String {
    format!("{},{member}}}", object.strip_suffix('}').unwrap())
}

/// Returns a JSON object in several encodings that are not valid UTF-8.
fn not_utf8(object: &str) -> Vec<(&'static str, Vec<u8>)> {
    let with = |bytes: &[u8]| {
        let text = with_one_more(object, "\"x\":\"?\"");
        let at = text.rfind('?').unwrap();
        [&text.as_bytes()[..at], bytes, &text.as_bytes()[at + 1..]].concat()
    };
    let utf16 = object.encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        ("bytes that no character has", with(&[0xff, 0xfe])),
        ("an overlong character", with(&[0xc0, 0xaf])),
        ("half a character", with(&[0xe2, 0x82])),
        ("a surrogate", with(&[0xed, 0xa0, 0x80])),
        ("UTF-16", utf16),
    ]
}

fn public_key(forge: &Forge) -> Value {
    let jwks: Value = serde_json::from_str(&forge.ring.jwks().json).unwrap();
    let kid = &forge.ring.signing().unwrap().kid;
    jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == **kid).unwrap().clone()
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Returns the verdict of a call, or the reason of its error.
fn outcome(answer: Result<&countersign::proto::ValidateResponse, &Status>) -> String {
    match answer {
        Ok(answer) if answer.active => "active".to_owned(),
        Ok(answer) => answer.inactive_reason().as_str_name().to_owned(),
        Err(status) => status
            .get_details_error_info()
            .map_or_else(|| format!("{:?}", status.code()), |info| info.reason),
    }
}

/// Sends a token to all calls that take one. Returns a line for each wrong answer.
async fn send(site: &Site, row: &Row) -> Vec<String> {
    let expected = match row.verdict {
        Active => "active".to_owned(),
        Inactive(reason) => reason.as_str_name().to_owned(),
        TooLarge => "INVALID_FIELD".to_owned(),
    };
    let mut wrong = vec![];
    let check = |wrong: &mut Vec<String>, call: &str, is: String, should_be: &str| {
        if is != should_be {
            wrong.push(format!("{}: {call}: {is}, not {should_be}", row.name));
        }
    };
    let mut client = site.client();
    let ask = ValidateRequest { access_token: row.token.clone(), ..Default::default() };
    // The second answer might come from the cache of verified tokens.
    for time in ["Validate", "Validate again"] {
        let answer = client.validate(ask.clone()).await;
        check(&mut wrong, time, outcome(answer.as_ref().map(tonic::Response::get_ref)), &expected);
    }
    if row.verdict != TooLarge {
        let answer = client.batch_validate(BatchValidateRequest { requests: vec![ask] }).await;
        check(
            &mut wrong,
            "BatchValidate",
            outcome(answer.as_ref().map(|answer| &answer.get_ref().responses[0])),
            &expected,
        );
    }
    let exchange = RefreshRequest { refresh_token: row.token.clone(), ..Default::default() };
    let done = |answer: Result<(), Status>| {
        answer.map_or_else(|status| outcome(Err(&status)), |()| "OK".to_owned())
    };
    let refreshed = done(client.refresh(exchange).await.map(|_| ()));
    let too_large = row.verdict == TooLarge;
    check(
        &mut wrong,
        "Refresh",
        refreshed,
        if too_large { &expected } else { "REFRESH_TOKEN_INVALID" },
    );
    // Revoke is not called with tokens that it would accept, that is with tokens that are active or
    // that only their times make inactive. Revoking them would end the session that the other rows
    // need.
    if wrong.is_empty() && !matches!(row.verdict, Active | Inactive(Expired | NotYetValid)) {
        let revoked = done(client.revoke(of_token(&row.token)).await.map(|_| ()));
        check(&mut wrong, "Revoke", revoked, if too_large { &expected } else { "INVALID_FIELD" });
    }
    wrong
}

/// Makes all rows under a key of this algorithm, and checks them.
async fn check_rows(algorithm: &str) {
    let (site, Keys { forge, token_of_deleted_key }) =
        Site::with_keys(&format!("[keys]\nalgorithm = '{algorithm}'")).await;
    let good = site.good().access;
    let mut table =
        Table { forge: &forge, claims: claims(&good), good, trap: site.trap(), rows: vec![] };
    assert_eq!(table.algorithm(), algorithm);
    table.row("signed again without a change", forge.resign(&table.good, json!({})), Active);
    table.algorithms();
    table.keys(&token_of_deleted_key);
    table.keys_that_are_brought_along();
    table.signatures();
    // The following tokens do not depend on the algorithm.
    if algorithm == "EdDSA" {
        table.headers();
        table.claims();
        table.forms();
        let refresh = site.good().refresh;
        table.row("a refresh token in capitals", refresh.to_uppercase(), MALFORMED);
        table.row("a refresh token without its first letter", &refresh[1..], MALFORMED);
        table.row("a refresh token of zeros", format!("cs_rt_{}", "A".repeat(103)), WRONG_TYPE);
        table.row("the prefix of a refresh token alone", "cs_rt_", WRONG_TYPE);
    }
    let mut wrong = vec![];
    for row in &table.rows {
        wrong.extend(site.survives(&row.name, &[&row.token], send(&site, row)).await);
    }
    // A good refresh token is not an access token.
    let refresh = site.good().refresh;
    let ask = ValidateRequest { access_token: refresh, ..Default::default() };
    assert_eq!(
        site.client().validate(ask).await.unwrap().into_inner().inactive_reason(),
        WrongType
    );
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        table.rows.len(),
        wrong.join("\n")
    );
    if site.is_on_sqlite() {
        vectors::settle(&file_of(algorithm), &vectors_of(&site, &table).await);
    }
    site.finish().await;
}

/// Returns the name of the file with the vectors for an algorithm.
fn file_of(algorithm: &str) -> String {
    format!("tokens-{}.json", algorithm.to_lowercase())
}

/// Returns the rows as vectors for client libraries.
async fn vectors_of(site: &Site, table: &Table<'_>) -> Value {
    let mut all = vec![];
    let mut checked_at = 0;
    for row in table.rows.iter().filter(|row| row.token.len() <= LONGEST_VECTOR) {
        let mut vector = Map::new();
        vector.insert("name".to_owned(), row.name.clone().into());
        vector.insert("token".to_owned(), row.token.clone().into());
        let request = ValidateRequest {
            access_token: row.token.clone(),
            view: ValidateView::Full.into(),
            ..Default::default()
        };
        // The service refuses a request without a token, which a library must refuse as malformed.
        let empty = ValidateResponse { inactive_reason: Malformed.into(), ..Default::default() };
        let answer = site.client().validate(request).await.map(tonic::Response::into_inner);
        let answer = if row.token.is_empty() { empty } else { answer.unwrap() };
        checked_at = answer.checked_at.map_or(checked_at, |at| at.seconds);
        vectors::add_answer(&mut vector, &answer);
        all.push(Value::Object(vector));
    }
    let jwks: Value = serde_json::from_str(&table.forge.ring.jwks().json).unwrap();
    vectors::tokens(checked_at, &jwks, all)
}

pub async fn altered_tokens_are_refused_under_an_eddsa_key() {
    check_rows("EdDSA").await;
}

pub async fn altered_tokens_are_refused_under_an_es256_key() {
    check_rows("ES256").await;
}

pub async fn altered_tokens_are_refused_under_an_rs256_key() {
    check_rows("RS256").await;
}
