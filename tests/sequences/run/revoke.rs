//! Revocations, which may end sessions in the background.

use countersign::proto::{
    self, EndReason,
    revoke_request::Target as Message,
    sessions_target::{Instant, Where},
};
use countersign_test_support::server::eventually;

use super::{Disagreement, Run, answer, both, same};
use crate::{
    commands,
    messages::timestamp,
    model::{Boundary, MILLISECOND, Micros, SECOND, Target, to_millisecond},
};

/// The reasons and notes of revocations.
const REASONS: [(EndReason, &str); 3] =
    [(EndReason::Unspecified, ""), (EndReason::SignedOut, "bye"), (EndReason::Compromised, "")];

/// The time for which the confirmation of a dry run is accepted.
const CONFIRMATION_TTL: Micros = 600 * SECOND;

impl Run<'_> {
    /// Returns the target of a revocation and its message; none if it refers to something that is
    /// not there.
    pub(super) async fn target(&mut self, target: commands::Target) -> Option<(Target, Message)> {
        let id = |run: &Self, session: usize| run.model.sessions[session].id.clone();
        Some(match target {
            commands::Target::AccessToken { token, only } => {
                let index = self.access_token(token)?;
                let token = self.model.access_tokens[index].clone();
                let text = self.access_tokens[index].clone();
                (Target::AccessToken { token, only }, Message::Token(text))
            }
            commands::Target::RefreshToken(token) => {
                let token = self.refresh_token(token);
                let text = self.refresh_text(token.as_ref()).await;
                (Target::RefreshToken(token), Message::Token(text))
            }
            commands::Target::Session(session) => {
                let session = self.index(session);
                (Target::Session(session), Message::SessionId(id(self, session)))
            }
            commands::Target::Subject { tenant, subject, except } => {
                let except = except.map(|session| self.index(session));
                let message = proto::SubjectTarget {
                    tenant: self.names.tenant(tenant),
                    subject: self.names.subject(subject),
                    except_session_id: except.map(|session| id(self, session)).unwrap_or_default(),
                };
                (Target::Subject { tenant, subject, except }, Message::Subject(message))
            }
            commands::Target::Subjects { tenant, subjects } => {
                let subjects: Vec<_> = (0..3).filter(|bit| subjects & (1 << bit) != 0).collect();
                let message = proto::SubjectsTarget {
                    tenant: self.names.tenant(tenant),
                    subjects: subjects.iter().map(|one| self.names.subject(*one)).collect(),
                };
                (Target::Subjects { tenant, subjects }, Message::Subjects(message))
            }
            commands::Target::Tenant(tenant) => {
                (Target::Tenant(tenant), Message::Tenant(self.names.tenant(tenant)))
            }
            commands::Target::Sessions { tenant, client, boundary } => {
                self.last_scope = Some((tenant, client));
                self.sessions_target((tenant, client), self.boundary(boundary))
            }
            commands::Target::SessionsAgain { boundary } => {
                self.sessions_target(self.last_scope?, self.boundary(boundary))
            }
        })
    }

    fn sessions_target(
        &self,
        (tenant, client): (Option<u8>, Option<u8>),
        boundary: Boundary,
    ) -> (Target, Message) {
        let everywhere = Where::AllTenants(true);
        let message = proto::SessionsTarget {
            r#where: Some(tenant.map_or(everywhere, |one| Where::Tenant(self.names.tenant(one)))),
            client_id: client.map(|client| self.names.client(client)).unwrap_or_default(),
            instant: match boundary {
                Boundary::Now => None,
                Boundary::CreatedBefore(at) => Some(Instant::CreatedBefore(timestamp(at))),
                Boundary::AuthenticatedBefore(at) => {
                    Some(Instant::AuthenticatedBefore(timestamp(at)))
                }
            },
        };
        (Target::Sessions { tenant, client, boundary }, Message::Sessions(message))
    }

    fn boundary(&self, boundary: commands::Boundary) -> Boundary {
        match boundary {
            commands::Boundary::Now => Boundary::Now,
            commands::Boundary::Created { session, units, is_fine } => {
                let session = &self.model.sessions[self.index(session)];
                let unit = if is_fine { 1 } else { MILLISECOND };
                let before = to_millisecond(session.created_at) + units * unit;
                Boundary::CreatedBefore(before)
            }
            commands::Boundary::Authenticated { session, units } => {
                let session = &self.model.sessions[self.index(session)];
                let second = session.authenticated_at.div_euclid(SECOND) + units;
                Boundary::AuthenticatedBefore(second * SECOND)
            }
        }
    }

    /// Compares a dry run. Returns the confirmation; empty if there is none.
    pub(super) async fn dry_run(
        &self,
        target: &Target,
        message: Message,
    ) -> Result<String, Disagreement> {
        let request =
            proto::RevokeRequest { target: Some(message), dry_run: true, ..Default::default() };
        let answered = answer(self.world.server.client().revoke(request).await);
        let Some((answered, sessions)) = both(answered, self.model.dry_run(target))? else {
            return Ok(String::new());
        };
        let result = answered.dry_run.clone().unwrap_or_default();
        let expires_at = timestamp(self.model.now + CONFIRMATION_TTL);
        let expected = proto::RevokeResponse {
            dry_run: Some(proto::DryRun {
                sessions: i64::try_from(sessions).unwrap(),
                is_lower_bound: false,
                confirmation: result.confirmation.clone(),
                confirmation_expires_at: target.is_everywhere().then_some(expires_at),
            }),
            ..Default::default()
        };
        same("dry run", &answered, &expected)?;
        same("has a confirmation", &!result.confirmation.is_empty(), &target.is_everywhere())?;
        Ok(result.confirmation)
    }

    /// Compares a revocation. `confirmed` makes a dry run before a revocation in all tenants.
    pub(super) async fn revoke(
        &mut self,
        target: &Target,
        message: Message,
        reason: u8,
        confirmed: bool,
    ) -> Result<(), Disagreement> {
        let (reason, note) = REASONS[usize::from(reason)];
        let confirmation = match confirmed && target.is_everywhere() {
            true => self.dry_run(target, message.clone()).await?,
            false => String::new(),
        };
        let only = matches!(target, Target::AccessToken { only: true, .. });
        let extent =
            if only { proto::RevokeExtent::TokenOnly } else { proto::RevokeExtent::Session };
        let request = proto::RevokeRequest {
            target: Some(message),
            extent: extent.into(),
            reason: reason.into(),
            note: note.to_owned(),
            confirmation,
            ..Default::default()
        };
        let predicted = self.model.revoke(target, confirmed, (reason, note));
        let answered = answer(self.world.server.client().revoke(request).await);
        let Some((answered, ended)) = both(answered, predicted)? else { return Ok(()) };
        let ended = i64::try_from(ended).unwrap();
        let expected = proto::RevokeResponse {
            revoked_sessions: if target.is_counted() { ended } else { 0 },
            effective_at: Some(timestamp(self.model.now)),
            revocation_ids: answered.revocation_ids.clone(),
            dry_run: None,
        };
        same("revocation", &answered, &expected)?;
        same("revocations", &answered.revocation_ids.len(), &target.scopes().len())?;
        let marked = self.await_the_end(&answered.revocation_ids).await;
        match target.is_counted() {
            true => Ok(()),
            false => same("sessions that the job has ended", &marked, &ended),
        }
    }

    /// Waits until the rows of revoked sessions have ended, which happens soon after the answer.
    /// Returns how many the job has ended.
    async fn await_the_end(&self, ids: &[String]) -> i64 {
        if ids.is_empty() {
            return 0;
        }
        let request = proto::ListRevocationsRequest { revocation_ids: ids.to_vec() };
        eventually("the sessions end", async || {
            let listed = self.world.server.client().list_revocations(request.clone()).await;
            let revocations = listed.unwrap().into_inner().revocations;
            let is_finished = revocations.iter().all(|revocation| revocation.is_finished);
            let ended = revocations.iter().map(|revocation| revocation.ended_sessions);
            is_finished.then(|| ended.sum())
        })
        .await
    }
}
