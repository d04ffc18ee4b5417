//! Compares what the service shows with the model.

use countersign::proto;

use super::{Disagreement, Run, answer, both, same, same_message};
use crate::{
    messages::{self, timestamp},
    model::{AccessToken, Demands, Model, Search, Tokens},
};

impl Run<'_> {
    /// Compares the count and the pages of a search.
    pub(super) async fn search(
        &mut self,
        search: &Search,
        page_size: i32,
    ) -> Result<(), Disagreement> {
        let request = self.names.list(search, page_size);
        let counting = proto::CountSessionsRequest {
            tenant: request.tenant.clone(),
            subject: request.subject.clone(),
            state: request.state,
            filter: request.filter.clone(),
        };
        let mut client = self.world.server.client();
        let counted = answer(client.count_sessions(counting).await);
        let Some((counted, found)) = both(counted, self.model.search(search))? else {
            let listed = answer(client.list_sessions(request).await);
            return both(listed, self.model.search(search)).map(drop);
        };
        let sessions = i64::try_from(found.len()).unwrap();
        let expected = proto::CountSessionsResponse { sessions, may_be_more: false };
        same("count", &counted, &expected)?;
        self.list(request, &found).await
    }

    /// Compares the pages of a list, which must have these sessions.
    async fn list(
        &mut self,
        request: proto::ListSessionsRequest,
        found: &[usize],
    ) -> Result<(), Disagreement> {
        let mut client = self.world.server.client();
        let page_size = usize::try_from(request.page_size).unwrap();
        let mut found = found;
        let mut page_token = String::new();
        loop {
            let request = proto::ListSessionsRequest { page_token, ..request.clone() };
            let listed =
                client.list_sessions(request).await.map_err(|status| status.to_string())?;
            let listed = listed.into_inner();
            let (page, rest) = found.split_at(found.len().min(page_size));
            let ids = |sessions: &[proto::Session]| -> Vec<String> {
                sessions.iter().map(|session| session.session_id.clone()).collect()
            };
            let expected: Vec<_> =
                page.iter().map(|index| self.model.sessions[*index].id.clone()).collect();
            same("page", &ids(&listed.sessions), &expected)?;
            for (index, session) in page.iter().zip(&listed.sessions) {
                self.compare_session(*index, session)?;
            }
            same("is the last page", &listed.next_page_token.is_empty(), &rest.is_empty())?;
            if rest.is_empty() {
                return Ok(());
            }
            (found, page_token) = (rest, listed.next_page_token);
        }
    }

    /// Compares a session as the service shows it. An etag must differ from all earlier ones of the
    /// session if and only if the session has changed.
    pub(super) fn compare_session(
        &mut self,
        index: usize,
        shown: &proto::Session,
    ) -> Result<(), Disagreement> {
        let session = &self.model.sessions[index];
        let known = &mut self.etags[index];
        let is_new = known.values().all(|etag| *etag != shown.etag);
        let etag = match known.get(&session.revision) {
            Some(etag) => etag.clone(),
            None if is_new => shown.etag.clone(),
            None => "another one".to_owned(),
        };
        known.insert(session.revision, etag.clone());
        let expected = self.names.session(session, self.model.now, etag);
        same_message("session", "Session", shown, &expected)
    }

    /// Compares tokens. Their texts must be those of the same tokens that were issued before, or
    /// new ones.
    pub(super) fn compare_tokens(
        &mut self,
        tokens: &Tokens,
        issued: proto::Tokens,
    ) -> Result<(), Disagreement> {
        fn text(known: &mut Vec<String>, index: Option<usize>, issued: &str) -> String {
            if index == Some(known.len()) && known.iter().all(|known| known != issued) {
                known.push(issued.to_owned());
            }
            index.and_then(|index| known.get(index)).cloned().unwrap_or_default()
        }
        let Model { access_tokens, refresh_tokens, .. } = &self.model;
        let access = access_tokens.iter().position(|token| *token == tokens.access);
        let refresh = refresh_tokens.iter().position(|token| *token == tokens.refresh);
        let texts = (
            text(&mut self.access_tokens, access, &issued.access_token),
            text(&mut self.refresh_tokens, refresh, &issued.refresh_token),
        );
        let expected = messages::tokens(&self.model, tokens, texts);
        same_message("tokens", "Tokens", &issued, &expected)
    }

    /// Compares what Validate says about some tokens.
    pub(super) async fn validate(
        &self,
        tokens: &[usize],
        demands: &Demands,
    ) -> Result<(), Disagreement> {
        let requests: Vec<_> = tokens
            .iter()
            .map(|index| messages::validate(demands, self.access_tokens[*index].clone()))
            .collect();
        if requests.is_empty() {
            return Ok(());
        }
        let request = proto::BatchValidateRequest { requests };
        let answers = answer(self.world.server.client().batch_validate(request).await);
        let answers = answers.map_err(|refusal| format!("{refusal:?}"))?.responses;
        same("number of answers", &answers.len(), &tokens.len())?;
        for (index, answer) in tokens.iter().zip(answers) {
            let token: &AccessToken = &self.model.access_tokens[*index];
            let expected = match self.model.validate(token, demands) {
                Ok(()) => self.names.active(&self.model, token),
                Err(reason) => proto::ValidateResponse {
                    inactive_reason: reason.into(),
                    checked_at: Some(timestamp(self.model.now)),
                    ..Default::default()
                },
            };
            let what = format!("validity of {token:?}");
            same_message(&what, "ValidateResponse", &answer, &expected)?;
        }
        Ok(())
    }

    /// Compares the validity of every token, and all sessions. `singly` also lists the sessions
    /// that are recorded as ended, and gets each session by its identifier.
    pub(super) async fn compare_all(&mut self, singly: bool) -> Result<(), Disagreement> {
        let tokens: Vec<_> = (0..self.access_tokens.len()).collect();
        self.validate(&tokens, &Demands::default()).await?;
        for tenant in 0..2 {
            for live in [None, Some(false)].into_iter().take(1 + usize::from(singly)) {
                let (subject, client) = (None, None);
                let search = Search { tenant, subject, client, live, oldest_first: false };
                let found = self.model.search(&search).unwrap();
                self.list(self.names.list(&search, 500), &found).await?;
            }
        }
        if !singly {
            return Ok(());
        }
        for index in 0..self.model.sessions.len() {
            self.get(index).await?;
        }
        Ok(())
    }

    /// Compares a session that is got by its identifier.
    pub(super) async fn get(&mut self, index: usize) -> Result<(), Disagreement> {
        let request =
            proto::GetSessionRequest { session_id: self.model.sessions[index].id.clone() };
        let answered = answer(self.world.server.client().get_session(request).await);
        let expected = self.model.row(index).map(drop).ok_or_else(crate::model::not_found);
        match both(answered, expected)? {
            None => Ok(()),
            Some((answered, ())) => self.compare_session(index, &answered.session.unwrap()),
        }
    }
}
