//! `/oauth2/introspect` (RFC 7662) and `/oauth2/revoke` (RFC 7009), for callers that speak OAuth.

use std::sync::Arc;

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use super::{
    Gates, JSON, NO_STORE,
    callers::{Closed, Proof, error},
    failed, peer,
};
use crate::{
    authority::{
        error::AuthorityError,
        revoke::{RevokeOrder, RevokeTarget},
        validate::Question,
    },
    callers::{Refusal, meter::UnderWay},
    domain::{caller::Actor, permission::Operation, session::EndReason, text::Note},
    gateway::outcomes::{Kind, PASSED, UNAVAILABLE},
    token::access::Payload,
};

/// Where tokens are introspected.
pub const INTROSPECT_PATH: &str = "/oauth2/introspect";
/// Where they are revoked.
pub const REVOKE_PATH: &str = "/oauth2/revoke";

/// Bytes of a form. The longest token has 8192.
const MAX_FORM_BYTES: usize = 16 << 10;

pub(super) fn routes(gates: Arc<Gates>, path: &str) -> Router {
    let mut routes =
        Router::new().route(INTROSPECT_PATH, post(introspect)).route(REVOKE_PATH, post(revoke));
    if !path.is_empty() {
        routes = routes.route(&format!("{path}{INTROSPECT_PATH}"), post(introspect));
        routes = routes.route(&format!("{path}{REVOKE_PATH}"), post(revoke));
    }
    routes.with_state(gates)
}

async fn introspect(State(gates): State<Arc<Gates>>, request: Request) -> Response {
    answered(introspected(&gates, request).await)
}

async fn introspected(gates: &Gates, request: Request) -> Result<Response, Response> {
    let (by, _under_way, token) = asked(gates, request, Operation::Introspect).await?;
    let authority = gates.ready.get().map_err(|error| failed(&error))?;
    // What it is demanded for is not known here, so nothing is demanded.
    let question = Question {
        access_token: &token,
        audience: "",
        scopes: &[],
        acr_values: &[],
        max_authentication_age: None,
    };
    let judging = async { authority.validation(&by).judge(&question).await };
    let judged = gates.in_time(judging).await?;
    gates.outcomes.count(
        Kind::Introspection,
        match &judged {
            Ok(answer) => answer.outcome.as_ref().map_or_else(|reason| reason.as_str(), |_| PASSED),
            Err(_) => UNAVAILABLE,
        },
    );
    // Why it is not is nobody's affair (RFC 7662, section 2.2).
    let members = match judged.map_err(|error| failed(&error))?.outcome {
        Err(_) => json!({ "active": false }),
        Ok(token) => {
            let mut members = serde_json::to_value(Payload(&token.claims)).unwrap_or_default();
            if let Value::Object(members) = &mut members {
                // After what the session says, which must not say these.
                members.insert("active".to_owned(), Value::Bool(true));
                members.insert("token_type".to_owned(), "Bearer".into());
            }
            members
        }
    };
    Ok((NO_STORE, JSON, members.to_string()).into_response())
}

async fn revoke(State(gates): State<Arc<Gates>>, request: Request) -> Response {
    answered(revoked(&gates, request).await)
}

async fn revoked(gates: &Gates, request: Request) -> Result<Response, Response> {
    let (by, _under_way, token) = asked(gates, request, Operation::Revoke).await?;
    let authority = gates.ready.get().map_err(|error| failed(&error))?;
    let order = RevokeOrder {
        target: RevokeTarget::Token { token, token_only: false },
        reason: EndReason::Unspecified,
        note: Note::try_from(format!("by {REVOKE_PATH}")).unwrap_or_default(),
    };
    match gates.in_time(authority.revoke(&by, order)).await? {
        // A token that is worthless anyway is none to complain about (RFC 7009, section 2.2).
        Ok(_) | Err(AuthorityError::InvalidField { .. }) => {
            Ok((StatusCode::OK, NO_STORE).into_response())
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Either way it is an answer.
fn answered(result: Result<Response, Response>) -> Response {
    result.unwrap_or_else(|response| response)
}

/// Who asks, and about which token.
async fn asked(
    gates: &Gates,
    request: Request,
    operation: Operation,
) -> Result<(Actor, UnderWay, String), Response> {
    let peer = peer(request.extensions());
    let proof = Proof::in_authorization(request.headers());
    let has_shown = request.headers().contains_key(AUTHORIZATION);
    let admitted = gates.door.admit(&proof, &peer, operation);
    let (by, under_way) = admitted.map_err(|closed| refused(&closed, has_shown))?;
    if !is_form(request.headers()) {
        return Err(bad_request("the content type must be application/x-www-form-urlencoded"));
    }
    let body = gates.in_time(to_bytes(request.into_body(), MAX_FORM_BYTES)).await?;
    let Ok(body) = body else { return Err(bad_request("the form is too long, or broke off")) };
    Ok((by, under_way, token_in(&body).map_err(bad_request)?))
}

fn is_form(headers: &HeaderMap) -> bool {
    let content =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The token in a form. What else there is may be ignored (RFC 6749, section 3.1), a hint of its
/// kind among it: its kind shows.
fn token_in(body: &[u8]) -> Result<String, &'static str> {
    let mut token = None;
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "token" if token.is_some() => return Err("token stands there twice"),
            "token" => token = Some(value.into_owned()),
            _ => {}
        }
    }
    token.filter(|token| !token.is_empty()).ok_or("token is missing")
}

fn bad_request(problem: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "invalid_request", problem, None)
}

fn refused(closed: &Closed, has_shown: bool) -> Response {
    let (status, code, description) = closed.told();
    let mut response = error(status, code, &description, closed.wait());
    if let Closed::Refused(Refusal::Unknown) = closed {
        // Who shows nothing is told no error (RFC 6750, section 3.1).
        let bearer = match has_shown {
            true => "Bearer realm=\"countersign\", error=\"invalid_token\"",
            false => "Bearer realm=\"countersign\"",
        };
        for challenge in ["Basic realm=\"countersign\"", bearer] {
            response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    response
}
