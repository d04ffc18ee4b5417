//! Converts the messages of ImportSessions.

use super::{
    common::instant,
    requests::{
        MAX_AMR, MAX_AUDIENCES, MAX_SCOPES, amr_verified_at, device, metadata, optional,
        own_claims, text, texts,
    },
};
use crate::{
    authority::{
        error::AuthorityError,
        import::{ImportOutcome, ImportedSession},
        new_session::NewSession,
    },
    domain::{import::ImportedTimes, legacy_token::LegacyTokenHash, time::Timestamp},
    proto::{self, ImportStatus},
};

/// The maximum number of sessions in a request.
const MOST_SESSIONS: usize = 500;

/// Checks the number of sessions in a request.
pub fn check_count(request: &proto::ImportSessionsRequest) -> Result<(), AuthorityError> {
    let count = request.sessions.len();
    if (1..=MOST_SESSIONS).contains(&count) {
        return Ok(());
    }
    let problem = format!("has {count} entries, 1 to {MOST_SESSIONS} are allowed");
    Err(AuthorityError::field("sessions", problem))
}

impl TryFrom<proto::ImportedSession> for ImportedSession {
    type Error = AuthorityError;

    fn try_from(session: proto::ImportedSession) -> Result<Self, AuthorityError> {
        if session.legacy_id.is_empty() {
            return Err(AuthorityError::field("legacy_id", "must not be empty"));
        }
        let optional_instant =
            |field: &str, at: Option<prost_types::Timestamp>| -> Result<Option<Timestamp>, _> {
                at.map(|at| instant(field, at)).transpose()
            };
        let created_at = optional_instant("created_at", session.created_at)?
            .ok_or_else(|| AuthorityError::field("created_at", "must be set"))?;
        let amr = texts("amr", session.amr, MAX_AMR)?;
        Ok(Self {
            legacy_id: text("legacy_id", session.legacy_id)?,
            times: ImportedTimes {
                created_at,
                refreshed_at: optional_instant("refreshed_at", session.refreshed_at)?,
                authenticated_at: optional_instant("authenticated_at", session.authenticated_at)?,
                expires_at: optional_instant("expires_at", session.expires_at)?,
            },
            legacy_token: legacy_token(&session.legacy_refresh_token_hash)?,
            content: NewSession {
                subject: text("subject", session.subject)?,
                tenant: text("tenant", session.tenant)?,
                client_id: text("client_id", session.client_id)?,
                audience: texts("audience", session.audience, MAX_AUDIENCES)?,
                scopes: texts("scopes", session.scopes, MAX_SCOPES)?,
                claims: own_claims(session.claims.unwrap_or_default())?,
                metadata: metadata(session.metadata)?,
                acr: text("acr", session.acr)?,
                amr_verified_at: amr_verified_at(session.amr_verified_at, &amr)?,
                amr,
                authenticated_at: None,
                device: device(session.device.unwrap_or_default())?,
                policy: optional("policy", session.policy)?,
                access_token_ttl: None,
                max_lifetime: None,
                request_id: None,
            },
        })
    }
}

fn legacy_token(bytes: &[u8]) -> Result<Option<LegacyTokenHash>, AuthorityError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let problem = || {
        let problem =
            format!("has {} bytes: it must be the 32 bytes of SHA-256, not as text", bytes.len());
        AuthorityError::field("legacy_refresh_token_hash", problem)
    };
    bytes.try_into().map(|hash| Some(LegacyTokenHash::from_bytes(hash))).map_err(|_| problem())
}

/// Converts an outcome for the answer.
pub fn import_result(outcome: ImportOutcome) -> proto::ImportResult {
    let result = |status: ImportStatus| proto::ImportResult {
        status: status.into(),
        ..proto::ImportResult::default()
    };
    match outcome {
        ImportOutcome::Imported(id) => {
            proto::ImportResult { session_id: id.to_string(), ..result(ImportStatus::Imported) }
        }
        ImportOutcome::AlreadyImported(id) => proto::ImportResult {
            session_id: id.to_string(),
            ..result(ImportStatus::AlreadyImported)
        },
        ImportOutcome::Valid => result(ImportStatus::Valid),
        ImportOutcome::Expired => result(ImportStatus::Expired),
        ImportOutcome::Revoked => result(ImportStatus::Revoked),
        ImportOutcome::Rejected { field, problem } => {
            proto::ImportResult { field, problem, ..result(ImportStatus::Rejected) }
        }
    }
}
