//! Revoke.

use countersign::proto::EndReason;
use countersign_test_support::refusal::Refusal;

use super::{AccessToken, Model, RefreshToken, Session, not_found};

/// The target of a revocation.
#[derive(Clone, Debug)]
pub enum Target {
    AccessToken { token: AccessToken, only: bool },
    RefreshToken(Option<RefreshToken>),
    Session(usize),
    Subject { tenant: u8, subject: u8, except: Option<usize> },
    Tenant(u8),
}

impl Model {
    /// Revoke. Returns the number of sessions that ended.
    pub fn revoke(
        &mut self,
        target: &Target,
        reason: EndReason,
        note: &'static str,
    ) -> Result<usize, Refusal> {
        let is_of = |session: &Session, tenant: u8| session.whom.tenant == tenant;
        let affected: Vec<usize> = match target {
            Target::AccessToken { token, only: true } => {
                self.revoked_tokens.insert(token.id);
                vec![]
            }
            Target::AccessToken { token, .. } => vec![token.session],
            Target::RefreshToken(token) => {
                let token = token.as_ref().ok_or_else(|| Refusal::field("token"))?;
                let issued = self.row(token.session).is_none_or(|session| {
                    token.lineage == session.lineage && token.generation <= session.generation
                });
                if !issued {
                    return Err(Refusal::field("token"));
                }
                vec![token.session]
            }
            Target::Session(session) => {
                self.row(*session).ok_or_else(not_found)?;
                vec![*session]
            }
            Target::Subject { tenant, subject, except } => (0..self.sessions.len())
                .filter(|&index| is_of(&self.sessions[index], *tenant))
                .filter(|&index| self.sessions[index].whom.subject == *subject)
                .filter(|&index| Some(index) != *except)
                .collect(),
            Target::Tenant(tenant) => (0..self.sessions.len())
                .filter(|&index| is_of(&self.sessions[index], *tenant))
                .collect(),
        };
        let now = self.now;
        let live: Vec<_> =
            affected.into_iter().filter(|&index| self.sessions[index].is_live(now)).collect();
        for &index in &live {
            self.sessions[index].finish(now, reason, note);
        }
        Ok(live.len())
    }
}
