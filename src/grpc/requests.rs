//! Converts messages to domain types. An error names the field that is wrong.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
};

use serde_json::{Map, Value};

use super::{
    claims::json_object,
    common::{end_reason_of, instant, span},
};
use crate::{
    authority::{
        change::SessionUpdate,
        error::AuthorityError,
        new_authentication::{NamedSession, NewAuthentication},
        new_session::NewSession,
        refresh::Exchange,
        revoke::{MAX_TOKEN_BYTES, RevokeOrder, RevokeTarget},
        sessions_target::{Boundary, SessionsTarget},
        validate::Question,
        wide_revoke::{MAX_CONFIRMATION_BYTES, MAX_LISTED, MAX_SUBJECTS},
    },
    domain::{
        claims::CustomClaims,
        cut_off::Scope,
        factors::{FactorDemand, FactorTimes},
        ids::SessionId,
        metadata::Metadata,
        session::Device,
        text::{Amr, ClientId, Subject, Tenant},
    },
    proto,
};

/// The claims that the answer to a validation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All claims but the session's own.
    Basic,
    /// All claims.
    Full,
    /// All claims, and the metadata of the session, which are no claims.
    FullWithMetadata,
}

type Result<T> = std::result::Result<T, AuthorityError>;

/// The fields of a session that UpdateSession can change.
const UPDATABLE: [&str; 4] = ["metadata", "device.label", "claims", "scopes"];

pub const MAX_AUDIENCES: usize = 16;
pub const MAX_SCOPES: usize = 64;
pub const MAX_AMR: usize = 16;
const MAX_FACTORS: usize = 16;
const MAX_ACR_VALUES: usize = 16;
/// The maximum length of a text that may be demanded of a token. No token carries a longer text.
const MAX_DEMAND_BYTES: usize = 256;

pub fn text<T>(field: &str, text: String) -> Result<T>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    T::try_from(text).map_err(|error| AuthorityError::field(field, error))
}

pub fn optional<T>(field: &str, value: String) -> Result<Option<T>>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

pub fn texts<T>(field: &str, values: Vec<String>, limit: usize) -> Result<Vec<T>>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    at_most(field, values.len(), limit)?;
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| text(&format!("{field}[{index}]"), value))
        .collect()
}

fn at_most(field: &str, count: usize, limit: usize) -> Result<()> {
    if count > limit {
        return Err(AuthorityError::field(
            field,
            format!("has {count} entries, at most {limit} are allowed"),
        ));
    }
    Ok(())
}

fn required(field: &str, text: &str) -> Result<()> {
    if text.is_empty() { Err(AuthorityError::field(field, "must not be empty")) } else { Ok(()) }
}

pub fn session_id(field: &str, text: &str) -> Result<SessionId> {
    required(field, text)?;
    text.parse().map_err(|error| AuthorityError::field(field, error))
}

/// Converts a device. No call is refused for data that is only displayed, but for an invalid
/// identifier, because another one would find other sessions. A repeated request yields the same
/// device, and therefore the same fingerprint, even if a proxy has reported another port of the
/// client.
pub fn device(device: proto::Device) -> Result<Device> {
    let id = text("device.device_id", device.device_id)?;
    let shown = Device::from_display_data(&device.user_agent, &device.ip_address, &device.label);
    Ok(Device { id, ..shown })
}

/// Converts the times at which methods were verified.
pub fn amr_verified_at(
    times: BTreeMap<String, prost_types::Timestamp>,
    amr: &[Amr],
) -> Result<FactorTimes> {
    let times = times.into_iter().map(|(method, at)| Ok((method, instant("amr_verified_at", at)?)));
    FactorTimes::new(times.collect::<Result<Vec<_>>>()?, amr)
        .map_err(|problem| AuthorityError::field("amr_verified_at", problem))
}

pub fn own_claims(message: proto::EncodedStruct) -> Result<CustomClaims> {
    CustomClaims::requested(object("claims", message)?)
        .map_err(|problem| AuthorityError::field("claims", problem))
}

pub fn metadata(message: Option<proto::EncodedStruct>) -> Result<Metadata> {
    Metadata::try_from(object("metadata", message.unwrap_or_default())?)
        .map_err(|problem| AuthorityError::field("metadata", problem))
}

fn object(field: &str, message: proto::EncodedStruct) -> Result<Map<String, Value>> {
    let broken = "are not a google.protobuf.Struct, or nest too deeply: send fewer lists and \
                  objects within each other";
    let message = message.decode().map_err(|_| AuthorityError::field(field, broken))?;
    json_object(message).map_err(|problem| AuthorityError::field(field, problem))
}

impl TryFrom<proto::CreateSessionRequest> for NewSession {
    type Error = AuthorityError;

    fn try_from(request: proto::CreateSessionRequest) -> Result<Self> {
        let claims = own_claims(request.claims.unwrap_or_default())?;
        let metadata = metadata(request.metadata)?;
        let amr = texts("amr", request.amr, MAX_AMR)?;
        Ok(Self {
            subject: text("subject", request.subject)?,
            tenant: text("tenant", request.tenant)?,
            client_id: text("client_id", request.client_id)?,
            audience: texts("audience", request.audience, MAX_AUDIENCES)?,
            scopes: texts("scopes", request.scopes, MAX_SCOPES)?,
            claims,
            metadata,
            acr: text("acr", request.acr)?,
            amr_verified_at: amr_verified_at(request.amr_verified_at, &amr)?,
            amr,
            authenticated_at: request
                .authenticated_at
                .map(|at| instant("authenticated_at", at))
                .transpose()?,
            device: device(request.device.unwrap_or_default())?,
            policy: optional("policy", request.policy)?,
            access_token_ttl: request
                .access_token_ttl
                .map(|ttl| span("access_token_ttl", ttl))
                .transpose()?,
            max_lifetime: request
                .max_lifetime
                .map(|lifetime| span("max_lifetime", lifetime))
                .transpose()?,
            request_id: optional("request_id", request.request_id)?,
        })
    }
}

impl TryFrom<proto::ReauthenticateRequest> for NewAuthentication {
    type Error = AuthorityError;

    fn try_from(request: proto::ReauthenticateRequest) -> Result<Self> {
        use proto::reauthenticate_request::Session::{RefreshToken, SessionId};

        let session = match request.session {
            Some(SessionId(id)) => NamedSession::Id(session_id("session_id", &id)?),
            Some(RefreshToken(token)) => {
                required("refresh_token", &token)?;
                NamedSession::RefreshToken(token)
            }
            None => {
                return Err(AuthorityError::field(
                    "session",
                    "must be one of session_id and refresh_token",
                ));
            }
        };
        let amr = texts("amr", request.amr, MAX_AMR)?;
        Ok(Self {
            session,
            acr: text("acr", request.acr)?,
            amr_verified_at: amr_verified_at(request.amr_verified_at, &amr)?,
            amr,
            authenticated_at: request
                .authenticated_at
                .map(|at| instant("authenticated_at", at))
                .transpose()?,
            claims: request.claims.map(own_claims).transpose()?,
            scopes: texts("scopes", request.scopes, MAX_SCOPES)?,
            device: request.device.map(device).transpose()?,
            allow_weaker: request.allow_weaker,
            request_id: optional("request_id", request.request_id)?,
        })
    }
}

impl TryFrom<proto::UpdateSessionRequest> for SessionUpdate {
    type Error = AuthorityError;

    fn try_from(request: proto::UpdateSessionRequest) -> Result<Self> {
        let mut update =
            Self {
                session_id: session_id("session_id", &request.session_id)?,
                revision: match request.etag.as_str() {
                    "" => None,
                    etag => Some(etag.parse().map_err(|_| {
                        AuthorityError::field("etag", "is not the etag of a session")
                    })?),
                },
                metadata: None,
                label: None,
                claims: None,
                scopes: None,
                revoke_access_tokens: request.revoke_access_tokens,
            };
        let paths = request.update_mask.unwrap_or_default().paths;
        if paths.is_empty() && !request.revoke_access_tokens {
            return Err(AuthorityError::field(
                "update_mask",
                format!("must name at least one of {}", UPDATABLE.join(", ")),
            ));
        }
        let mut session = request.session.unwrap_or_default();
        for (index, path) in paths.iter().enumerate() {
            if paths.iter().take(index).any(|earlier| earlier == path) {
                return Err(AuthorityError::field(
                    format!("update_mask.paths[{index}]"),
                    "names a field for the second time",
                ));
            }
            match path.as_str() {
                "metadata" => update.metadata = Some(metadata(session.metadata.take())?),
                "device.label" => {
                    let label = session.device.take().unwrap_or_default().label;
                    update.label = Some(Device::from_display_data("", "", &label).label);
                }
                "claims" => {
                    update.claims = Some(own_claims(session.claims.take().unwrap_or_default())?);
                }
                "scopes" => {
                    let scopes = std::mem::take(&mut session.scopes);
                    update.scopes = Some(texts("scopes", scopes, MAX_SCOPES)?);
                }
                _ => {
                    return Err(AuthorityError::field(
                        format!("update_mask.paths[{index}]"),
                        format!("must be one of {}", UPDATABLE.join(", ")),
                    ));
                }
            }
        }
        Ok(update)
    }
}

impl TryFrom<proto::RefreshRequest> for Exchange {
    type Error = AuthorityError;

    fn try_from(request: proto::RefreshRequest) -> Result<Self> {
        required("refresh_token", &request.refresh_token)?;
        Ok(Self {
            refresh_token: request.refresh_token,
            scopes: texts("scopes", request.scopes, MAX_SCOPES)?,
            device: request.device.map(device).transpose()?,
        })
    }
}

/// Converts a request to the question about its token. In errors, the name of the field begins with
/// `path`, which is the position of the request in its batch, or empty.
pub fn question<'a>(path: &str, request: &'a proto::ValidateRequest) -> Result<Question<'a>> {
    let question = || {
        required("access_token", &request.access_token)?;
        demand("audience", &request.audience)?;
        demands("scopes", &request.scopes, MAX_SCOPES)?;
        demands("acr_values", &request.acr_values, MAX_ACR_VALUES)?;
        Ok(Question {
            access_token: &request.access_token,
            audience: &request.audience,
            scopes: &request.scopes,
            acr_values: &request.acr_values,
            max_authentication_age: request
                .max_authentication_age
                .map(|age| span("max_authentication_age", age))
                .transpose()?,
            factors: factor_demands(&request.factors)?,
        })
    };
    question().map_err(|error| match error {
        AuthorityError::InvalidField { field, problem } => {
            AuthorityError::field(format!("{path}{field}"), problem)
        }
        other => other,
    })
}

/// Returns the claims that the answer to a validation has.
pub fn view(path: &str, request: &proto::ValidateRequest) -> Result<View> {
    let is_full = match proto::ValidateView::try_from(request.view) {
        Ok(proto::ValidateView::Full) => true,
        Ok(proto::ValidateView::Basic | proto::ValidateView::Unspecified) => false,
        Err(_) => return Err(AuthorityError::field(format!("{path}view"), "is not known")),
    };
    match (is_full, request.include_metadata) {
        (false, false) => Ok(View::Basic),
        (true, false) => Ok(View::Full),
        (true, true) => Ok(View::FullWithMetadata),
        (false, true) => Err(AuthorityError::field(
            format!("{path}include_metadata"),
            "goes with VALIDATE_VIEW_FULL only",
        )),
    }
}

fn factor_demands(factors: &[proto::FactorDemand]) -> Result<Vec<FactorDemand<'_>>> {
    at_most("factors", factors.len(), MAX_FACTORS)?;
    factors.iter().enumerate().map(|(index, factor)| factor_demand(index, factor)).collect()
}

fn factor_demand(index: usize, factor: &proto::FactorDemand) -> Result<FactorDemand<'_>> {
    let field = |name: &str| format!("factors[{index}].{name}");
    let method = factor.method.as_str();
    required(&field("method"), method)?;
    if method.len() > Amr::MAX_BYTES {
        let problem = format!("has {} bytes, at most {} are allowed", method.len(), Amr::MAX_BYTES);
        return Err(AuthorityError::field(field("method"), problem));
    }
    let max_age = factor.max_age.map(|age| span(&field("max_age"), age)).transpose()?;
    Ok(FactorDemand { method, max_age })
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
    match texts
        .iter()
        .enumerate()
        .find_map(|(index, text)| Some((index, demand(field, text).err()?)))
    {
        Some((index, AuthorityError::InvalidField { problem, .. })) => {
            Err(AuthorityError::field(format!("{field}[{index}]"), problem))
        }
        _ => Ok(()),
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
        let reason = proto::EndReason::try_from(request.reason)
            .map_err(|_| AuthorityError::field("reason", "is not known"))?;
        let reason = end_reason_of(reason);
        if !reason.may_be_given() {
            return Err(AuthorityError::field(
                "reason",
                "is set by the service only: give another one, or none",
            ));
        }
        let Some(target) = request.target else {
            return Err(AuthorityError::field(
                "target",
                "must be one of token, session_id, subject, tenant, subjects and sessions",
            ));
        };
        if token_only && !matches!(target, proto::revoke_request::Target::Token(_)) {
            return Err(AuthorityError::field(
                "extent",
                "TOKEN_ONLY goes with an access token only",
            ));
        }
        let target = revoke_target(target, token_only)?;
        let confirmation = request.confirmation;
        if confirmation.len() > MAX_CONFIRMATION_BYTES {
            let problem = format!(
                "has {} bytes, at most {MAX_CONFIRMATION_BYTES} are allowed",
                confirmation.len()
            );
            return Err(AuthorityError::field("confirmation", problem));
        }
        if request.dry_run && !confirmation.is_empty() {
            return Err(AuthorityError::field("confirmation", "does not go with dry_run"));
        }
        Ok(Self { target, reason, note: text("note", request.note)?, confirmation })
    }
}

/// Converts the target of a revocation.
fn revoke_target(target: proto::revoke_request::Target, token_only: bool) -> Result<RevokeTarget> {
    match target {
        proto::revoke_request::Target::Token(token) => {
            required("token", &token)?;
            if token.len() > MAX_TOKEN_BYTES {
                let problem =
                    format!("has {} bytes, at most {MAX_TOKEN_BYTES} are allowed", token.len());
                return Err(AuthorityError::field("token", problem));
            }
            Ok(RevokeTarget::Token { token, token_only })
        }
        proto::revoke_request::Target::SessionId(id) => {
            Ok(RevokeTarget::Session(session_id("session_id", &id)?))
        }
        proto::revoke_request::Target::Tenant(tenant) => {
            Ok(RevokeTarget::Tenant(text::<Tenant>("tenant", tenant)?))
        }
        proto::revoke_request::Target::Subject(subject) => Ok(RevokeTarget::Subject {
            tenant: text("subject.tenant", subject.tenant)?,
            subject: text("subject.subject", subject.subject)?,
            except: match subject.except_session_id.as_str() {
                "" => None,
                id => Some(session_id("subject.except_session_id", id)?),
            },
        }),
        proto::revoke_request::Target::Subjects(subjects) => subjects_target(subjects),
        proto::revoke_request::Target::Sessions(sessions) => {
            Ok(RevokeTarget::Sessions(sessions_target(sessions)?))
        }
    }
}

fn subjects_target(target: proto::SubjectsTarget) -> Result<RevokeTarget> {
    const FIELD: &str = "subjects.subjects";
    if target.subjects.is_empty() {
        return Err(AuthorityError::field(FIELD, "must not be empty"));
    }
    let tenant = text("subjects.tenant", target.tenant)?;
    let subjects: Vec<Subject> = texts(FIELD, target.subjects, MAX_SUBJECTS)?;
    let mut seen = HashSet::new();
    match subjects.iter().position(|subject| !seen.insert(subject)) {
        None => Ok(RevokeTarget::Subjects { tenant, subjects }),
        Some(index) => Err(AuthorityError::field(
            format!("{FIELD}[{index}]"),
            "is given a second time: give each subject once",
        )),
    }
}

fn sessions_target(target: proto::SessionsTarget) -> Result<SessionsTarget> {
    use proto::sessions_target::{Instant, Where};

    let client_id: Option<ClientId> = optional("sessions.client_id", target.client_id)?;
    let boundary = match target.instant {
        None => Boundary::Now,
        Some(Instant::CreatedBefore(at)) => {
            Boundary::CreatedBefore(instant("sessions.created_before", at)?)
        }
        Some(Instant::AuthenticatedBefore(at)) => {
            Boundary::AuthenticatedBefore(instant("sessions.authenticated_before", at)?)
        }
    };
    let scope = match (target.r#where, client_id) {
        (None, _) => {
            return Err(AuthorityError::field(
                "sessions.where",
                "must be one of tenant and all_tenants",
            ));
        }
        (Some(Where::AllTenants(false)), _) => {
            return Err(AuthorityError::field(
                "sessions.all_tenants",
                "must be true, or tenant must be given",
            ));
        }
        (Some(Where::Tenant(_)), None) if boundary == Boundary::Now => {
            return Err(AuthorityError::field(
                "sessions",
                "names a whole tenant: give client_id or an instant, or use the target tenant",
            ));
        }
        (Some(Where::AllTenants(true)), None) => Scope::Everywhere,
        (Some(Where::AllTenants(true)), Some(client_id)) => Scope::ClientEverywhere(client_id),
        (Some(Where::Tenant(tenant)), client_id) => {
            let tenant = text("sessions.tenant", tenant)?;
            match client_id {
                None => Scope::Tenant(tenant),
                Some(client_id) => Scope::Client(tenant, client_id),
            }
        }
    };
    Ok(SessionsTarget { scope, boundary })
}

/// Returns the identifiers in a ListRevocations request.
pub fn revocation_ids(request: proto::ListRevocationsRequest) -> Result<HashSet<String>> {
    at_most("revocation_ids", request.revocation_ids.len(), MAX_LISTED)?;
    Ok(request.revocation_ids.into_iter().collect())
}

/// Returns the identifier in a GetSession request.
pub fn requested_session(request: &proto::GetSessionRequest) -> Result<SessionId> {
    session_id("session_id", &request.session_id)
}
