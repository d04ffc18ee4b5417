//! Messages to domain types, with each wrong field named; domain types to messages.

use std::{fmt::Display, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use serde_json::{Map, Number};

use crate::{
    authority::{
        create::NewSession,
        error::AuthorityError,
        inspect::Listing,
        issue::{Issued, Tokens},
        refresh::Exchange,
        revoke::{MAX_TOKEN_BYTES, RevokeOrder, RevokeTarget},
        validate::{Answer, InactiveReason, Question},
    },
    domain::{
        claims::CustomClaims,
        ids::SessionId,
        policy::{OnRefresh, SessionPolicy},
        session::{Device, EndReason, Session, State},
        text::Tenant,
        time::{Timestamp, micros},
    },
    proto,
};

type Result<T> = std::result::Result<T, AuthorityError>;

const MAX_AUDIENCES: usize = 16;
const MAX_SCOPES: usize = 64;
const MAX_AMR: usize = 16;
const MAX_ACR_VALUES: usize = 16;
/// Longest text demanded of a token; no token carries a longer one.
const MAX_DEMAND_BYTES: usize = 256;
const DEFAULT_PAGE: u16 = 50;
const LARGEST_PAGE: u16 = 500;

fn text<T>(field: &str, text: String) -> Result<T>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    T::try_from(text).map_err(|error| AuthorityError::field(field, error))
}

fn optional<T>(field: &str, value: String) -> Result<Option<T>>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

fn texts<T>(field: &str, values: Vec<String>, limit: usize) -> Result<Vec<T>>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    at_most(field, values.len(), limit)?;
    values.into_iter().enumerate().map(|(index, value)| text(&format!("{field}[{index}]"), value)).collect()
}

fn at_most(field: &str, count: usize, limit: usize) -> Result<()> {
    if count > limit {
        return Err(AuthorityError::field(field, format!("has {count} entries, at most {limit} are allowed")));
    }
    Ok(())
}

fn required(field: &str, text: &str) -> Result<()> {
    if text.is_empty() { Err(AuthorityError::field(field, "must not be empty")) } else { Ok(()) }
}

fn session_id(field: &str, text: &str) -> Result<SessionId> {
    required(field, text)?;
    text.parse().map_err(|error| AuthorityError::field(field, error))
}

fn instant(field: &str, timestamp: prost_types::Timestamp) -> Result<Timestamp> {
    let wrong = || AuthorityError::field(field, "is not an instant between the years 1 and 9999");
    if !(0..1_000_000_000).contains(&timestamp.nanos)
        || !(-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds)
    {
        return Err(wrong());
    }
    let micros =
        timestamp.seconds.checked_mul(1_000_000).and_then(|m| m.checked_add(i64::from(timestamp.nanos) / 1000));
    micros.map(Timestamp::from_micros).ok_or_else(wrong)
}

fn span(field: &str, duration: prost_types::Duration) -> Result<Duration> {
    let wrong = || AuthorityError::field(field, "must not be negative");
    let seconds = u64::try_from(duration.seconds).map_err(|_| wrong())?;
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(wrong)?;
    Ok(Duration::new(seconds, nanos))
}

fn device(field: &str, device: proto::Device) -> Result<Device> {
    Ok(Device {
        user_agent: text(&format!("{field}.user_agent"), device.user_agent)?,
        ip_address: text(&format!("{field}.ip_address"), device.ip_address)?,
        label: text(&format!("{field}.label"), device.label)?,
    })
}

/// A message of the request as JSON. `Struct` has numbers of one kind; whole ones become integers again.
fn json_object(message: Struct) -> std::result::Result<Map<String, serde_json::Value>, &'static str> {
    message.fields.into_iter().map(|(name, value)| Ok((name, json_value(value)?))).collect()
}

fn json_value(value: Value) -> std::result::Result<serde_json::Value, &'static str> {
    /// Beyond this, not every whole number has a double of its own (RFC 8259, section 6).
    const EXACT: f64 = 9_007_199_254_740_991.0;

    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        #[allow(clippy::cast_possible_truncation)] // Checked: whole and within what an i64 holds.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() <= EXACT => (value as i64).into(),
        Some(Kind::NumberValue(value)) => {
            Number::from_f64(value).ok_or("holds a number that JSON cannot write")?.into()
        }
        Some(Kind::ListValue(list)) => {
            list.values.into_iter().map(json_value).collect::<std::result::Result<_, _>>()?
        }
        Some(Kind::StructValue(object)) => json_object(object)?.into(),
    })
}

fn struct_of(map: &Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.iter().map(|(name, value)| (name.clone(), value_of(value))).collect() }
}

fn value_of(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        // Whatever JSON number a token carries came from a double.
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(value_of).collect() })
        }
        serde_json::Value::Object(map) => Kind::StructValue(struct_of(map)),
    };
    Value { kind: Some(kind) }
}

impl TryFrom<proto::CreateSessionRequest> for NewSession {
    type Error = AuthorityError;

    fn try_from(request: proto::CreateSessionRequest) -> Result<Self> {
        let claims = json_object(request.claims.unwrap_or_default())
            .map_err(|error| AuthorityError::field("claims", error))
            .and_then(|map| CustomClaims::try_from(map).map_err(|error| AuthorityError::field("claims", error)))?;
        Ok(Self {
            subject: text("subject", request.subject)?,
            tenant: text("tenant", request.tenant)?,
            client_id: text("client_id", request.client_id)?,
            audience: texts("audience", request.audience, MAX_AUDIENCES)?,
            scopes: texts("scopes", request.scopes, MAX_SCOPES)?,
            claims,
            acr: text("acr", request.acr)?,
            amr: texts("amr", request.amr, MAX_AMR)?,
            authenticated_at: request.authenticated_at.map(|at| instant("authenticated_at", at)).transpose()?,
            device: device("device", request.device.unwrap_or_default())?,
            policy: optional("policy", request.policy)?,
            access_token_ttl: request.access_token_ttl.map(|ttl| span("access_token_ttl", ttl)).transpose()?,
            max_lifetime: request.max_lifetime.map(|lifetime| span("max_lifetime", lifetime)).transpose()?,
            request_id: optional("request_id", request.request_id)?,
        })
    }
}

impl TryFrom<proto::RefreshRequest> for Exchange {
    type Error = AuthorityError;

    fn try_from(request: proto::RefreshRequest) -> Result<Self> {
        required("refresh_token", &request.refresh_token)?;
        Ok(Self {
            refresh_token: request.refresh_token,
            scopes: texts("scopes", request.scopes, MAX_SCOPES)?,
            device: request.device.map(|given| device("device", given)).transpose()?,
        })
    }
}

/// What a request asks of a token. `path` leads to the request within its batch.
pub fn question<'a>(path: &str, request: &'a proto::ValidateRequest) -> Result<Question<'a>> {
    let check = || -> Result<Option<Duration>> {
        required("access_token", &request.access_token)?;
        demand("audience", &request.audience)?;
        demands("scopes", &request.scopes, MAX_SCOPES)?;
        demands("acr_values", &request.acr_values, MAX_ACR_VALUES)?;
        request.max_authentication_age.map(|age| span("max_authentication_age", age)).transpose()
    };
    let max_authentication_age = check().map_err(|error| match error {
        AuthorityError::InvalidField { field, problem } => AuthorityError::field(format!("{path}{field}"), problem),
        other => other,
    })?;
    Ok(Question {
        access_token: &request.access_token,
        audience: &request.audience,
        scopes: &request.scopes,
        acr_values: &request.acr_values,
        max_authentication_age,
    })
}

fn demand(field: &str, text: &str) -> Result<()> {
    if text.len() > MAX_DEMAND_BYTES {
        let problem = format!("has {} bytes, at most {MAX_DEMAND_BYTES} are allowed", text.len());
        return Err(AuthorityError::field(field, problem));
    }
    Ok(())
}

fn demands(field: &str, texts: &[String], limit: usize) -> Result<()> {
    at_most(field, texts.len(), limit)?;
    match texts.iter().enumerate().find_map(|(index, text)| Some((index, demand(field, text).err()?))) {
        Some((index, AuthorityError::InvalidField { problem, .. })) => {
            Err(AuthorityError::field(format!("{field}[{index}]"), problem))
        }
        _ => Ok(()),
    }
}

/// The answer to a question. `full` adds the session's own claims.
pub fn validate_response(answer: &Answer, full: bool) -> proto::ValidateResponse {
    let checked_at = Some(timestamp(answer.checked_at));
    let token = match &answer.outcome {
        Ok(token) => &token.claims,
        Err(reason) => {
            let inactive_reason = inactive_reason(*reason).into();
            return proto::ValidateResponse { inactive_reason, checked_at, ..Default::default() };
        }
    };
    proto::ValidateResponse {
        active: true,
        inactive_reason: proto::InactiveReason::Unspecified.into(),
        session_id: token.session_id.to_string(),
        subject: token.subject.clone(),
        tenant: token.tenant.clone(),
        client_id: token.client_id.clone(),
        audience: token.audience.clone(),
        scopes: token.scopes.clone(),
        issued_at: Some(timestamp(token.issued_at)),
        expires_at: Some(timestamp(token.expires_at)),
        authenticated_at: Some(timestamp(token.authenticated_at)),
        acr: token.acr.clone(),
        amr: token.amr.clone(),
        claims: full.then(|| struct_of(&token.custom)),
        checked_at,
    }
}

fn inactive_reason(reason: InactiveReason) -> proto::InactiveReason {
    match reason {
        InactiveReason::Malformed => proto::InactiveReason::Malformed,
        InactiveReason::BadSignature => proto::InactiveReason::BadSignature,
        InactiveReason::UnknownKey => proto::InactiveReason::UnknownKey,
        InactiveReason::WrongType => proto::InactiveReason::WrongType,
        InactiveReason::Expired => proto::InactiveReason::Expired,
        InactiveReason::NotYetValid => proto::InactiveReason::NotYetValid,
        InactiveReason::WrongIssuer => proto::InactiveReason::WrongIssuer,
        InactiveReason::WrongAudience => proto::InactiveReason::WrongAudience,
        InactiveReason::InsufficientScope => proto::InactiveReason::InsufficientScope,
        InactiveReason::StepUpRequired => proto::InactiveReason::StepUpRequired,
        InactiveReason::Revoked => proto::InactiveReason::Revoked,
    }
}

impl TryFrom<proto::RevokeRequest> for RevokeOrder {
    type Error = AuthorityError;

    fn try_from(request: proto::RevokeRequest) -> Result<Self> {
        let token_only = match proto::RevokeExtent::try_from(request.extent) {
            Ok(proto::RevokeExtent::Unspecified | proto::RevokeExtent::Session) => false,
            Ok(proto::RevokeExtent::TokenOnly) => true,
            Err(_) => return Err(AuthorityError::field("extent", "is not known")),
        };
        let reason =
            proto::EndReason::try_from(request.reason).map_err(|_| AuthorityError::field("reason", "is not known"))?;
        let reason = end_reason_of(reason);
        if !reason.may_be_given() {
            return Err(AuthorityError::field("reason", "is set by the service only: give another one, or none"));
        }
        let Some(target) = request.target else {
            return Err(AuthorityError::field("target", "must be one of token, session_id, subject and tenant"));
        };
        if token_only && !matches!(target, proto::revoke_request::Target::Token(_)) {
            return Err(AuthorityError::field("extent", "TOKEN_ONLY goes with an access token only"));
        }
        let target = match target {
            proto::revoke_request::Target::Token(token) => {
                required("token", &token)?;
                if token.len() > MAX_TOKEN_BYTES {
                    let problem = format!("has {} bytes, at most {MAX_TOKEN_BYTES} are allowed", token.len());
                    return Err(AuthorityError::field("token", problem));
                }
                RevokeTarget::Token { token, token_only }
            }
            proto::revoke_request::Target::SessionId(id) => RevokeTarget::Session(session_id("session_id", &id)?),
            proto::revoke_request::Target::Tenant(tenant) => RevokeTarget::Tenant(text::<Tenant>("tenant", tenant)?),
            proto::revoke_request::Target::Subject(subject) => RevokeTarget::Subject {
                tenant: text("subject.tenant", subject.tenant)?,
                subject: text("subject.subject", subject.subject)?,
                except: match subject.except_session_id.as_str() {
                    "" => None,
                    id => Some(session_id("subject.except_session_id", id)?),
                },
            },
        };
        Ok(Self { target, reason, note: text("note", request.note)? })
    }
}

impl TryFrom<proto::ListSessionsRequest> for Listing {
    type Error = AuthorityError;

    fn try_from(request: proto::ListSessionsRequest) -> Result<Self> {
        let page_size = match u16::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE,
            Ok(size @ 1..=LARGEST_PAGE) => size,
            _ => {
                return Err(AuthorityError::field(
                    "page_size",
                    format!("must be from 1 to {LARGEST_PAGE}, or 0 for {DEFAULT_PAGE}"),
                ));
            }
        };
        let live = match proto::SessionState::try_from(request.state) {
            Ok(proto::SessionState::Unspecified) => None,
            Ok(proto::SessionState::Live) => Some(true),
            Ok(proto::SessionState::Ended) => Some(false),
            Err(_) => return Err(AuthorityError::field("state", "is not known")),
        };
        Ok(Self {
            tenant: text("tenant", request.tenant)?,
            subject: optional("subject", request.subject)?,
            live,
            page_size,
            page_token: request.page_token,
        })
    }
}

/// The identifier in a GetSession request.
pub fn requested_session(request: &proto::GetSessionRequest) -> Result<SessionId> {
    session_id("session_id", &request.session_id)
}

/// A session and its tokens.
pub fn issued(issued: Issued) -> (proto::Session, proto::Tokens) {
    (session(&issued.session, issued.now), tokens(issued.tokens))
}

fn tokens(tokens: Tokens) -> proto::Tokens {
    proto::Tokens {
        access_token: tokens.access_token,
        access_token_expires_at: Some(timestamp(tokens.access_token_expires_at)),
        refresh_token: tokens.refresh_token,
        refresh_token_expires_at: Some(timestamp(tokens.refresh_token_expires_at)),
        token_type: "Bearer".to_owned(),
    }
}

/// A session as it stands at `now`.
pub fn session(session: &Session, now: Timestamp) -> proto::Session {
    let (state, ended_at, reason) = match session.state(now) {
        State::Live => (proto::SessionState::Live, None, proto::EndReason::Unspecified),
        State::Ended { at, reason } => (proto::SessionState::Ended, Some(timestamp(at)), end_reason(reason)),
    };
    proto::Session {
        session_id: session.id.to_string(),
        subject: session.subject.to_string(),
        tenant: session.tenant.to_string(),
        client_id: session.client_id.to_string(),
        audience: session.audience.iter().map(ToString::to_string).collect(),
        scopes: session.scopes.iter().map(ToString::to_string).collect(),
        claims: Some(struct_of(session.claims.as_map())),
        acr: session.authentication.acr.to_string(),
        amr: session.authentication.amr.iter().map(ToString::to_string).collect(),
        authenticated_at: Some(timestamp(session.authentication.at)),
        device: Some(proto::Device {
            user_agent: session.device.user_agent.to_string(),
            ip_address: session.device.ip_address.to_string(),
            label: session.device.label.to_string(),
        }),
        policy: Some(policy(&session.policy)),
        created_at: Some(timestamp(session.created_at)),
        refreshed_at: Some(timestamp(session.refreshed_at)),
        idle_expires_at: Some(timestamp(session.idle_expires_at)),
        expires_at: Some(timestamp(session.expires_at)),
        state: state.into(),
        ended_at,
        end_reason: reason.into(),
        end_note: session.ended.as_ref().map(|ended| ended.note.to_string()).unwrap_or_default(),
        etag: session.revision.to_string(),
    }
}

fn policy(policy: &SessionPolicy) -> proto::SessionPolicy {
    let on_refresh = match policy.on_refresh {
        OnRefresh::KeepAccessToken => proto::OnRefresh::KeepAccessToken,
        OnRefresh::RevokeAccessToken => proto::OnRefresh::RevokeAccessToken,
    };
    proto::SessionPolicy {
        name: policy.name.to_string(),
        access_token_ttl: Some(duration(policy.access_token_ttl)),
        idle_timeout: Some(duration(policy.idle_timeout)),
        refresh_grace: Some(duration(policy.refresh_grace)),
        on_refresh: on_refresh.into(),
    }
}

fn end_reason_of(reason: proto::EndReason) -> EndReason {
    match reason {
        proto::EndReason::Unspecified => EndReason::Unspecified,
        proto::EndReason::SignedOut => EndReason::SignedOut,
        proto::EndReason::Administrative => EndReason::Administrative,
        proto::EndReason::Compromised => EndReason::Compromised,
        proto::EndReason::CredentialsChanged => EndReason::CredentialsChanged,
        proto::EndReason::AccountDisabled => EndReason::AccountDisabled,
        proto::EndReason::RefreshTokenReused => EndReason::RefreshTokenReused,
        proto::EndReason::QuotaEvicted => EndReason::QuotaEvicted,
        proto::EndReason::ExpiredIdle => EndReason::ExpiredIdle,
        proto::EndReason::ExpiredAbsolute => EndReason::ExpiredAbsolute,
    }
}

fn end_reason(reason: EndReason) -> proto::EndReason {
    match reason {
        EndReason::Unspecified => proto::EndReason::Unspecified,
        EndReason::SignedOut => proto::EndReason::SignedOut,
        EndReason::Administrative => proto::EndReason::Administrative,
        EndReason::Compromised => proto::EndReason::Compromised,
        EndReason::CredentialsChanged => proto::EndReason::CredentialsChanged,
        EndReason::AccountDisabled => proto::EndReason::AccountDisabled,
        EndReason::RefreshTokenReused => proto::EndReason::RefreshTokenReused,
        EndReason::QuotaEvicted => proto::EndReason::QuotaEvicted,
        EndReason::ExpiredIdle => proto::EndReason::ExpiredIdle,
        EndReason::ExpiredAbsolute => proto::EndReason::ExpiredAbsolute,
    }
}

/// An instant, to the microsecond.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.subsecond_micros() * 1000).unwrap_or_default();
    prost_types::Timestamp { seconds: at.seconds(), nanos }
}

fn duration(span: Duration) -> prost_types::Duration {
    let micros = micros(span);
    let nanos = i32::try_from(micros % 1_000_000 * 1000).unwrap_or_default();
    prost_types::Duration { seconds: micros / 1_000_000, nanos }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_survive_the_way_through_a_struct() {
        let claims = json!({
            "text": "é", "whole": 42, "negative": -7, "fraction": 0.5, "large": 9_007_199_254_740_991i64, "null": null,
            "list": [1, [true, {}], "x"], "deep": { "a": { "b": [] } },
        });
        let map = claims.as_object().unwrap();
        assert_eq!(&json_object(struct_of(map)).unwrap(), map);
    }

    #[test]
    fn a_number_that_json_cannot_write_is_refused() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            assert!(json_object(Struct { fields: [("n".to_owned(), value)].into() }).is_err());
        }
    }

    #[test]
    fn instants_outside_the_calendar_are_refused() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0)] {
            assert!(instant("t", prost_types::Timestamp { seconds, nanos }).is_err());
        }
    }

    #[test]
    fn spans_that_are_negative_or_malformed_are_refused() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MIN, 0), (i64::MIN, i32::MIN), (0, 1_000_000_000)] {
            assert!(span("t", prost_types::Duration { seconds, nanos }).is_err());
        }
        let longest = prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 };
        assert_eq!(span("t", longest).unwrap().as_secs(), u64::try_from(i64::MAX).unwrap());
    }

    #[test]
    fn reasons_go_both_ways() {
        for number in 0..10 {
            let reason = proto::EndReason::try_from(number).unwrap();
            assert_eq!(end_reason(end_reason_of(reason)), reason);
        }
    }

    proptest! {
        #[test]
        fn instants_survive_to_the_microsecond(micros in -62_135_596_800_000_000i64..253_402_300_799_000_000) {
            let at = Timestamp::from_micros(micros);
            prop_assert_eq!(instant("t", timestamp(at)).unwrap(), at);
        }
    }
}
