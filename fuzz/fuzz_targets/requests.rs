//! Fuzzes the conversion of requests. The error of a refused request must name the wrong field, and
//! have a bounded size. An accepted request must hold the values that were sent, within the limits
//! that the proto files document, and fit into a token that can be read back.
//!
//! The input is decoded as each of the request messages.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use countersign::{
    authority::{
        change::SessionUpdate,
        error::AuthorityError,
        inspect::Listing,
        new_authentication::NewAuthentication,
        new_session::NewSession,
        refresh::Exchange,
        revoke::{RevokeOrder, RevokeTarget},
        validate::Question,
    },
    domain::{
        claims::{AccessClaims, MAX_CUSTOM_BYTES, RESERVED},
        ids::{SessionId, TokenId},
        session::Device,
        time::Timestamp,
    },
    grpc::{question, requested_session},
    keys::ring::VerifyingKey,
    proto::{
        self, BatchValidateRequest, CreateSessionRequest, GetSessionRequest, ListSessionsRequest,
        ReauthenticateRequest, RefreshRequest, RevokeRequest, UpdateSessionRequest,
        ValidateRequest, revoke_request::Target,
    },
    token::access::{Expectations, MAX_BYTES, Signer, Unverified, sign},
};
use jsonwebtoken::{Algorithm, DecodingKey};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_types::{Struct, value::Kind};
use serde_json::{Map, Value};
use tonic::{Code, Status};
use tonic_types::StatusExt;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = CreateSessionRequest::decode(data) {
        create(request);
    }
    if let Ok(request) = RefreshRequest::decode(data) {
        refresh(request);
    }
    if let Ok(request) = ValidateRequest::decode(data) {
        validate("", &request);
    }
    if let Ok(batch) = BatchValidateRequest::decode(data) {
        for (index, request) in batch.requests.iter().enumerate() {
            validate(&format!("requests[{index}]."), request);
        }
    }
    if let Ok(request) = RevokeRequest::decode(data) {
        revoke(request);
    }
    if let Ok(request) = ReauthenticateRequest::decode(data)
        && let Err(error) = NewAuthentication::try_from(request)
    {
        names("", &REAUTHENTICATE_FIELDS, error);
    }
    if let Ok(request) = UpdateSessionRequest::decode(data)
        && let Err(error) = SessionUpdate::try_from(request)
    {
        names("", &UPDATE_FIELDS, error);
    }
    if let Ok(request) = GetSessionRequest::decode(data) {
        match requested_session(&request) {
            Ok(id) => assert_eq!(id.to_string(), request.session_id),
            Err(error) => names("", &["session_id"], error),
        }
    }
    if let Ok(request) = ListSessionsRequest::decode(data) {
        list(request);
    }
});

/// The fields of a request to Reauthenticate that can be wrong.
const REAUTHENTICATE_FIELDS: [&str; 11] = [
    "session",
    "session_id",
    "refresh_token",
    "acr",
    "amr",
    "amr_verified_at",
    "authenticated_at",
    "claims",
    "scopes",
    "device.device_id",
    "request_id",
];

/// The fields of a request to UpdateSession that can be wrong.
const UPDATE_FIELDS: [&str; 7] =
    ["session_id", "etag", "update_mask", "update_mask.paths", "metadata", "claims", "scopes"];

/// Checks that the error names a field of the message, and is short.
fn names(path: &str, fields: &[&str], error: AuthorityError) {
    let AuthorityError::InvalidField { field, problem } = &error else { panic!("{error:?}") };
    let known =
        field.strip_prefix(path).unwrap_or_else(|| panic!("{field:?} is not below {path:?}"));
    let known = known.split_once('[').map_or(known, |(known, index)| {
        let (index, rest) = index.split_once(']').unwrap_or_else(|| panic!("{field:?}"));
        assert!(index.parse::<usize>().is_ok(), "{field:?}");
        assert!(rest.is_empty() || known == "factors", "{field:?}");
        known
    });
    assert!(fields.contains(&known), "{field:?} {problem:?}");
    assert!(!problem.is_empty() && !problem.contains(char::is_control), "{problem:?}");

    let (field, problem) = (field.clone(), problem.clone());
    let status = Status::from(error);
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let [violation] = &details.bad_request().unwrap().field_violations[..] else {
        panic!("{details:?}")
    };
    assert_eq!((&violation.field, &violation.description), (&field, &problem));
    assert!(status.message().len() + status.details().len() < 1024, "{status:?}");
}

/// Checks that a text is kept as it was sent, is within its limits, and has no control characters.
fn is(kept: &str, asked: &str, least: usize, most: usize) {
    assert_eq!(kept, asked);
    assert!((least..=most).contains(&kept.len()), "{kept:?}");
    assert!(!kept.contains(char::is_control), "{kept:?}");
}

fn are<T: std::ops::Deref<Target = str>>(kept: &[T], asked: &[String], count: usize, most: usize) {
    assert_eq!(kept.len(), asked.len());
    assert!(kept.len() <= count);
    kept.iter().zip(asked).for_each(|(kept, asked)| is(kept, asked, 1, most));
}

fn are_scopes<T: std::ops::Deref<Target = str>>(kept: &[T], asked: &[String]) {
    are(kept, asked, 64, 128);
    let allowed = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    assert!(kept.iter().all(|scope| scope.chars().all(allowed)));
}

/// Checks that the texts about a device are within their limits, and that valid ones are kept
/// unchanged.
fn is_device(kept: &Device, asked: &proto::Device) {
    let (id, asked_id) = (&*kept.id, asked.device_id.clone());
    let texts = [(&*kept.user_agent, &*asked.user_agent, 512), (&*kept.label, &*asked.label, 128)];
    for (kept, asked, most) in texts {
        let is_valid = asked.len() <= most && !asked.contains(char::is_control);
        is(kept, if is_valid { asked } else { kept }, 0, most);
    }
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    let (kept, asked) = (&*kept.ip_address, &*asked.ip_address);
    is(kept, if is_address(asked) { asked } else { kept }, 0, 64);
    assert!(kept.is_empty() || is_address(kept));
    is(id, &asked_id, 0, 128);
}

fn is_span(kept: Option<Duration>, asked: Option<prost_types::Duration>) {
    let asked = asked.map(|asked| (asked.seconds, asked.nanos));
    let parts = |span: Duration| {
        (i64::try_from(span.as_secs()).unwrap(), i32::try_from(span.subsec_nanos()).unwrap())
    };
    assert_eq!(kept.map(parts), asked);
}

fn create(request: CreateSessionRequest) {
    let new = match NewSession::try_from(request.clone()) {
        Ok(new) => new,
        Err(error) => {
            return names(
                "",
                &[
                    "subject",
                    "tenant",
                    "client_id",
                    "audience",
                    "scopes",
                    "claims",
                    "metadata",
                    "acr",
                    "amr",
                    "amr_verified_at",
                    "authenticated_at",
                    "device.device_id",
                    "policy",
                    "access_token_ttl",
                    "max_lifetime",
                    "request_id",
                ],
                error,
            );
        }
    };
    is(&new.subject, &request.subject, 1, 256);
    is(&new.tenant, &request.tenant, 0, 128);
    is(&new.client_id, &request.client_id, 0, 256);
    are(&new.audience, &request.audience, 16, 256);
    are_scopes(&new.scopes, &request.scopes);
    is(&new.acr, &request.acr, 0, 256);
    are(&new.amr, &request.amr, 16, 64);
    assert_eq!(new.amr_verified_at.iter().len(), request.amr_verified_at.len());
    for (method, at) in new.amr_verified_at.iter() {
        assert!(request.amr.iter().any(|named| **named == **method));
        let asked = request.amr_verified_at[&**method];
        assert_eq!(at.micros(), asked.seconds * 1_000_000 + i64::from(asked.nanos) / 1000);
    }
    is_device(&new.device, &request.device.clone().unwrap_or_default());
    is(new.policy.as_deref().unwrap_or_default(), &request.policy, 0, 64);
    is(new.request_id.as_deref().unwrap_or_default(), &request.request_id, 0, 128);
    is_span(new.access_token_ttl, request.access_token_ttl);
    is_span(new.max_lifetime, request.max_lifetime);
    let micros = |at: prost_types::Timestamp| at.seconds * 1_000_000 + i64::from(at.nanos) / 1000;
    assert_eq!(new.authenticated_at.map(Timestamp::micros), request.authenticated_at.map(micros));
    assert!(new.claims.to_json().len() <= MAX_CUSTOM_BYTES);
    assert!(new.claims.object().to_map().keys().all(|name| !RESERVED.contains(&name.as_str())));
    is_object(
        &new.claims.object().to_map(),
        &request.claims.clone().unwrap_or_default().decode().unwrap(),
    );
    fits_into_a_token(&new);
}

/// Checks that the claims are those that were sent, and that no text in them holds a NUL character.
fn is_object(kept: &Map<String, Value>, asked: &Struct) {
    assert_eq!(kept.len(), asked.fields.len());
    for (name, value) in kept {
        assert!(!name.contains('\0'));
        is_value(value, asked.fields[name].kind.as_ref());
    }
}

fn is_value(kept: &Value, asked: Option<&Kind>) {
    match (kept, asked) {
        (Value::Null, None | Some(Kind::NullValue(_))) => {}
        (Value::Bool(kept), Some(Kind::BoolValue(asked))) => assert_eq!(kept, asked),
        (Value::Number(kept), Some(Kind::NumberValue(asked))) => {
            assert_eq!(kept.as_f64(), Some(*asked))
        }
        (Value::String(kept), Some(Kind::StringValue(asked))) => {
            assert!(kept == asked && !kept.contains('\0'))
        }
        (Value::Array(kept), Some(Kind::ListValue(asked))) => {
            assert_eq!(kept.len(), asked.values.len());
            kept.iter()
                .zip(&asked.values)
                .for_each(|(kept, asked)| is_value(kept, asked.kind.as_ref()));
        }
        (Value::Object(kept), Some(Kind::StructValue(asked))) => is_object(kept, asked),
        _ => panic!("{kept:?} for {asked:?}"),
    }
}

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap());
static PUBLIC: LazyLock<VerifyingKey> = LazyLock::new(|| {
    let public = DecodingKey::from_ed_der(KEY.public_key().as_ref());
    VerifyingKey::new(Algorithm::EdDSA, &public).unwrap()
});

/// Checks that the session's tokens carry the requested claims, if they are not too long to be
/// issued.
fn fits_into_a_token(new: &NewSession) {
    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    let issuer = "https://issuer".to_owned();
    let max_ttl = Duration::from_secs(600);
    let audience: Vec<_> = new.audience.iter().map(ToString::to_string).collect();
    let claims = AccessClaims {
        issuer: issuer.clone(),
        session_id: SessionId::new(NOW, [1; 10]),
        token_id: TokenId::new([2; 16]),
        authentication_id: None,
        subject: new.subject.to_string(),
        tenant: new.tenant.to_string(),
        client_id: new.client_id.to_string(),
        audience: if audience.is_empty() { vec![issuer.clone()] } else { audience },
        scopes: new.scopes.iter().map(ToString::to_string).collect(),
        issued_at: NOW,
        expires_at: NOW.plus(max_ttl),
        not_before: None,
        authenticated_at: new.authenticated_at.unwrap_or(NOW).floor_to_second(),
        acr: new.acr.to_string(),
        amr: new.amr.iter().map(ToString::to_string).collect(),
        amr_verified_at: new
            .amr_verified_at
            .iter()
            .map(|(method, at)| (method.to_string(), at.floor_to_second()))
            .collect(),
        custom: new.claims.object().clone(),
    };
    let with = |message: &[u8]| Some(KEY.sign(message).as_ref().to_vec());
    let token = sign(&claims, Signer { kid: "the-key", algorithm: "EdDSA", sign: with }).unwrap();
    if token.len() <= MAX_BYTES {
        let read = Unverified::parse(&token)
            .unwrap()
            .verify(&PUBLIC, &Expectations { issuer: &issuer, max_ttl });
        assert_eq!(read, Ok(claims), "{token}");
    }
}

fn refresh(request: RefreshRequest) {
    match Exchange::try_from(request.clone()) {
        Ok(exchange) => {
            assert_eq!(exchange.refresh_token, request.refresh_token);
            assert!(!exchange.refresh_token.is_empty());
            are_scopes(&exchange.scopes, &request.scopes);
            assert_eq!(exchange.device.is_some(), request.device.is_some());
            if let (Some(kept), Some(asked)) = (&exchange.device, &request.device) {
                is_device(kept, asked);
            }
        }
        Err(error) => {
            names("", &["refresh_token", "scopes", "device.device_id"], error);
        }
    }
}

fn validate(path: &str, request: &ValidateRequest) {
    match question(path, request) {
        Ok(Question {
            access_token,
            audience,
            scopes,
            acr_values,
            max_authentication_age,
            factors,
        }) => {
            assert_eq!((access_token, audience), (&*request.access_token, &*request.audience));
            assert_eq!((scopes, acr_values), (&*request.scopes, &*request.acr_values));
            assert!(!access_token.is_empty() && audience.len() <= 256);
            assert!(scopes.len() <= 64 && acr_values.len() <= 16);
            assert!(scopes.iter().chain(acr_values).all(|text| text.len() <= 256));
            is_span(max_authentication_age, request.max_authentication_age);
            assert_eq!(factors.len(), request.factors.len());
            assert!(factors.len() <= 16);
            for (factor, asked) in factors.iter().zip(&request.factors) {
                assert_eq!(factor.method, asked.method);
                assert!((1..=64).contains(&factor.method.len()));
                is_span(factor.max_age, asked.max_age);
            }
        }
        Err(error) => {
            names(
                path,
                &[
                    "access_token",
                    "audience",
                    "scopes",
                    "acr_values",
                    "max_authentication_age",
                    "factors",
                ],
                error,
            );
        }
    }
}

fn revoke(request: RevokeRequest) {
    let order = match RevokeOrder::try_from(request.clone()) {
        Ok(order) => order,
        Err(error) => {
            return names(
                "",
                &[
                    "target",
                    "token",
                    "session_id",
                    "subject.tenant",
                    "subject.subject",
                    "subject.except_session_id",
                    "tenant",
                    "subjects.tenant",
                    "subjects.subjects",
                    "sessions",
                    "sessions.where",
                    "sessions.tenant",
                    "sessions.all_tenants",
                    "sessions.client_id",
                    "sessions.created_before",
                    "sessions.authenticated_before",
                    "confirmation",
                    "extent",
                    "reason",
                    "note",
                ],
                error,
            );
        }
    };
    assert_eq!(order.confirmation, request.confirmation);
    is(&order.note, &request.note, 0, 1024);
    assert!(order.reason.may_be_given());
    let only = request.extent() == proto::RevokeExtent::TokenOnly;
    match (order.target, request.target.unwrap()) {
        (RevokeTarget::Token { token, token_only }, Target::Token(asked)) => {
            assert_eq!((&token, token_only), (&asked, only));
            assert!((1..=8192).contains(&token.len()));
            return;
        }
        (RevokeTarget::Session(id), Target::SessionId(asked)) => assert_eq!(id.to_string(), asked),
        (RevokeTarget::Tenant(tenant), Target::Tenant(asked)) => is(&tenant, &asked, 0, 128),
        (RevokeTarget::Subject { tenant, subject, except }, Target::Subject(asked)) => {
            is(&tenant, &asked.tenant, 0, 128);
            is(&subject, &asked.subject, 1, 256);
            assert_eq!(
                except.map_or_else(String::new, |id| id.to_string()),
                asked.except_session_id
            );
        }
        (RevokeTarget::Subjects { tenant, subjects }, Target::Subjects(asked)) => {
            is(&tenant, &asked.tenant, 0, 128);
            assert!((1..=1000).contains(&subjects.len()));
            assert_eq!(subjects.len(), asked.subjects.len());
            for (subject, asked) in subjects.iter().zip(&asked.subjects) {
                is(subject, asked, 1, 256);
            }
        }
        (RevokeTarget::Sessions(target), Target::Sessions(asked)) => {
            let client_id = target.scope.client_id().map(|client_id| client_id.to_string());
            assert_eq!(client_id.unwrap_or_default(), asked.client_id);
            assert!(target.scope.subject().is_none());
        }
        _ => panic!("another target than was asked for"),
    }
    assert!(!only, "TOKEN_ONLY of something else");
}

/// The fields of ListSessions that can be wrong.
const LISTING_FIELDS: [&str; 16] = [
    "tenant",
    "subject",
    "state",
    "page_size",
    "order_by",
    "filter",
    "filter.client_id",
    "filter.policy",
    "filter.created_by",
    "filter.end_reason",
    "filter.created_from",
    "filter.created_until",
    "filter.ended_from",
    "filter.ended_until",
    "filter.device_network",
    "filter.device_id",
];

fn list(request: ListSessionsRequest) {
    match Listing::try_from(request.clone()) {
        Ok(listing) => {
            is(&listing.search.tenant, &request.tenant, 0, 128);
            is(listing.search.subject.as_deref().unwrap_or_default(), &request.subject, 0, 256);
            let device_id = request.filter.map(|filter| filter.device_id).unwrap_or_default();
            is(listing.search.device_id.as_deref().unwrap_or_default(), &device_id, 0, 128);
            assert_eq!(
                i32::from(listing.page.size),
                if request.page_size == 0 { 50 } else { request.page_size }
            );
            assert!((1..=500).contains(&listing.page.size));
            assert_eq!(listing.page.token, request.page_token);
            let asked = [None, Some(true), Some(false)][usize::try_from(request.state).unwrap()];
            let concerns_the_end = listing.search.filter.concerns_the_end();
            assert_eq!(listing.search.live, if concerns_the_end { Some(false) } else { asked });
        }
        Err(error) => names("", &LISTING_FIELDS, error),
    }
}
