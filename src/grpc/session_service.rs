//! `countersign.v1.SessionService`: each method converts the request, runs its use case, and
//! converts the result.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    answers,
    imports::{check_count, import_result},
    overload::admission::{actor, counted, reserve},
    page::{FIELD_BYTES, Page},
    requests::{self, View},
};
use crate::{
    authority::{
        error::AuthorityError, inspect::SessionCount, metadata::ActiveToken, ready::Ready,
        revoke::RevokeOrder, validate::Validation,
    },
    callers::{Callers, meter::Work},
    domain::session::Session,
    proto::{self, session_service_server::SessionService},
};

/// The maximum number of tokens in a batch.
const MAX_BATCH: usize = 256;
/// The number of tokens that are validated before the task yields to other tasks. Checking one
/// signature takes some 26 microseconds.
const YIELD_EVERY: usize = 4;

/// The service. It accepts calls as soon as the process has started. Until the authority is ready,
/// all of them fail with `NOT_CURRENT`.
#[derive(Debug)]
pub struct Sessions {
    ready: Ready,
    callers: Arc<Callers>,
    max_answer_bytes: usize,
}

impl Sessions {
    /// Creates the service, which answers once the authority is ready. An answer has at most
    /// `max_answer_bytes`.
    pub fn new(ready: Ready, callers: Arc<Callers>, max_answer_bytes: usize) -> Self {
        Self { ready, callers, max_answer_bytes }
    }

    /// Validates one token. Also returns the token if its answer lacks only the metadata.
    async fn validate_one(
        validation: &mut Validation<'_>,
        path: &str,
        request: &proto::ValidateRequest,
    ) -> Result<(proto::ValidateResponse, Option<ActiveToken>), AuthorityError> {
        let view = requests::view(path, request)?;
        let answer = validation.validate(&requests::question(path, request)?).await?;
        let response = answers::validate_response(&answer, view != View::Basic);
        let needs_metadata = view == View::FullWithMetadata;
        Ok((response, ActiveToken::of(answer).filter(|_| needs_metadata)))
    }

    /// Adds the metadata to the answers for these active tokens, by one query. Each token comes with
    /// the index of its answer. Calls `take` with each of these indices and the bytes that were
    /// added to the answer.
    async fn add_metadata(
        &self,
        responses: &mut [proto::ValidateResponse],
        wanted: Vec<(usize, ActiveToken)>,
        mut take: impl FnMut(usize, usize) -> Result<(), Status>,
    ) -> Result<(), Status> {
        if wanted.is_empty() {
            return Ok(());
        }
        let _permit = self.callers.begin(Work::Read)?;
        let (indices, tokens): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let found = self.ready.get()?.metadata_of(&tokens).await?;
        for (index, metadata) in indices.into_iter().zip(found) {
            if index % YIELD_EVERY == YIELD_EVERY - 1 {
                tokio::task::yield_now().await;
            }
            if let Some(response) = responses.get_mut(index) {
                answers::add_metadata(response, metadata);
                let metadata = response.metadata.as_ref();
                take(index, metadata.map_or(0, |metadata| FIELD_BYTES + metadata.encoded_len()))?;
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn create_session(
        &self,
        request: Request<proto::CreateSessionRequest>,
    ) -> Result<Response<proto::CreateSessionResponse>, Status> {
        let by = actor(&request)?.clone();
        let issued =
            self.ready.get()?.create_session(&by, request.into_inner().try_into()?).await?;
        let (session, tokens) = answers::issued(issued);
        Ok(Response::new(proto::CreateSessionResponse {
            session: Some(session),
            tokens: Some(tokens),
        }))
    }

    async fn refresh(
        &self,
        request: Request<proto::RefreshRequest>,
    ) -> Result<Response<proto::RefreshResponse>, Status> {
        let by = actor(&request)?.clone();
        let exchanged = self.ready.get()?.refresh(&by, request.into_inner().try_into()?).await?;
        let (session, tokens) = answers::issued(exchanged.issued);
        let replayed = exchanged.replayed;
        Ok(Response::new(proto::RefreshResponse {
            session: Some(session),
            tokens: Some(tokens),
            replayed,
        }))
    }

    async fn reauthenticate(
        &self,
        request: Request<proto::ReauthenticateRequest>,
    ) -> Result<Response<proto::ReauthenticateResponse>, Status> {
        let by = actor(&request)?.clone();
        let issued =
            self.ready.get()?.reauthenticate(&by, request.into_inner().try_into()?).await?;
        let (session, tokens) = answers::issued(issued);
        Ok(Response::new(proto::ReauthenticateResponse {
            session: Some(session),
            tokens: Some(tokens),
        }))
    }

    async fn update_session(
        &self,
        request: Request<proto::UpdateSessionRequest>,
    ) -> Result<Response<proto::UpdateSessionResponse>, Status> {
        let by = actor(&request)?.clone();
        let update = request.into_inner().try_into()?;
        let (session, now) = self.ready.get()?.update_session(&by, update).await?;
        let session = Some(answers::session(&session, now));
        Ok(Response::new(proto::UpdateSessionResponse { session }))
    }

    async fn import_sessions(
        &self,
        request: Request<proto::ImportSessionsRequest>,
    ) -> Result<Response<proto::ImportSessionsResponse>, Status> {
        let by = actor(&request)?.clone();
        let request = request.into_inner();
        check_count(&request)?;
        let sessions = request.sessions.into_iter().map(TryInto::try_into).collect();
        let outcomes =
            self.ready.get()?.import_sessions(&by, sessions, request.validate_only).await?;
        let results = outcomes.into_iter().map(import_result).collect();
        Ok(Response::new(proto::ImportSessionsResponse { results }))
    }

    async fn validate(
        &self,
        request: Request<proto::ValidateRequest>,
    ) -> Result<Response<proto::ValidateResponse>, Status> {
        let by = actor(&request)?;
        let mut validation = self.ready.get()?.validation(by);
        let (mut response, wanted) =
            Self::validate_one(&mut validation, "", request.get_ref()).await?;
        if let Some(token) = wanted {
            let responses = std::slice::from_mut(&mut response);
            self.add_metadata(responses, vec![(0, token)], |_, _| Ok(())).await?;
        }
        counted(response, reserve(&request)?)
    }

    async fn batch_validate(
        &self,
        request: Request<proto::BatchValidateRequest>,
    ) -> Result<Response<proto::BatchValidateResponse>, Status> {
        let by = actor(&request)?;
        let requests = &request.get_ref().requests;
        if requests.is_empty() || requests.len() > MAX_BATCH {
            let problem = format!("has {} entries, 1 to {MAX_BATCH} are allowed", requests.len());
            return Err(AuthorityError::field("requests", problem).into());
        }
        let mut validation = self.ready.get()?.validation(by);
        let mut responses = Vec::with_capacity(requests.len());
        let mut reserved = reserve(&request)?;
        let mut take = |index: usize, bytes: usize| {
            if reserved.bytes() + bytes > self.max_answer_bytes {
                let problem = format!(
                    "would make the answer longer than {} bytes (limits.max_answer_bytes): send \
                     fewer tokens, or ask for VALIDATE_VIEW_BASIC",
                    self.max_answer_bytes
                );
                return Err(AuthorityError::field(format!("requests[{index}]"), problem).into());
            }
            Ok(reserved.try_grow(bytes)?)
        };
        let mut wanted = vec![];
        let mut permit = None;
        for (index, request) in requests.iter().enumerate() {
            // The permit counts only batches that keep a processor busy. It is acquired after the
            // first token has been validated, because that validation may wait for a lease.
            if index > 0 && permit.is_none() {
                permit = Some(self.callers.begin(Work::Batch)?);
            }
            if index % YIELD_EVERY == YIELD_EVERY - 1 {
                tokio::task::yield_now().await;
            }
            let (response, needs_metadata) =
                Self::validate_one(&mut validation, &format!("requests[{index}]."), request)
                    .await?;
            take(index, FIELD_BYTES + response.encoded_len())?;
            wanted.extend(needs_metadata.map(|token| (index, token)));
            responses.push(response);
        }
        drop(permit);
        self.add_metadata(&mut responses, wanted, take).await?;
        counted(proto::BatchValidateResponse { responses }, reserved)
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeResponse>, Status> {
        let by = actor(&request)?.clone();
        let request = request.into_inner();
        let is_dry_run = request.dry_run;
        let order = RevokeOrder::try_from(request)?;
        let response = match is_dry_run {
            true => answers::dry_run(self.ready.get()?.dry_run(&by, order.target).await?),
            false => answers::revoked(self.ready.get()?.revoke(&by, order).await?),
        };
        Ok(Response::new(response))
    }

    async fn list_revocations(
        &self,
        request: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::ListRevocationsResponse>, Status> {
        let by = actor(&request)?.clone();
        let reserved = reserve(&request)?;
        let ids = requests::revocation_ids(request.into_inner())?;
        let entries = self.ready.get()?.revocations(&by, &ids).await?;
        let revocations = entries.into_iter().map(answers::revocation).collect();
        counted(proto::ListRevocationsResponse { revocations }, reserved)
    }

    async fn get_session(
        &self,
        request: Request<proto::GetSessionRequest>,
    ) -> Result<Response<proto::GetSessionResponse>, Status> {
        let by = actor(&request)?;
        let (session, now) =
            self.ready.get()?.session(by, requests::requested_session(request.get_ref())?).await?;
        let response = proto::GetSessionResponse { session: Some(answers::session(&session, now)) };
        counted(response, reserve(&request)?)
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<proto::ListSessionsResponse>, Status> {
        let by = actor(&request)?.clone();
        let mut page = Page::new(reserve(&request)?, self.max_answer_bytes)?;
        let take = |session: &Session, now| page.add(answers::session(session, now));
        let listed = self.ready.get()?.sessions(&by, request.into_inner().try_into()?, take).await;
        let (sessions, reserved) = page.finish()?;
        counted(proto::ListSessionsResponse { sessions, next_page_token: listed? }, reserved)
    }

    async fn count_sessions(
        &self,
        request: Request<proto::CountSessionsRequest>,
    ) -> Result<Response<proto::CountSessionsResponse>, Status> {
        let by = actor(&request)?.clone();
        let count = self.ready.get()?.count_sessions(&by, request.into_inner().try_into()?).await?;
        let SessionCount { sessions, may_be_more } = count;
        Ok(Response::new(proto::CountSessionsResponse { sessions, may_be_more }))
    }
}
