//! Converts domain types to messages.

use super::{
    claims::encoded_struct,
    common::{duration, end_reason, timestamp},
};
use crate::{
    authority::{
        issue::{Issued, Tokens},
        revoke::Revocations,
        validate::Answer,
        wide_revoke::{DryRun, revocation_id},
    },
    domain::{
        audit::AuditEntry,
        cut_off::Basis,
        cut_off_entry::CutOffEntry,
        inactive::InactiveReason,
        metadata::Metadata,
        policy::{OnRefresh, RefreshMode, Replay, SessionPolicy},
        session::{Session, State},
        time::Timestamp,
        user_agent::{self, DeviceKind},
    },
    proto,
};

/// Converts the result of a validation. If `full` is true, the response has the session's own
/// claims.
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
        claims: full.then(|| encoded_struct(&token.custom)),
        checked_at,
        amr_verified_at: token
            .amr_verified_at
            .iter()
            .map(|(method, at)| (method.clone(), timestamp(*at)))
            .collect(),
        metadata: None,
    }
}

/// Adds the metadata of the session to the answer for an active token, or makes it the answer for an
/// inactive one.
pub fn add_metadata(
    response: &mut proto::ValidateResponse,
    metadata: Result<Option<Metadata>, InactiveReason>,
) {
    match metadata {
        Ok(metadata) => {
            response.metadata = metadata.map(|metadata| encoded_struct(metadata.object()));
        }
        Err(reason) => {
            *response = proto::ValidateResponse {
                inactive_reason: inactive_reason(reason).into(),
                checked_at: response.checked_at,
                ..Default::default()
            };
        }
    }
}

/// Converts the result of a revocation.
pub fn revoked(revoked: Revocations) -> proto::RevokeResponse {
    proto::RevokeResponse {
        revoked_sessions: revoked.sessions,
        effective_at: Some(timestamp(revoked.effective_at)),
        revocation_ids: revoked.cut_offs.iter().map(revocation_id).collect(),
        dry_run: None,
    }
}

/// Converts the result of a dry run.
pub fn dry_run(dry_run: DryRun) -> proto::RevokeResponse {
    let (confirmation, expires_at) = dry_run.confirmation.unzip();
    let dry_run = proto::DryRun {
        sessions: dry_run.sessions,
        is_lower_bound: dry_run.is_lower_bound,
        confirmation: confirmation.unwrap_or_default(),
        confirmation_expires_at: expires_at.map(timestamp),
    };
    proto::RevokeResponse { dry_run: Some(dry_run), ..Default::default() }
}

/// Converts the blacklist entry of a revocation of many sessions.
pub fn revocation(entry: CutOffEntry) -> proto::Revocation {
    use proto::revocation::Instant;

    let revocation_id = revocation_id(&entry.key);
    let before = timestamp(entry.before());
    let scope = entry.key.scope();
    proto::Revocation {
        revocation_id,
        tenant: scope.tenant().map(|tenant| tenant.to_string()).unwrap_or_default(),
        all_tenants: scope.tenant().is_none(),
        subject: scope.subject().map(|subject| subject.to_string()).unwrap_or_default(),
        client_id: scope.client_id().map(|client_id| client_id.to_string()).unwrap_or_default(),
        instant: Some(match entry.key.basis() {
            Basis::Creation => Instant::CreatedBefore(before),
            Basis::Authentication => Instant::AuthenticatedBefore(before),
        }),
        revoked_at: Some(timestamp(entry.ended.at)),
        reason: end_reason(entry.ended.reason).into(),
        note: entry.ended.note.into_string(),
        ended_sessions: entry.ended_sessions,
        is_finished: !entry.unfinished,
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
        InactiveReason::ForeignTenant => proto::InactiveReason::ForeignTenant,
    }
}

/// Converts an issued session and its tokens.
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

/// Converts a session with the state that it has at `now`.
pub fn session(session: &Session, now: Timestamp) -> proto::Session {
    let (state, ended_at, reason) = match session.state(now) {
        State::Live => (proto::SessionState::Live, None, proto::EndReason::Unspecified),
        State::Ended { at, reason } => {
            (proto::SessionState::Ended, Some(timestamp(at)), end_reason(reason))
        }
    };
    proto::Session {
        session_id: session.id.to_string(),
        subject: session.subject.to_string(),
        tenant: session.tenant.to_string(),
        client_id: session.client_id.to_string(),
        audience: session.audience.iter().map(ToString::to_string).collect(),
        scopes: session.scopes.iter().map(ToString::to_string).collect(),
        claims: Some(encoded_struct(session.claims.object())),
        acr: session.authentication.acr.to_string(),
        amr: session.authentication.amr.iter().map(ToString::to_string).collect(),
        authenticated_at: Some(timestamp(session.authentication.at)),
        device: Some(device(session)),
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
        metadata: Some(encoded_struct(session.metadata.object())),
        created_by: session.created_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        amr_verified_at: session
            .authentication
            .amr_verified_at
            .iter()
            .map(|(method, at)| (method.to_string(), timestamp(at)))
            .collect(),
    }
}

/// Converts a record of the audit.
pub fn audit_record(entry: &AuditEntry) -> proto::AuditRecord {
    let record = &entry.record;
    proto::AuditRecord {
        id: entry.id.to_string(),
        at: Some(timestamp(record.at)),
        action: record.action.as_str().to_owned(),
        caller: record.caller.to_string(),
        peer: record.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        x_request_id: record.call.as_ref().map(ToString::to_string).unwrap_or_default(),
        tenant: record.tenant.as_ref().map(ToString::to_string),
        subject: record.subject.as_ref().map(ToString::to_string).unwrap_or_default(),
        session_id: record.session_id.map(|id| id.to_string()).unwrap_or_default(),
        kid: record.kid.clone().unwrap_or_default(),
        reason: record.reason.map_or(proto::EndReason::Unspecified, end_reason).into(),
        note: record.note.to_string(),
        ended_sessions: record.sessions,
        left_out: entry.left_out,
        client_id: record.client_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        created_before: record.created_before.map(timestamp),
        authenticated_before: record.authenticated_before.map(timestamp),
    }
}

/// Converts the device of a session, with the data that are derived from it.
fn device(session: &Session) -> proto::Device {
    let device = &session.device;
    let named = user_agent::describe(&device.user_agent);
    let kind = named.kind.map_or(proto::DeviceKind::Unspecified, |kind| match kind {
        DeviceKind::Computer => proto::DeviceKind::Computer,
        DeviceKind::Mobile => proto::DeviceKind::Mobile,
        DeviceKind::Appliance => proto::DeviceKind::Appliance,
        DeviceKind::Program => proto::DeviceKind::Program,
    });
    proto::Device {
        user_agent: device.user_agent.to_string(),
        ip_address: device.ip_address.to_string(),
        label: device.label.to_string(),
        device_id: device.id.to_string(),
        user_agent_name: named.name,
        kind: kind.into(),
        last_seen_at: Some(timestamp(session.refreshed_at)),
    }
}

fn policy(policy: &SessionPolicy) -> proto::SessionPolicy {
    let on_refresh = match policy.on_refresh {
        OnRefresh::KeepAccessToken => proto::OnRefresh::KeepAccessToken,
        OnRefresh::RevokeAccessToken => proto::OnRefresh::RevokeAccessToken,
    };
    let replay = match policy.replay {
        Replay::Grace => proto::Replay::Grace,
        Replay::UntilUsed => proto::Replay::UntilUsed,
    };
    let refresh = match policy.refresh {
        RefreshMode::Rotate => proto::RefreshMode::Rotate,
        RefreshMode::Reuse => proto::RefreshMode::Reuse,
    };
    proto::SessionPolicy {
        name: policy.name.to_string(),
        access_token_ttl: Some(duration(policy.access_token_ttl)),
        idle_timeout: Some(duration(policy.idle_timeout)),
        refresh_grace: Some(duration(policy.refresh_grace)),
        on_refresh: on_refresh.into(),
        replay: replay.into(),
        replay_limit: Some(duration(policy.replay_limit)),
        reauthentication_lifetime: policy.reauthentication_lifetime.map(duration),
        refresh: refresh.into(),
    }
}
