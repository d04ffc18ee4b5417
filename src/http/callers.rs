//! Authenticates callers over HTTP by `Basic` (RFC 6749, section 2.3.1), by `Bearer`, by a header
//! of this service, or by a client certificate.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{AUTHORIZATION, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::{
    authority::audit::Audit,
    callers::{Callers, Credentials, Refusal, meter::CallPermit},
    domain::{call_id::CallId, caller::Actor, permission::Operation},
    gateway::bearer::{bearer_token, token68},
    net::connection::Peer,
};

/// The header with the API key of a gateway. The header `authorization` cannot hold this key,
/// because it holds the token of the request that the gateway asks about.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("x-countersign-key");

/// Authenticates callers, and admits them within their rights and limits.
#[derive(Clone, Debug)]
pub struct HttpAuthenticator {
    /// The known callers.
    pub callers: Arc<Callers>,
    /// The audit, which records denied calls.
    pub audit: Audit,
    /// True if nobody on the network can read what is sent to this port, so that keys and tokens
    /// may be sent to it.
    pub is_private: bool,
}

/// The reason for which a call is not admitted.
#[derive(Debug)]
pub enum NotAdmitted {
    /// The caller is unknown or lacks the permission, or a limit is reached.
    Refused(Refusal),
    /// The port is not private, so no call that needs credentials is admitted.
    NotPrivate,
}

/// The credentials in the headers of a request.
#[derive(Default)]
pub struct HeaderCredentials {
    key: Option<String>,
    name: Option<String>,
}

impl HeaderCredentials {
    /// Reads the key in [`KEY_HEADER`].
    pub fn in_own_header(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let key = values.next().map(|value| value.to_str().unwrap_or_default().trim().to_owned());
        // Of two keys neither is used. The empty key belongs to no caller.
        Self { key: if values.next().is_some() { Some(String::new()) } else { key }, name: None }
    }

    /// Reads the key in `authorization`. If the header holds anything else or is repeated, the key
    /// is empty, and no caller has an empty key, so the call is refused. If there were no key
    /// instead, the call could be admitted by its certificate in spite of the wrong header.
    pub fn in_authorization(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(first) = values.next() else { return Self::default() };
        let first = first.as_bytes();
        let credentials = match (values.next(), bearer_token(first)) {
            (Some(_), _) => None,
            (None, Some(key)) => Some(Self { key: Some(key.to_owned()), name: None }),
            (None, None) => {
                basic(first).map(|(name, key)| Self { key: Some(key), name: Some(name) })
            }
        };
        credentials.unwrap_or(Self { key: Some(String::new()), name: None })
    }
}

/// Reads the caller's name and key from a `Basic` header (RFC 7617, section 2).
fn basic(value: &[u8]) -> Option<(String, String)> {
    let (scheme, rest) = value.split_at_checked(b"basic".len())?;
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    // The decoder requires padding, and that unused bits are zero, so that each pair of a name and
    // a key has exactly one encoding.
    let decoded = STANDARD.decode(token68(rest)?).ok()?;
    let (name, key) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((form_decoded(name)?, form_decoded(key)?))
}

/// Decodes a name or a key. The client encodes each like a form value before it joins the two
/// (RFC 6749, section 2.3.1 and appendix B). Text that is not encoded in this way is refused,
/// because a lenient decoder would find a key in text that holds something else besides the key.
fn form_decoded(text: &str) -> Option<String> {
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
            (byte, after) if byte.is_ascii_alphanumeric() || b"*-._+".contains(byte) => after,
            _ => return None,
        };
    }
    let with_spaces = text.replace('+', " ");
    percent_decode_str(&with_spaces).decode_utf8().ok().map(Cow::into_owned)
}

impl HttpAuthenticator {
    /// Admits a call, or returns the reason for which it is not admitted.
    pub fn admit(
        &self,
        credentials: &HeaderCredentials,
        peer: &Peer,
        call: Option<CallId>,
        operation: Operation,
    ) -> Result<(Actor, CallPermit), NotAdmitted> {
        if !self.is_private {
            return Err(NotAdmitted::NotPrivate);
        }
        let credentials = Credentials {
            api_key: credentials.key.as_deref(),
            certificate_names: &peer.certificate_names,
            name: credentials.name.as_deref(),
        };
        let (caller, permit) = self.callers.admit(credentials, operation).map_err(|refusal| {
            if let Some(who) = refusal.denied_caller() {
                self.audit.denied(who, peer.address, call.clone(), operation.as_str());
            }
            NotAdmitted::Refused(refusal)
        })?;
        Ok((Actor { caller, peer: peer.address, call }, permit))
    }
}

impl NotAdmitted {
    /// Returns the reason as an OAuth error (RFC 6749, section 5.2): a status, a code and a
    /// description.
    pub fn oauth_error(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::Refused(Refusal::Unknown) => (
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "the caller is not known: its API key or certificate is missing or wrong"
                    .to_owned(),
            ),
            Self::Refused(Refusal::NotAllowed { caller, operation }) => {
                (StatusCode::FORBIDDEN, "unauthorized_client", caller.why_not(*operation))
            }
            Self::Refused(Refusal::OverLimit { .. }) => (
                StatusCode::TOO_MANY_REQUESTS,
                "temporarily_unavailable",
                "the caller has too many calls under way, or began too many recently".to_owned(),
            ),
            Self::Refused(Refusal::Overloaded { .. }) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "the service is overloaded: try again later".to_owned(),
            ),
            Self::NotPrivate => (
                StatusCode::FORBIDDEN,
                "access_denied",
                "this port is not encrypted and can be reached from other machines: set tls.http, \
                 or ask on 127.0.0.1"
                    .to_owned(),
            ),
        }
    }

    /// Returns the time after which the caller may try again, or `None` if that would not help.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Refused(Refusal::OverLimit { wait } | Refusal::Overloaded { wait }) => {
                Some(*wait)
            }
            Self::Refused(Refusal::Unknown | Refusal::NotAllowed { .. }) | Self::NotPrivate => None,
        }
    }
}

/// Makes an error response in JSON (RFC 6749, section 5.2). The header `Retry-After` holds `wait`.
pub fn error(
    status: StatusCode,
    code: &str,
    description: &str,
    wait: Option<Duration>,
) -> Response {
    let body = json!({ "error": code, "error_description": description }).to_string();
    let mut response = (status, super::NO_STORE, super::JSON, body).into_response();
    if let Some(wait) = wait {
        // `Retry-After` is in whole seconds (RFC 9110, section 10.2.3).
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        if let Ok(seconds) = format!("{seconds:.0}").parse() {
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(values: &[&str]) -> (Option<String>, Option<String>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        let HeaderCredentials { key, name } = HeaderCredentials::in_authorization(&headers);
        (key, name)
    }

    #[test]
    fn a_key_is_read_from_basic_with_the_callers_name_or_from_bearer() {
        let some = |text: &str| Some(text.to_owned());
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(credentials(&[]), (None, None));
        assert_eq!(credentials(&["Bearer cs_ck_1"]), (some("cs_ck_1"), None));
        assert_eq!(credentials(&[&basic("login:cs_ck_1")]), (some("cs_ck_1"), some("login")));
        assert_eq!(credentials(&[&basic("a%2Eb:cs%5Fck_1")]), (some("cs_ck_1"), some("a.b")));
        assert_eq!(credentials(&[&basic("login:")]), (some(""), some("login")));
        assert_eq!(
            credentials(&[&basic("a+%2B%C3%A4:%63s_ck_1")]),
            (some("cs_ck_1"), some("a +\u{e4}"))
        );
        let wrong = ["Basic", "Basic !", &basic("login"), "Digest x", "cs_ck_1", ""];
        let not_bearer = ["Bearer", "Bearer cs_ck_1 x"];
        let pairs = [
            "login:cs_ck_1=junk",
            "login:cs_ck_1&a=b",
            "login:&&cs_ck_1",
            "login:cs_ck_1&",
            "login:=cs_ck_1",
            "login:cs_ck_1=",
            "login:cs_ck_1:",
            "login:cs ck",
            "login:cs_ck_1%",
            "login:cs_ck_1%4",
            "login:cs_ck_1%zz",
            "login:%ff",
            "login:\u{e4}",
            "login&a:cs_ck_1",
            "&login:cs_ck_1",
            "login=x:cs_ck_1",
            "log in:cs_ck_1",
            "login:cs_ck_1\n",
            "login:cs_ck_1\0",
        ];
        let pairs = pairs.map(basic);
        let padded = STANDARD.encode("login:cs_ck_1");
        let unpadded = padded.trim_end_matches('=');
        // The last character has unused bits. In this encoding some of them are set.
        let with_bits = format!("{}R==", unpadded.strip_suffix('Q').unwrap());
        let encodings = [
            format!("Basic {unpadded}"),
            format!("Basic {padded}="),
            format!("Basic {with_bits}"),
            format!("Basic {padded} x"),
            format!("Basic {padded},"),
            format!("Basic\t{padded}"),
            format!("Basic{padded}"),
            format!("Basic {}", &padded[1..]),
        ];
        let encoded = encodings.iter().chain(&pairs).map(String::as_str);
        for value in wrong.into_iter().chain(not_bearer).chain(encoded) {
            assert_eq!(credentials(&[value]), (some(""), None), "{value}");
        }
        for twice in [
            ["Bearer cs_ck_1", "Bearer cs_ck_1"],
            [basic("login:cs_ck_1").as_str(), "Bearer cs_ck_1"],
        ] {
            assert_eq!(credentials(&twice), (some(""), None));
        }
    }
}
