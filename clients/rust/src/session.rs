//! The session of a verified token.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use countersign_verification::{
    ids::SessionId, json_object::JsonObject, time::Timestamp, verified_cache::VerifiedToken,
};
use serde_json::Value;

use crate::{json, proto};

/// The session that an active token belongs to, with the claims of the token.
///
/// A clone shares the claims. `Debug` prints neither the token nor the claims, but the identifier
/// of the session.
#[derive(Clone)]
pub struct Session(Source);

#[derive(Clone)]
enum Source {
    /// A token that was verified here.
    Token(Arc<VerifiedToken>),
    /// The answer of Validate.
    Answer(Arc<Answered>),
}

/// The claims in an answer of Validate.
struct Answered {
    session_id: SessionId,
    subject: String,
    tenant: String,
    client_id: String,
    audience: Vec<String>,
    scopes: Vec<String>,
    issued_at: Timestamp,
    expires_at: Timestamp,
    authenticated_at: Timestamp,
    acr: String,
    amr: Vec<String>,
    amr_verified_at: Vec<(String, Timestamp)>,
    custom: JsonObject,
}

/// Returns a reference to a field that both sources have.
macro_rules! field {
    ($session:ident.$name:ident) => {
        match &$session.0 {
            Source::Token(token) => &token.claims.$name,
            Source::Answer(answer) => &answer.$name,
        }
    };
}

impl Session {
    /// Takes the claims of a token that was verified here.
    pub(crate) fn of_token(token: Arc<VerifiedToken>) -> Self {
        Self(Source::Token(token))
    }

    /// Reads the answer of Validate for an active token; `None` if it is incomplete.
    pub(crate) fn of_answer(answer: proto::ValidateResponse) -> Option<Self> {
        let timestamp =
            |at: Option<prost_types::Timestamp>| at.map(|at| Timestamp::from_seconds(at.seconds));
        let times = answer.amr_verified_at.into_iter();
        let times: Option<_> = times.map(|(name, at)| Some((name, timestamp(Some(at))?))).collect();
        let claims = json::from_struct(answer.claims.unwrap_or_default());
        Some(Self(Source::Answer(Arc::new(Answered {
            session_id: answer.session_id.parse().ok()?,
            subject: answer.subject,
            tenant: answer.tenant,
            client_id: answer.client_id,
            audience: answer.audience,
            scopes: answer.scopes,
            issued_at: timestamp(answer.issued_at)?,
            expires_at: timestamp(answer.expires_at)?,
            authenticated_at: timestamp(answer.authenticated_at)?,
            acr: answer.acr,
            amr: answer.amr,
            amr_verified_at: times?,
            custom: JsonObject::from(&claims),
        }))))
    }

    /// Returns the identifier of the session (`sid`), a UUID.
    pub fn id(&self) -> SessionId {
        *field!(self.session_id)
    }

    /// Returns the user (`sub`).
    pub fn subject(&self) -> &str {
        field!(self.subject)
    }

    /// Returns the tenant; empty for the default tenant.
    pub fn tenant(&self) -> &str {
        field!(self.tenant)
    }

    /// Returns the OAuth client; may be empty.
    pub fn client_id(&self) -> &str {
        field!(self.client_id)
    }

    /// Returns the services that the token is meant for (`aud`).
    pub fn audience(&self) -> &[String] {
        field!(self.audience)
    }

    /// Returns the scopes of the token.
    pub fn scopes(&self) -> &[String] {
        field!(self.scopes)
    }

    /// Returns whether the token carries a scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().iter().any(|carried| carried == scope)
    }

    /// Returns the time at which the token was issued, in whole seconds.
    pub fn issued_at(&self) -> SystemTime {
        system_time(*field!(self.issued_at))
    }

    /// Returns the time at which the token expires, in whole seconds.
    pub fn expires_at(&self) -> SystemTime {
        system_time(*field!(self.expires_at))
    }

    /// Returns the time at which the user authenticated (`auth_time`), in whole seconds.
    pub fn authenticated_at(&self) -> SystemTime {
        system_time(*field!(self.authenticated_at))
    }

    /// Returns the authentication context class; may be empty.
    pub fn acr(&self) -> &str {
        field!(self.acr)
    }

    /// Returns the authentication methods (RFC 8176).
    pub fn amr(&self) -> &[String] {
        field!(self.amr)
    }

    /// Returns the time at which an authentication method was verified, if it is known.
    pub fn verified_at(&self, method: &str) -> Option<SystemTime> {
        let times = field!(self.amr_verified_at).iter();
        times.clone().find(|(name, _)| name == method).map(|(_, at)| system_time(*at))
    }

    /// Returns a claim of the session's own.
    pub fn claim(&self, name: &str) -> Option<Value> {
        serde_json::from_str(field!(self.custom).get(name)?.get()).ok()
    }

    /// Returns all claims of the session's own.
    pub fn claims(&self) -> serde_json::Map<String, Value> {
        field!(self.custom).to_map()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id()).finish_non_exhaustive()
    }
}

fn system_time(at: Timestamp) -> SystemTime {
    let span = Duration::from_micros(at.micros().unsigned_abs());
    let instant = match at.micros() {
        0.. => SystemTime::UNIX_EPOCH.checked_add(span),
        _ => SystemTime::UNIX_EPOCH.checked_sub(span),
    };
    // No token has an instant that this platform cannot express.
    instant.unwrap_or(SystemTime::UNIX_EPOCH)
}
