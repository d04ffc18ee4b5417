//! Imports of sessions of another system.

use countersign::proto::{self, ImportStatus};

use super::{Disagreement, Run, answer, same};
use crate::{
    commands::Command,
    model::{Import, Imported, Whom},
    settings::POLICIES,
};

impl Run<'_> {
    /// Imports a session, and compares the result.
    pub(super) async fn import(&mut self, command: &Command) -> Result<(), Disagreement> {
        let (import, validate_only) = self.imported(command);
        let predicted = self.model.import(&import, validate_only);
        let message = self.names.import(&import);
        let request = proto::ImportSessionsRequest { sessions: vec![message], validate_only };
        let answered = answer(self.world.server.client().import_sessions(request).await);
        let mut results = answered.map_err(|refusal| format!("{refusal:?}"))?.results;
        same("number of results", &results.len(), &1)?;
        let result = results.remove(0);
        let id = |session: usize| self.model.sessions[session].id.clone();
        let (status, session_id, field) = match predicted {
            Imported::New(_) => (ImportStatus::Imported, result.session_id.clone(), ""),
            Imported::Before(session) => (ImportStatus::AlreadyImported, id(session), ""),
            Imported::Valid => (ImportStatus::Valid, String::new(), ""),
            Imported::Expired => (ImportStatus::Expired, String::new(), ""),
            Imported::Revoked => (ImportStatus::Revoked, String::new(), ""),
            Imported::Rejected(field) => (ImportStatus::Rejected, String::new(), field),
        };
        let expected = proto::ImportResult {
            status: status.into(),
            session_id,
            field: field.to_owned(),
            problem: result.problem.clone(),
        };
        same("result", &result, &expected)?;
        let Imported::New(session) = predicted else { return Ok(()) };
        self.imported_at.insert(session, self.model.now);
        if import.legacy_token != 0 {
            self.refresh_tokens.push(self.names.legacy_token(import.legacy_token));
        }
        self.name(session, &result.session_id)?;
        self.get(session).await
    }

    fn imported(&self, command: &Command) -> (Import, bool) {
        let Command::Import {
            whom,
            policy,
            scopes,
            data,
            authentication,
            created,
            refreshed,
            expires,
            legacy,
            validate_only,
        } = command
        else {
            unreachable!("{command:?} is no import")
        };
        let import = Import {
            legacy_id: legacy.0,
            legacy_token: legacy.1,
            whom: Whom { tenant: whom.0, subject: whom.1, client: whom.2 },
            policy: &POLICIES[*policy],
            scopes: *scopes,
            claims: data.0,
            metadata: data.1,
            authentication: self.authentication(authentication),
            created_at: self.instant(*created, false),
            refreshed_at: refreshed.map(|ago| self.model.now - ago),
            expires_at: expires.map(|ago| self.model.now - ago),
        };
        (import, *validate_only)
    }
}
