//! The routes `/oauth2/introspect` (RFC 7662) and `/oauth2/revoke` (RFC 7009), for callers that
//! speak OAuth.

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
    HttpState, JSON, NO_STORE,
    callers::{HeaderCredentials, NotAdmitted, error},
    failed,
    open_request::OpenRequest,
    peer,
};
use crate::{
    authority::{
        error::AuthorityError,
        revoke::{RevokeOrder, RevokeTarget},
        validate::Question,
    },
    callers::{Refusal, meter::CallPermit},
    domain::{caller::Actor, permission::Operation, session::EndReason, text::Note},
    gateway::outcomes::{Kind, PASSED, UNAVAILABLE},
    token::access::Payload,
};

/// The path of introspection.
pub const INTROSPECT_PATH: &str = "/oauth2/introspect";
/// The path of revocation.
pub const REVOKE_PATH: &str = "/oauth2/revoke";

/// The maximum size of a form in bytes. The longest token has 8192 bytes.
const MAX_FORM_BYTES: usize = 16 << 10;

pub(super) fn routes(state: Arc<HttpState>, path: &str) -> Router {
    let mut routes =
        Router::new().route(INTROSPECT_PATH, post(introspect)).route(REVOKE_PATH, post(revoke));
    if !path.is_empty() {
        routes = routes.route(&format!("{path}{INTROSPECT_PATH}"), post(introspect));
        routes = routes.route(&format!("{path}{REVOKE_PATH}"), post(revoke));
    }
    routes.with_state(state)
}

async fn introspect(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    answered(introspected(&state, request).await)
}

async fn introspected(state: &HttpState, request: Request) -> Result<Response, Response> {
    let Asked { by, open, _permit, headers, token } =
        read_request(state, request, Operation::Introspect).await?;
    let authority = state.ready.get().map_err(|error| failed(&error))?;
    // A request for introspection does not say what the resource demands, so no demands are
    // checked.
    let question = Question {
        access_token: &token,
        audience: "",
        scopes: &[],
        acr_values: &[],
        max_authentication_age: None,
        factors: vec![],
    };
    let validating = async { authority.validation(&by).validate(&question).await };
    let validated = state.in_time(open.observe(&by, &headers, validating)).await?;
    state.outcomes.count(
        Kind::Introspection,
        match &validated {
            Ok(answer) => answer.outcome.as_ref().map_or_else(|reason| reason.as_str(), |_| PASSED),
            Err(_) => UNAVAILABLE,
        },
    );
    // The answer does not say why a token is inactive (RFC 7662, section 2.2).
    let members = match validated.map_err(|error| failed(&error))?.outcome {
        Err(_) => json!({ "active": false }),
        Ok(token) => {
            let mut members = serde_json::to_value(Payload(&token.claims)).unwrap_or_default();
            if let Value::Object(members) = &mut members {
                // These members are added last, so that no claim of the session replaces them.
                members.insert("active".to_owned(), Value::Bool(true));
                members.insert("token_type".to_owned(), "Bearer".into());
            }
            members
        }
    };
    Ok((NO_STORE, JSON, members.to_string()).into_response())
}

async fn revoke(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    answered(revoked(&state, request).await)
}

async fn revoked(state: &HttpState, request: Request) -> Result<Response, Response> {
    let Asked { by, open, _permit, headers, token } =
        read_request(state, request, Operation::Revoke).await?;
    let authority = state.ready.get().map_err(|error| failed(&error))?;
    let order = RevokeOrder {
        target: RevokeTarget::Token { token, token_only: false },
        confirmation: String::new(),
        reason: EndReason::Unspecified,
        note: Note::try_from(format!("by {REVOKE_PATH}")).unwrap_or_default(),
    };
    let revoking = authority.revoke(&by, order);
    match state.in_time(open.observe(&by, &headers, revoking)).await? {
        // Revoking an invalid token is not an error (RFC 7009, section 2.2).
        Ok(_) | Err(AuthorityError::InvalidField { .. }) => {
            Ok((StatusCode::OK, NO_STORE).into_response())
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Returns the response, whether it is a success or an error.
fn answered(result: Result<Response, Response>) -> Response {
    result.unwrap_or_else(|response| response)
}

/// A request of a caller that was admitted.
struct Asked {
    by: Actor,
    open: OpenRequest,
    _permit: CallPermit,
    headers: HeaderMap,
    token: String,
}

/// Admits the caller, and reads the token in its request.
async fn read_request(
    state: &HttpState,
    request: Request,
    operation: Operation,
) -> Result<Asked, Response> {
    let (peer, open) = (peer(request.extensions()), OpenRequest::of(request.extensions()));
    let credentials = HeaderCredentials::in_authorization(request.headers());
    let has_credentials = request.headers().contains_key(AUTHORIZATION);
    let admitted = state.authenticator.admit(&credentials, &peer, open.id(), operation);
    let (by, _permit) = admitted.map_err(|reason| refused(&reason, has_credentials))?;
    if !is_form(request.headers()) {
        return Err(bad_request("the content type must be application/x-www-form-urlencoded"));
    }
    let (head, body) = request.into_parts();
    let body = state.in_time(to_bytes(body, MAX_FORM_BYTES)).await?;
    let Ok(body) = body else { return Err(bad_request("the form is too long or incomplete")) };
    let token = token_in(&body).map_err(bad_request)?;
    Ok(Asked { by, open, _permit, headers: head.headers, token })
}

fn is_form(headers: &HeaderMap) -> bool {
    let content =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Returns the token in a form. All other parameters are ignored, as RFC 6749, section 3.1 allows.
/// This includes `token_type_hint`, which is not needed, because a token shows its type.
fn token_in(body: &[u8]) -> Result<String, &'static str> {
    let mut token = None;
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "token" if token.is_some() => return Err("token is there twice"),
            "token" => token = Some(value.into_owned()),
            _ => {}
        }
    }
    token.filter(|token| !token.is_empty()).ok_or("token is missing")
}

fn bad_request(problem: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "invalid_request", problem, None)
}

fn refused(reason: &NotAdmitted, has_credentials: bool) -> Response {
    let (status, code, description) = reason.oauth_error();
    let mut response = error(status, code, &description, reason.wait());
    if let NotAdmitted::Refused(Refusal::Unknown) = reason {
        // A request without credentials gets no error code (RFC 6750, section 3.1).
        let bearer = match has_credentials {
            true => "Bearer realm=\"countersign\", error=\"invalid_token\"",
            false => "Bearer realm=\"countersign\"",
        };
        for challenge in ["Basic realm=\"countersign\"", bearer] {
            response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    response
}
