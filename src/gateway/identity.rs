//! Makes the headers that tell the application behind a gateway who sends a request. Each header
//! holds a claim of the token.
//!
//! The text of a claim may have been chosen by a user, and must not break the header. Therefore a
//! text is percent-encoded (RFC 3986, section 2.1), except for visible ASCII characters other than
//! `%`, and for spaces, unless the text begins or ends with one. The members of a list of texts are
//! encoded one by one and separated by spaces. Numbers and booleans are written as in JSON. Any
//! other value is written as JSON and then encoded like a text. A header that is longer than
//! allowed is not truncated; instead the request does not pass.

use std::borrow::Cow;

use crate::domain::claims::{AMR_VERIFIED_AT, AccessClaims};
use http::{
    HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value};

/// The ASCII characters that are encoded in a text.
const IN_TEXT: &AsciiSet = &CONTROLS.add(b'%');
/// The ASCII characters that are encoded where a space would be lost or be read as a separator.
const IN_LIST: &AsciiSet = &IN_TEXT.add(b' ');

/// The headers that belong to the request itself and therefore cannot carry a claim.
const NOT_OURS: [HeaderName; 11] = [
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    EXPECT,
    HOST,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers that are sent if nothing else is configured, each with the name of its claim.
pub const DEFAULT: [(&str, &str); 5] = [
    ("X-Auth-Subject", "sub"),
    ("X-Auth-Session-Id", "sid"),
    ("X-Auth-Tenant", "tenant"),
    ("X-Auth-Client-Id", "client_id"),
    ("X-Auth-Scope", "scope"),
];

/// The configured headers, each with the name of its claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityHeaders(Vec<(HeaderName, String)>);

/// The error of a header that would be longer than allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {header} would have {bytes} bytes, gateway.max_header_bytes allows {limit}")]
pub struct HeaderTooLong {
    /// The header.
    pub header: HeaderName,
    /// The length that it would have.
    pub bytes: usize,
    /// The length that is allowed.
    pub limit: usize,
}

impl IdentityHeaders {
    /// Checks pairs of a header and the name of its claim. If a pair is invalid, the error says
    /// why.
    pub fn new<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut checked: Vec<(HeaderName, String)> = vec![];
        for (name, claim) in headers {
            let header = HeaderName::try_from(name)
                .map_err(|_| format!("{name:?} is not the name of a header"))?;
            // CGI and its successors treat an underscore in a header name as a hyphen. A client
            // could send the same name with a hyphen: the gateway would not remove that header, and
            // the application would mistake it for the configured one.
            if name.contains('_') {
                return Err(format!(
                    "{name:?} must not have underscores: many applications treat them as hyphens"
                ));
            }
            if NOT_OURS.contains(&header) {
                return Err(format!(
                    "{name:?} is a header of the request itself and cannot carry a claim"
                ));
            }
            if checked.iter().any(|(known, _)| *known == header) {
                return Err(format!("{name:?} is there twice"));
            }
            if claim.is_empty() {
                return Err(format!("{name:?} needs the name of a claim"));
            }
            checked.push((header, claim.to_owned()));
        }
        Ok(Self(checked))
    }

    /// Returns the names of the headers.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// Returns the value that each header has for a token. The value is `None` if the token has no
    /// such claim, or if the claim is empty. Fails if a value has more than `limit` bytes.
    pub fn of(
        &self,
        claims: &AccessClaims,
        limit: usize,
    ) -> Result<Vec<(&HeaderName, Option<HeaderValue>)>, HeaderTooLong> {
        let values = self.0.iter().map(|(header, claim)| {
            let text = claim_text(claims, claim).filter(|text| !text.is_empty());
            let too_long = |bytes| HeaderTooLong { header: header.clone(), bytes, limit };
            let value = text.map(|text| match text.len() {
                // This does not fail, because encoded text is always a valid value.
                bytes if bytes <= limit => {
                    HeaderValue::from_str(&text).map_err(|_| too_long(bytes))
                }
                bytes => Err(too_long(bytes)),
            });
            Ok((header, value.transpose()?))
        });
        values.collect()
    }
}

/// Returns the encoded text of a claim of a token.
fn claim_text<'a>(claims: &'a AccessClaims, claim: &str) -> Option<Cow<'a, str>> {
    Some(match claim {
        "iss" => text(&claims.issuer),
        "sub" => text(&claims.subject),
        "tenant" => text(&claims.tenant),
        "client_id" => text(&claims.client_id),
        "acr" => text(&claims.acr),
        "sid" => claims.session_id.to_string().into(),
        "jti" => claims.token_id.to_string().into(),
        "aud" => list(claims.audience.iter().map(String::as_str)),
        "scope" => list(claims.scopes.iter().map(String::as_str)),
        "amr" => list(claims.amr.iter().map(String::as_str)),
        "iat" => claims.issued_at.seconds().to_string().into(),
        "exp" => claims.expires_at.seconds().to_string().into(),
        "nbf" => claims.not_before?.seconds().to_string().into(),
        "auth_time" => claims.authenticated_at.seconds().to_string().into(),
        AMR_VERIFIED_AT => verified_at(claims)?,
        custom => custom_claim_text(claims.custom.get(custom)?.get())?,
    })
}

/// Returns the times at which methods were verified, as JSON.
fn verified_at(claims: &AccessClaims) -> Option<Cow<'_, str>> {
    let times = claims.amr_verified_at.iter();
    let times: Map<String, Value> =
        times.map(|(method, at)| (method.clone(), at.seconds().into())).collect();
    (!times.is_empty()).then(|| text(&Value::Object(times).to_string()).into_owned().into())
}

/// Returns the encoded text of a custom claim of the session, which is given as JSON.
fn custom_claim_text(json: &str) -> Option<Cow<'_, str>> {
    if json == "null" {
        return None;
    }
    if let Ok(value) = serde_json::from_str::<String>(json) {
        return Some(text(&value).into_owned().into());
    }
    if let Ok(values) = serde_json::from_str::<Vec<String>>(json) {
        return Some(list(values.iter().map(String::as_str)).into_owned().into());
    }
    // All other types are written as in JSON.
    Some(text(json))
}

fn text(value: &str) -> Cow<'_, str> {
    // Spaces at the ends of a header value would be removed (RFC 9110, section 5.5).
    let set = if value.starts_with(' ') || value.ends_with(' ') { IN_LIST } else { IN_TEXT };
    utf8_percent_encode(value, set).into()
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> Cow<'a, str> {
    let mut encoded = String::new();
    for (index, value) in values.enumerate() {
        if index > 0 {
            encoded.push(' ');
        }
        encoded.extend(utf8_percent_encode(value, IN_LIST));
    }
    encoded.into()
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::{
        ids::{SessionId, TokenId},
        time::Timestamp,
    };

    const LIMIT: usize = 64;

    fn claims(custom: Value) -> AccessClaims {
        let custom = custom.as_object().unwrap().into();
        AccessClaims {
            issuer: "https://auth.test".to_owned(),
            session_id: SessionId::from_bytes([1; 16]),
            token_id: TokenId::from_bytes([2; 16]),
            authentication_id: None,
            subject: "alice".to_owned(),
            tenant: String::new(),
            client_id: "web".to_owned(),
            audience: vec!["https://api.test".to_owned(), "a b".to_owned()],
            scopes: vec!["read".to_owned(), "write".to_owned()],
            issued_at: Timestamp::from_seconds(1_000),
            expires_at: Timestamp::from_seconds(1_600),
            not_before: None,
            authenticated_at: Timestamp::from_seconds(900),
            acr: String::new(),
            amr: vec!["pwd".to_owned()],
            amr_verified_at: vec![("pwd".to_owned(), Timestamp::from_seconds(880))],
            custom,
        }
    }

    fn header(claim: &str, custom: Value) -> Result<Option<String>, HeaderTooLong> {
        let headers = IdentityHeaders::new([("x-it", claim)]).unwrap();
        let sent = headers.of(&claims(custom), LIMIT)?.remove(0).1;
        Ok(sent.map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn every_type_of_claim_is_converted_to_its_header_value() {
        let custom = json!({
            "text": "plain text", "number": 1.5, "yes": true, "list": ["a", "b c", "ü"],
            "mixed": [1, "a b"],
            "object": { "a": 1 }, "nothing": null, "empty": "", "none": []
        });
        for (claim, sent) in [
            ("sub", Some("alice")),
            ("iss", Some("https://auth.test")),
            ("tenant", None),
            ("client_id", Some("web")),
            ("scope", Some("read write")),
            ("aud", Some("https://api.test a%20b")),
            ("amr", Some("pwd")),
            ("acr", None),
            ("iat", Some("1000")),
            ("exp", Some("1600")),
            ("nbf", None),
            ("auth_time", Some("900")),
            (AMR_VERIFIED_AT, Some("{\"pwd\":880}")),
            ("text", Some("plain text")),
            ("number", Some("1.5")),
            ("yes", Some("true")),
            ("list", Some("a b%20c %C3%BC")),
            ("mixed", Some("[1,\"a b\"]")),
            ("object", Some("{\"a\":1}")),
            ("nothing", None),
            ("empty", None),
            ("none", None),
            ("absent", None),
        ] {
            assert_eq!(header(claim, custom.clone()).unwrap().as_deref(), sent, "{claim}");
        }
        assert_eq!(header("sid", json!({})), Ok(Some(SessionId::from_bytes([1; 16]).to_string())));
        assert_eq!(header("jti", json!({})), Ok(Some(TokenId::from_bytes([2; 16]).to_string())));
    }

    #[test]
    fn a_header_that_would_be_too_long_is_an_error() {
        assert!(header("text", json!({ "text": "x".repeat(LIMIT) })).is_ok());
        let sent = header("text", json!({ "text": "x".repeat(LIMIT + 1) }));
        assert_eq!(sent.unwrap_err().bytes, LIMIT + 1);
        assert!(
            header("text", json!({ "text": "ü".repeat(LIMIT / 6 + 1) })).is_err(),
            "the limit applies to the encoded text"
        );
    }

    #[test]
    fn headers_of_the_request_and_invalid_names_are_refused() {
        for name in
            ["authorization", "Cookie", "HOST", "transfer-encoding", "x_auth", "x auth", "", "ü"]
        {
            assert!(IdentityHeaders::new([(name, "sub")]).is_err(), "{name:?}");
        }
        assert!(IdentityHeaders::new([("x-a", "sub"), ("X-A", "sid")]).is_err());
        assert!(IdentityHeaders::new([("x-a", "")]).is_err());
        assert!(IdentityHeaders::new(DEFAULT).is_ok());
    }

    proptest! {
        #[test]
        fn no_claim_breaks_a_header_and_each_can_be_read_back(value in "(?s).{0,20}") {
            let headers = IdentityHeaders::new([("x-it", "text")]).unwrap();
            let claims = claims(json!({ "text": value }));
            let sent = headers.of(&claims, 1 << 12).unwrap().remove(0).1;
            let sent = sent.as_ref().map(|sent| sent.to_str().unwrap()).unwrap_or_default();
            prop_assert!(sent.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            prop_assert_eq!(sent.trim(), sent);
            prop_assert_eq!(percent_decode_str(sent).decode_utf8().unwrap(), value);
        }
    }
}
