//! Fingerprints of requests. They show whether a repeated request id belongs to the same request.

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    new_authentication::{NamedSession, NewAuthentication},
    new_session::NewSession,
};
use crate::domain::{
    factors::FactorTimes,
    ids::SessionId,
    session::{Device, RequestFingerprint},
    text::{CallerName, DeviceId, Subject},
};

/// A label for domain separation. Each encoding begins with the label of its kind of request, so
/// that no other use of SHA-256 hashes the same bytes.
const CREATE_SESSION: &str = "countersign create-session request 1";

/// The label of requests to Reauthenticate.
const REAUTHENTICATE: &str = "countersign reauthenticate request 1";

/// The label of imported sessions.
const IMPORT: &str = "countersign import 1";

/// Computes the fingerprint of an imported session of a subject. A repeated import may give newer
/// data, or come from another caller; the session is the same as long as its identifier in the
/// other system and its subject are the same. Every version must compute the same fingerprint, as
/// with [`fingerprint`].
pub(super) fn of_import(subject: &Subject) -> RequestFingerprint {
    let mut encoding = Encoding::default();
    [IMPORT, subject].into_iter().for_each(|text| encoding.text(text));
    hash(&encoding.0)
}

/// Computes the fingerprint of a caller's request for a session.
///
/// The fingerprint is kept with the session, so every version must compute the same one for the
/// same request. If a field is added to the request later, the encoding must leave the field out
/// while it has its default value.
pub(super) fn fingerprint(caller: &CallerName, request: &NewSession) -> RequestFingerprint {
    hash(&encode(caller, request))
}

/// Computes the fingerprint of a caller's request to reauthenticate a session. Every version must
/// compute the same one, as with [`fingerprint`].
pub(super) fn of_reauthentication(
    caller: &CallerName,
    session_id: SessionId,
    request: &NewAuthentication,
) -> RequestFingerprint {
    // The pattern has no `..`, so that the compiler reports a field that is added later.
    let NewAuthentication {
        session,
        acr,
        amr,
        amr_verified_at,
        authenticated_at,
        claims,
        scopes,
        device,
        allow_weaker,
        request_id,
    } = request;
    let mut encoding = Encoding::default();
    [REAUTHENTICATE, caller].into_iter().for_each(|text| encoding.text(text));
    encoding.text(&session_id.to_string());
    encoding.list(
        match session {
            NamedSession::Id(_) => [].iter(),
            NamedSession::RefreshToken(token) => std::slice::from_ref(token).iter(),
        }
        .map(String::as_str),
    );
    encoding.text(acr);
    encoding.list(amr.iter().map(|method| &**method));
    encoding.number(authenticated_at.map(|at| at.micros().into()));
    encoding.list(claims.iter().map(|claims| claims.object().as_str()));
    encoding.list(scopes.iter().map(|scope| &**scope));
    encoding.count(usize::from(device.is_some()));
    let mut device_id = None;
    if let Some(Device { user_agent, ip_address, label, id }) = device {
        let device: [&str; 3] = [user_agent, ip_address, label];
        device.into_iter().for_each(|text| encoding.text(text));
        device_id = Some(id);
    }
    encoding.count(usize::from(*allow_weaker));
    encoding.list(request_id.iter().map(|id| &**id));
    encoding.later_fields(device_id, amr_verified_at);
    hash(&encoding.0)
}

fn hash(encoding: &[u8]) -> RequestFingerprint {
    let mut fingerprint = RequestFingerprint([0; 32]);
    // A SHA-256 digest has 32 bytes, so both slices have the same length.
    fingerprint.0.copy_from_slice(digest(&SHA256, encoding).as_ref());
    fingerprint
}

/// Encodes a caller's request, field by field. The request has been parsed, but it has no defaults
/// from the configuration yet. Different requests have different encodings, because each text
/// begins with its length and each list with its count.
fn encode(caller: &CallerName, request: &NewSession) -> Vec<u8> {
    // The pattern has no `..`, so that the compiler reports a field that is added later.
    let NewSession {
        subject,
        tenant,
        client_id,
        audience,
        scopes,
        claims,
        acr,
        amr,
        amr_verified_at,
        authenticated_at,
        device: Device { user_agent, ip_address, label, id: device_id },
        policy,
        access_token_ttl,
        max_lifetime,
        metadata,
        request_id,
    } = request;
    let mut encoding = Encoding::default();
    let whom: [&str; 5] = [CREATE_SESSION, caller, subject, tenant, client_id];
    whom.into_iter().for_each(|text| encoding.text(text));
    encoding.list(audience.iter().map(|audience| &**audience));
    encoding.list(scopes.iter().map(|scope| &**scope));
    // `to_json` sorts the names of each object.
    encoding.text(&claims.to_json());
    encoding.text(acr);
    encoding.list(amr.iter().map(|method| &**method));
    encoding.number(authenticated_at.map(|at| at.micros().into()));
    let device: [&str; 3] = [user_agent, ip_address, label];
    device.into_iter().for_each(|text| encoding.text(text));
    encoding.list(policy.iter().map(|name| &**name));
    for span in [access_token_ttl, max_lifetime] {
        encoding.number(span.map(|span| i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)));
    }
    encoding.list(request_id.iter().map(|id| &**id));
    if !metadata.object().is_empty() {
        encoding.text(&metadata.to_json());
    }
    encoding.later_fields(Some(device_id), amr_verified_at);
    encoding.0
}

/// Encoded values that can be decoded unambiguously.
#[derive(Default)]
struct Encoding(Vec<u8>);

impl Encoding {
    fn count(&mut self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.extend_from_slice(&count.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends a list of texts. An optional text is a list with at most one element.
    fn list<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) {
        self.count(texts.len());
        texts.for_each(|text| self.text(text));
    }

    /// Appends the fields that requests did not have at first, each after its name. The name tells
    /// them apart, also from metadata, whose JSON begins with a brace. A field that is empty is left
    /// out.
    fn later_fields(&mut self, device_id: Option<&DeviceId>, amr_verified_at: &FactorTimes) {
        if let Some(id) = device_id.filter(|id| !id.is_empty()) {
            self.text("device.device_id");
            self.text(id);
        }
        if !amr_verified_at.is_empty() {
            self.text("amr_verified_at");
            self.count(amr_verified_at.iter().len());
            for (method, at) in amr_verified_at.iter() {
                self.text(method);
                self.number(Some(at.micros().into()));
            }
        }
    }

    fn number(&mut self, number: Option<i128>) {
        self.count(usize::from(number.is_some()));
        if let Some(number) = number {
            self.0.extend_from_slice(&number.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, option, prelude::*};
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{claims::CustomClaims, metadata::Metadata, time::Timestamp};

    fn text<T: TryFrom<String, Error: std::fmt::Debug>>(text: impl Into<String>) -> T {
        T::try_from(text.into()).unwrap()
    }

    fn texts<T: TryFrom<String, Error: std::fmt::Debug>>(items: Vec<String>) -> Vec<T> {
        items.into_iter().map(text).collect()
    }

    fn claims(value: Value) -> CustomClaims {
        let Value::Object(map) = value else { panic!("an object") };
        CustomClaims::try_from(map).unwrap()
    }

    fn times(times: &[(&str, i64)]) -> FactorTimes {
        let amr = texts(times.iter().map(|(name, _)| (*name).to_owned()).collect());
        let times =
            times.iter().map(|(name, at)| ((*name).to_owned(), Timestamp::from_micros(*at)));
        FactorTimes::new(times, &amr).unwrap()
    }

    fn metadata(value: Value) -> Metadata {
        let Value::Object(map) = value else { panic!("an object") };
        Metadata::try_from(map).unwrap()
    }

    fn least() -> NewSession {
        NewSession {
            subject: text("alice"),
            tenant: text(""),
            client_id: text(""),
            audience: vec![],
            scopes: vec![],
            claims: CustomClaims::default(),
            metadata: Metadata::default(),
            acr: text(""),
            amr: vec![],
            amr_verified_at: FactorTimes::default(),
            authenticated_at: None,
            device: Device::default(),
            policy: None,
            access_token_ttl: None,
            max_lifetime: None,
            request_id: Some(text("once")),
        }
    }

    fn full() -> NewSession {
        NewSession {
            subject: text("zoë"),
            tenant: text("acme"),
            client_id: text("app"),
            audience: texts(vec!["orders".to_owned(), "stock".to_owned()]),
            scopes: texts(vec!["read".to_owned(), "write".to_owned()]),
            claims: claims(json!({ "b": [1, 0.5, null], "a": { "y": true, "x": "é" } })),
            metadata: Metadata::default(),
            acr: text("gold"),
            amr: texts(vec!["pwd".to_owned(), "otp".to_owned()]),
            amr_verified_at: FactorTimes::default(),
            authenticated_at: Some(Timestamp::from_micros(1_700_000_000_123_456)),
            device: Device {
                user_agent: text("Mozilla/5.0"),
                ip_address: text("192.0.2.7"),
                label: text("laptop"),
                id: text(""),
            },
            policy: Some(text("kiosk")),
            access_token_ttl: Some(Duration::from_secs(60)),
            max_lifetime: Some(Duration::from_secs(3600)),
            request_id: Some(text("once")),
        }
    }

    fn hex(request: &NewSession) -> String {
        let RequestFingerprint(digest) = fingerprint(&text("login"), request);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Sessions store fingerprints, and later versions compare their own fingerprints with the
    /// stored ones.
    #[test]
    fn a_request_has_the_same_fingerprint_in_every_version() {
        assert_eq!(
            hex(&least()),
            "dcd87f1703ed22a716b44a28feb4fcf671f36636f2dba4474d3507c2b650a55d"
        );
        assert_eq!(
            hex(&full()),
            "9fa6341dadbc518ad423117ac55e44053a87050fc5388096126510aebd989ee8"
        );
    }

    #[test]
    fn the_order_of_names_in_claims_does_not_matter() {
        let ordered = |json: &str| NewSession {
            claims: claims(serde_json::from_str(json).unwrap()),
            ..least()
        };
        let [one, other] =
            [r#"{"a":1,"b":{"c":2,"d":3}}"#, r#"{"b":{"d":3,"c":2},"a":1}"#].map(ordered);
        assert_eq!(hex(&one), hex(&other));
    }

    #[test]
    fn each_field_and_the_caller_change_the_fingerprint() {
        type Change = (&'static str, fn(&mut NewSession));
        let changes: [Change; 25] = [
            ("subject", |new| new.subject = text("bob")),
            ("tenant", |new| new.tenant = text("other")),
            ("client_id", |new| new.client_id = text("")),
            ("audience", |new| new.audience.truncate(1)),
            ("order of audience", |new| new.audience.reverse()),
            ("scopes", |new| new.scopes.truncate(1)),
            ("order of scopes", |new| new.scopes.reverse()),
            ("claims", |new| {
                new.claims = claims(json!({ "b": [1, 0.5, null], "a": { "y": true, "x": "e" } }))
            }),
            ("metadata", |new| new.metadata = metadata(json!({ "a": 1 }))),
            ("acr", |new| new.acr = text("silver")),
            ("amr", |new| new.amr.clear()),
            ("authenticated_at", |new| new.authenticated_at = None),
            ("device.user_agent", |new| new.device.user_agent = text("")),
            ("device.ip_address", |new| new.device.ip_address = text("192.0.2.8")),
            ("device.label", |new| new.device.label = text("phone")),
            ("device.device_id", |new| new.device.id = text("7")),
            ("amr_verified_at", |new| new.amr_verified_at = times(&[("pwd", 7)])),
            ("another time", |new| new.amr_verified_at = times(&[("pwd", 8)])),
            ("another method", |new| new.amr_verified_at = times(&[("otp", 7)])),
            ("two methods", |new| new.amr_verified_at = times(&[("otp", 7), ("pwd", 7)])),
            ("policy", |new| new.policy = None),
            ("access_token_ttl", |new| new.access_token_ttl = Some(Duration::from_secs(61))),
            ("max_lifetime", |new| new.max_lifetime = None),
            ("swapped spans", |new| {
                std::mem::swap(&mut new.access_token_ttl, &mut new.max_lifetime)
            }),
            ("request_id", |new| new.request_id = Some(text("twice"))),
        ];
        for (what, change) in changes {
            let mut other = full();
            change(&mut other);
            assert_ne!(hex(&other), hex(&full()), "{what}");
        }
        assert_ne!(fingerprint(&text("login"), &full()), fingerprint(&text("other"), &full()));
    }

    fn reauthentication() -> NewAuthentication {
        NewAuthentication {
            session: NamedSession::RefreshToken("token".to_owned()),
            acr: text("gold"),
            amr: texts(vec!["pwd".to_owned(), "otp".to_owned()]),
            amr_verified_at: FactorTimes::default(),
            authenticated_at: Some(Timestamp::from_micros(1_700_000_000_123_456)),
            claims: Some(claims(json!({ "a": 1 }))),
            scopes: texts(vec!["read".to_owned(), "write".to_owned()]),
            device: Some(Device { label: text("laptop"), ..Device::default() }),
            allow_weaker: true,
            request_id: Some(text("once")),
        }
    }

    #[test]
    fn each_field_of_a_reauthentication_its_session_and_caller_change_the_fingerprint() {
        type Change = (&'static str, fn(&mut NewAuthentication));
        let changes: [Change; 15] = [
            ("token", |new| new.session = NamedSession::RefreshToken("other".to_owned())),
            ("no token", |new| new.session = NamedSession::Id(SessionId::from_bytes([7; 16]))),
            ("acr", |new| new.acr = text("silver")),
            ("amr", |new| new.amr.truncate(1)),
            ("authenticated_at", |new| new.authenticated_at = None),
            ("claims", |new| new.claims = None),
            ("empty claims", |new| new.claims = Some(CustomClaims::default())),
            ("scopes", |new| new.scopes.truncate(1)),
            ("device", |new| new.device = None),
            ("empty device", |new| new.device = Some(Device::default())),
            ("device.device_id", |new| {
                new.device = new.device.take().map(|device| Device { id: text("7"), ..device })
            }),
            ("amr_verified_at", |new| new.amr_verified_at = times(&[("pwd", 7)])),
            ("allow_weaker", |new| new.allow_weaker = false),
            ("request_id", |new| new.request_id = Some(text("twice"))),
            ("no request_id", |new| new.request_id = None),
        ];
        let (caller, id) = (text("login"), SessionId::from_bytes([7; 16]));
        let before = of_reauthentication(&caller, id, &reauthentication());
        for (what, change) in changes {
            let mut other = reauthentication();
            change(&mut other);
            assert_ne!(of_reauthentication(&caller, id, &other), before, "{what}");
        }
        assert_ne!(of_reauthentication(&text("other"), id, &reauthentication()), before);
        let other = SessionId::from_bytes([8; 16]);
        assert_ne!(of_reauthentication(&caller, other, &reauthentication()), before);
        assert_eq!(of_reauthentication(&caller, id, &reauthentication()), before);
    }

    /// Generates requests from few letters, so that an encoding without lengths would often be
    /// ambiguous.
    fn requests() -> impl Strategy<Value = (CallerName, NewSession)> {
        let short = || "[ab]{0,2}";
        let some = || "[ab]{1,2}";
        let list = || vec(some(), 0..3);
        let whom = (some(), some(), short(), short(), list(), list(), option::of(some()));
        let how = (short(), list(), option::of(0..3_i64), short(), short(), list());
        let limits = (option::of(some()), option::of(0..3_u64), option::of(0..3_u64));
        (whom, how, limits).prop_map(|(whom, how, limits)| {
            let (caller, subject, tenant, client_id, audience, scopes, request_id) = whom;
            let (acr, amr, at, user_agent, label, names) = how;
            let (policy, access_token_ttl, max_lifetime) = limits;
            let names = names.into_iter().map(|name| (name, Value::from(1))).collect();
            let request = NewSession {
                subject: text(subject),
                tenant: text(tenant),
                client_id: text(client_id),
                audience: texts(audience),
                scopes: texts(scopes),
                claims: claims(Value::Object(names)),
                metadata: Metadata::default(),
                acr: text(acr),
                amr: texts(amr),
                amr_verified_at: FactorTimes::default(),
                authenticated_at: at.map(Timestamp::from_micros),
                device: Device {
                    user_agent: text(user_agent),
                    id: text(""),
                    ip_address: text(""),
                    label: text(label),
                },
                policy: policy.map(text),
                access_token_ttl: access_token_ttl.map(Duration::from_nanos),
                max_lifetime: max_lifetime.map(Duration::from_nanos),
                request_id: request_id.map(text),
            };
            (text(caller), request)
        })
    }

    /// Moves letters to other fields, but keeps all letters in their order. An encoding without
    /// lengths would be the same as before.
    fn shifted((caller, request): &(CallerName, NewSession)) -> (CallerName, NewSession) {
        let mut shifted = request.clone();
        shifted.client_id = text(format!("{}{}", &*request.tenant, &*request.client_id));
        shifted.tenant = text("");
        let joined: String = request.scopes.iter().map(|scope| scope.to_string()).collect();
        shifted.scopes = if joined.is_empty() { vec![] } else { vec![text(joined)] };
        (caller.clone(), shifted)
    }

    proptest! {
        #[test]
        fn different_requests_have_different_encodings(one in requests(), other in requests()) {
            for other in [&one, &other, &shifted(&one)] {
                let is_same = encode(&one.0, &one.1) == encode(&other.0, &other.1);
                prop_assert_eq!(is_same, one == *other);
            }
        }
    }
}
