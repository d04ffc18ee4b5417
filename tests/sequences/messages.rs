//! The messages for the requests and the answers of the model.

use std::collections::BTreeMap;

use countersign::{domain::legacy_token::LegacyTokenHash, proto};
use prost_types::{FieldMask, Struct, Timestamp};

use crate::model::{
    ACRS, AccessToken, Create, Demands, Factor, Import, Micros, Model, Reauthenticate, SECOND,
    Scopes, Search, Session, Tokens, Update, Verified,
};

pub const ISSUER: &str = "https://auth.test";

const SCOPES: [&str; 3] = ["read", "write", "admin"];

/// The methods of authentication, of which the first two may have times.
const METHODS: [&str; 3] = ["pwd", "hwk", "otp"];

/// The number of a sequence, which is in the names of its tenants, so that sequences do not meet.
#[derive(Clone, Copy)]
pub struct Names(pub u64);

impl Names {
    pub fn tenant(self, tenant: u8) -> String {
        format!("tenant-{}-{tenant}", self.0)
    }

    pub fn subject(self, subject: u8) -> String {
        format!("subject-{subject}")
    }

    pub fn client(self, client: u8) -> String {
        format!("client-{client}")
    }

    pub fn create(self, request: &Create) -> proto::CreateSessionRequest {
        let authentication = &request.authentication;
        proto::CreateSessionRequest {
            subject: self.subject(request.whom.subject),
            tenant: self.tenant(request.whom.tenant),
            client_id: self.client(request.whom.client),
            scopes: scopes(request.scopes),
            claims: (request.claims != 0).then(|| object(request.claims).into()),
            acr: acr(authentication.acr),
            amr: amr(authentication.amr),
            amr_verified_at: amr_verified_at(authentication.verified_at),
            authenticated_at: authentication.at.map(timestamp),
            policy: request.policy.name.to_owned(),
            access_token_ttl: request.access_token_ttl.map(duration),
            max_lifetime: request.max_lifetime.map(duration),
            request_id: key(request.request_id),
            metadata: (request.metadata != 0).then(|| object(request.metadata).into()),
            ..Default::default()
        }
    }

    pub fn import(self, import: &Import) -> proto::ImportedSession {
        let authentication = &import.authentication;
        let token = (import.legacy_token != 0).then(|| self.legacy_token(import.legacy_token));
        let hash = token.map(|token| LegacyTokenHash::of(&token).bytes().to_vec());
        proto::ImportedSession {
            legacy_id: key(import.legacy_id),
            tenant: self.tenant(import.whom.tenant),
            subject: self.subject(import.whom.subject),
            client_id: self.client(import.whom.client),
            scopes: scopes(import.scopes),
            claims: Some(object(import.claims).into()),
            metadata: Some(object(import.metadata).into()),
            acr: acr(authentication.acr),
            amr: amr(authentication.amr),
            amr_verified_at: amr_verified_at(authentication.verified_at),
            authenticated_at: authentication.at.map(timestamp),
            policy: import.policy.name.to_owned(),
            created_at: Some(timestamp(import.created_at)),
            refreshed_at: import.refreshed_at.map(timestamp),
            expires_at: import.expires_at.map(timestamp),
            legacy_refresh_token_hash: hash.unwrap_or_default(),
            ..Default::default()
        }
    }

    /// Returns a refresh token of the other system.
    pub fn legacy_token(self, token: u8) -> String {
        format!("token {token} of the other system in sequence {}", self.0)
    }

    pub fn list(self, search: &Search, page_size: i32) -> proto::ListSessionsRequest {
        let state = match search.live {
            None => proto::SessionState::Unspecified,
            Some(true) => proto::SessionState::Live,
            Some(false) => proto::SessionState::Ended,
        };
        let filter = search.client.map(|client| proto::SessionFilter {
            client_id: self.client(client),
            ..Default::default()
        });
        proto::ListSessionsRequest {
            tenant: self.tenant(search.tenant),
            subject: search.subject.map(|subject| self.subject(subject)).unwrap_or_default(),
            state: state.into(),
            page_size,
            page_token: String::new(),
            filter,
            order_by: if search.oldest_first { "created_at" } else { "" }.to_owned(),
        }
    }

    /// Returns a session as the service must show it.
    pub fn session(self, session: &Session, now: Micros, etag: String) -> proto::Session {
        let end = session.end(now);
        let whom = session.whom;
        let state =
            if end.is_none() { proto::SessionState::Live } else { proto::SessionState::Ended };
        proto::Session {
            session_id: session.id.clone(),
            subject: self.subject(whom.subject),
            tenant: self.tenant(whom.tenant),
            client_id: self.client(whom.client),
            audience: vec![ISSUER.to_owned()],
            scopes: scopes(session.scopes),
            claims: Some(object(session.claims).into()),
            acr: acr(session.acr),
            amr: amr(session.amr),
            amr_verified_at: amr_verified_at(session.verified_at),
            authenticated_at: Some(timestamp(session.authenticated_at)),
            device: Some(proto::Device {
                label: label(session.label),
                last_seen_at: Some(timestamp(session.refreshed_at)),
                ..Default::default()
            }),
            policy: Some(policy(session)),
            created_at: Some(timestamp(session.created_at)),
            refreshed_at: Some(timestamp(session.refreshed_at)),
            idle_expires_at: Some(timestamp(session.idle_expires_at)),
            expires_at: Some(timestamp(session.expires_at)),
            state: state.into(),
            ended_at: end.as_ref().map(|end| timestamp(end.at)),
            end_reason: end.as_ref().map_or(proto::EndReason::Unspecified, |end| end.reason).into(),
            end_note: end.map_or("", |end| end.note).to_owned(),
            etag,
            metadata: Some(object(session.metadata).into()),
            created_by: "anybody".to_owned(),
        }
    }

    /// Returns what Validate must say about an active token.
    pub fn active(self, model: &Model, token: &AccessToken) -> proto::ValidateResponse {
        let session = &model.sessions[token.session];
        proto::ValidateResponse {
            active: true,
            inactive_reason: proto::InactiveReason::Unspecified.into(),
            session_id: session.id.clone(),
            subject: self.subject(session.whom.subject),
            tenant: self.tenant(session.whom.tenant),
            client_id: self.client(session.whom.client),
            audience: vec![ISSUER.to_owned()],
            scopes: scopes(token.scopes),
            issued_at: Some(timestamp(token.issued_at)),
            expires_at: Some(timestamp(token.expires_at)),
            authenticated_at: Some(timestamp(token.authenticated_at)),
            acr: acr(token.acr),
            amr: amr(token.amr),
            amr_verified_at: amr_verified_at(token.verified_at),
            claims: Some(object(token.claims).into()),
            checked_at: Some(timestamp(model.now)),
            ..Default::default()
        }
    }
}

/// Returns the limits that a session has.
fn policy(session: &Session) -> proto::SessionPolicy {
    let limits = &session.limits;
    let on_refresh = match limits.revokes_access_token {
        true => proto::OnRefresh::RevokeAccessToken,
        false => proto::OnRefresh::KeepAccessToken,
    };
    let replay = match limits.until_used {
        true => proto::Replay::UntilUsed,
        false => proto::Replay::Grace,
    };
    let refresh = match limits.reuses {
        true => proto::RefreshMode::Reuse,
        false => proto::RefreshMode::Rotate,
    };
    let extension = limits.reauthentication_extends.then(|| duration(limits.absolute_lifetime));
    proto::SessionPolicy {
        name: session.policy.name.to_owned(),
        access_token_ttl: Some(duration(limits.access_token_ttl)),
        idle_timeout: Some(duration(limits.idle_timeout)),
        refresh_grace: Some(duration(limits.refresh_grace)),
        on_refresh: on_refresh.into(),
        refresh: refresh.into(),
        replay: replay.into(),
        replay_limit: Some(duration(limits.replay_limit)),
        reauthentication_lifetime: extension,
    }
}

/// Returns the tokens of an answer, with these texts.
pub fn tokens(
    model: &Model,
    tokens: &Tokens,
    (access_token, refresh_token): (String, String),
) -> proto::Tokens {
    let idle_expires_at = model.sessions[tokens.access.session].idle_expires_at;
    proto::Tokens {
        access_token,
        access_token_expires_at: Some(timestamp(tokens.access.expires_at)),
        refresh_token,
        refresh_token_expires_at: Some(timestamp(idle_expires_at)),
        token_type: "Bearer".to_owned(),
    }
}

pub fn refresh(refresh_token: String, narrowed: Scopes) -> proto::RefreshRequest {
    proto::RefreshRequest { refresh_token, scopes: scopes(narrowed), device: None }
}

pub fn reauthenticate(
    request: &Reauthenticate,
    session: proto::reauthenticate_request::Session,
) -> proto::ReauthenticateRequest {
    let authentication = &request.authentication;
    proto::ReauthenticateRequest {
        session: Some(session),
        acr: acr(authentication.acr),
        amr: amr(authentication.amr),
        amr_verified_at: amr_verified_at(authentication.verified_at),
        authenticated_at: authentication.at.map(timestamp),
        claims: request.claims.map(|claims| object(claims).into()),
        scopes: scopes(request.scopes),
        allow_weaker: request.allow_weaker,
        request_id: key(request.request_id),
        ..Default::default()
    }
}

pub fn update(update: &Update, session_id: String, etag: String) -> proto::UpdateSessionRequest {
    let paths = [
        ("metadata", update.metadata.is_some()),
        ("device.label", update.label.is_some()),
        ("claims", update.claims.is_some()),
        ("scopes", update.scopes.is_some()),
    ];
    let paths = paths.into_iter().filter(|(_, named)| *named).map(|(path, _)| path.to_owned());
    let values = proto::Session {
        metadata: update.metadata.map(|metadata| object(metadata).into()),
        claims: update.claims.map(|claims| object(claims).into()),
        scopes: scopes(update.scopes.unwrap_or_default()),
        device: update.label.map(|name| proto::Device { label: label(name), ..Default::default() }),
        ..Default::default()
    };
    proto::UpdateSessionRequest {
        session_id,
        update_mask: Some(FieldMask { paths: paths.collect() }),
        session: Some(values),
        etag,
        revoke_access_tokens: update.revoke_access_tokens,
    }
}

pub fn validate(demands: &Demands, access_token: String) -> proto::ValidateRequest {
    proto::ValidateRequest {
        access_token,
        audience: if demands.foreign_audience { "https://other.test" } else { ISSUER }.to_owned(),
        scopes: scopes(demands.scopes),
        acr_values: demands.acr.into_iter().map(acr).collect(),
        max_authentication_age: demands.max_age.map(duration),
        factors: demands.factors.iter().map(factor).collect(),
        view: proto::ValidateView::Full.into(),
        ..Default::default()
    }
}

fn scopes(scopes: Scopes) -> Vec<String> {
    let has = |bit: &usize| scopes & (1 << bit) != 0;
    (0..SCOPES.len()).filter(has).map(|bit| SCOPES[bit].to_owned()).collect()
}

fn factor(factor: &Factor) -> proto::FactorDemand {
    proto::FactorDemand {
        method: METHODS[usize::from(factor.method)].to_owned(),
        max_age: factor.max_age.map(duration),
    }
}

fn acr(acr: u8) -> String {
    ACRS[usize::from(acr)].to_owned()
}

fn amr(amr: u8) -> Vec<String> {
    METHODS.into_iter().take(usize::from(amr)).map(str::to_owned).collect()
}

fn amr_verified_at(times: Verified) -> BTreeMap<String, Timestamp> {
    let timed = METHODS.into_iter().zip(times);
    timed.filter_map(|(method, at)| Some((method.to_owned(), timestamp(at?)))).collect()
}

/// Returns the name of a device; empty for 0.
fn label(label: u8) -> String {
    "x".repeat(usize::from(label))
}

/// Returns an idempotency key; empty for 0.
fn key(request_id: u8) -> String {
    if request_id == 0 { String::new() } else { format!("request-{request_id}") }
}

/// Returns claims or metadata; empty for 0.
fn object(value: u8) -> Struct {
    let fields = (value != 0).then(|| ("level".to_owned(), f64::from(value).into()));
    Struct { fields: fields.into_iter().collect() }
}

pub fn timestamp(instant: Micros) -> Timestamp {
    let nanos = i32::try_from(instant.rem_euclid(SECOND) * 1000).unwrap();
    Timestamp { seconds: instant.div_euclid(SECOND), nanos }
}

fn duration(span: Micros) -> prost_types::Duration {
    let nanos = i32::try_from(span % SECOND * 1000).unwrap();
    prost_types::Duration { seconds: span / SECOND, nanos }
}
