//! Makes calls to replicas and records each of them.

use std::{error::Error, sync::Arc, time::Duration};

use countersign::proto::{
    BatchValidateRequest, CreateSessionRequest, RefreshRequest, RevokeRequest, SessionsTarget,
    SubjectTarget, Tokens, ValidateRequest, revoke_request, sessions_target,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::{
    ledger::{Client, reason},
    workload::Replicas,
    workload::history::{Answer, Ask, Call, Moment, Session, SessionNumber, Target, TokenNumber},
    workload::recorder::Recorder,
};

/// A session, and the tokens that its client holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// The number of the session in the history.
    pub number: SessionNumber,
    /// The identifier of the session.
    pub id: String,
    /// The policy.
    pub policy: &'static str,
    /// The tenant.
    pub tenant: String,
    /// The subject.
    pub subject: String,
    /// The latest access token.
    pub access_token: TokenNumber,
    /// The latest refresh token.
    pub refresh_token: String,
    /// The refresh token before the current one.
    pub used_refresh_token: Option<String>,
    /// True if a refresh of the session has failed, so that it is unknown whether the refresh was
    /// carried out.
    pub is_uncertain: bool,
}

/// Makes the calls of a run.
pub struct Asker {
    /// The replicas that are called.
    pub fleet: Arc<dyn Replicas>,
    /// Records the calls.
    pub recorder: Arc<Recorder>,
    /// True if access tokens expire during the run. The grace of refresh tokens must be shorter
    /// than the lifetime of access tokens, so the grace ends during the run too.
    pub tokens_expire: bool,
}

/// A call that was answered or has failed.
struct Ended<R> {
    replica: usize,
    begin: Moment,
    end: Moment,
    result: Result<R, Answer>,
}

impl<R> Ended<R> {
    fn call(&self, ask: Ask, answer: Answer) -> Call {
        let Self { replica, begin, end, .. } = *self;
        Call { replica, begin, end, ask, answer, count: 1 }
    }

    /// Returns the answer for calls whose success means only that the request was carried out.
    fn outcome(&self) -> Answer {
        self.result.as_ref().err().cloned().unwrap_or(Answer::Done)
    }
}

/// Classifies the status of a failed call.
fn answer(status: &Status) -> Answer {
    let reason = reason(status);
    let retry = status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
    match (status.code(), reason.as_str()) {
        (Code::Unavailable, "STORE_UNAVAILABLE" | "NOT_CURRENT") if retry => Answer::NotNow(reason),
        (Code::DeadlineExceeded | Code::Cancelled, _) => Answer::GivenUp,
        (Code::Unauthenticated | Code::NotFound | Code::InvalidArgument, reason)
            if !reason.is_empty() =>
        {
            Answer::Refused(reason.to_owned())
        }
        (Code::Unavailable | Code::Unknown | Code::Internal, "") if status.source().is_some() => {
            Answer::Disconnected
        }
        _ => Answer::Wrong(format!("{status:?}")),
    }
}

impl Asker {
    /// Makes a call; returns `None` if no process runs at this replica.
    async fn ask<M, R>(
        &self,
        replica: usize,
        timeout: Duration,
        message: M,
        send: impl AsyncFnOnce(&mut Client, Request<M>) -> Result<Response<R>, Status>,
    ) -> Option<Ended<R>> {
        let begin = self.recorder.now();
        let mut client = self.fleet.client(replica)?;
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        let result = send(&mut client, request).await;
        let end = self.recorder.now();
        let result = result.map(Response::into_inner).map_err(|status| answer(&status));
        Some(Ended { replica, begin, end, result })
    }

    /// Creates a session; returns `None` if that failed.
    pub async fn create(
        &self,
        replica: usize,
        timeout: Duration,
        policy: &'static str,
        tenant: &str,
        subject: &str,
    ) -> Option<Held> {
        let (tenant, subject) = (tenant.to_owned(), subject.to_owned());
        let message = CreateSessionRequest {
            subject: subject.clone(),
            tenant: tenant.clone(),
            client_id: subject.clone(),
            policy: policy.to_owned(),
            ..Default::default()
        };
        let ended = self.ask(replica, timeout, message, async |client, request| {
            client.create_session(request).await
        });
        let ended = ended.await?;
        self.recorder.call(ended.call(Ask::Create, ended.outcome()));
        let created = ended.result.ok()?;
        let Tokens { access_token, refresh_token, .. } = created.tokens.unwrap();
        let session = Session {
            tenant: tenant.clone(),
            subject: subject.clone(),
            asked: ended.begin,
            known: ended.end,
        };
        let number = self.recorder.session(session);
        Some(Held {
            number,
            id: created.session.unwrap().session_id,
            policy,
            tenant,
            subject,
            access_token: self.recorder.token(number, access_token),
            refresh_token,
            used_refresh_token: None,
            is_uncertain: false,
        })
    }

    /// Refreshes a session with its current refresh token.
    pub async fn refresh(
        &self,
        replica: usize,
        timeout: Duration,
        held: &mut Held,
    ) -> Option<Answer> {
        let ask = Ask::Refresh {
            session: held.number,
            // An earlier refresh by this token may have been carried out. If there is no grace,
            // this refresh is then reuse.
            is_reuse: held.is_uncertain && (held.policy == "strict" || self.tokens_expire),
            supersedes: (held.policy == "superseding").then_some(held.access_token),
        };
        let message =
            RefreshRequest { refresh_token: held.refresh_token.clone(), ..Default::default() };
        let ended = self
            .ask(replica, timeout, message, async |client, request| client.refresh(request).await)
            .await?;
        let answer = ended.outcome();
        self.recorder.call(ended.call(ask, answer.clone()));
        if let Ok(refreshed) = ended.result {
            let Tokens { access_token, refresh_token, .. } = refreshed.tokens.unwrap();
            held.access_token = self.recorder.token(held.number, access_token);
            held.used_refresh_token =
                Some(std::mem::replace(&mut held.refresh_token, refresh_token));
        } else {
            held.is_uncertain = true;
        }
        Some(answer)
    }

    /// Uses a refresh token that has been used before.
    pub async fn reuse(&self, replica: usize, timeout: Duration, held: &Held) -> Option<Answer> {
        let ask = Ask::Refresh { session: held.number, is_reuse: true, supersedes: None };
        let message = RefreshRequest {
            refresh_token: held.used_refresh_token.clone()?,
            ..Default::default()
        };
        let ended = self
            .ask(replica, timeout, message, async |client, request| client.refresh(request).await)
            .await?;
        let answer = ended.outcome();
        self.recorder.call(ended.call(ask, answer.clone()));
        Some(answer)
    }

    /// Validates these tokens in one call; returns whether the call was answered.
    pub async fn validate(
        &self,
        replica: usize,
        timeout: Duration,
        tokens: &[TokenNumber],
    ) -> bool {
        let question = |token| ValidateRequest {
            access_token: self.recorder.text(token),
            ..Default::default()
        };
        let note = |ended: &Ended<_>, token, answer| {
            self.recorder.call(ended.call(Ask::Validate(token), answer))
        };
        let answer_of = |answer: &countersign::proto::ValidateResponse| match answer.active {
            true => Answer::Active,
            false => Answer::Inactive(answer.inactive_reason()),
        };
        if let [token] = tokens {
            let send = async |client: &mut Client, request| client.validate(request).await;
            let Some(ended) = self.ask(replica, timeout, question(*token), send).await else {
                return false;
            };
            let answer = ended.result.as_ref().map_or_else(Answer::clone, answer_of);
            self.recorder.call(ended.call(Ask::Validate(*token), answer));
            return ended.result.is_ok();
        }
        let message = BatchValidateRequest {
            requests: tokens.iter().map(|token| question(*token)).collect(),
        };
        let send = async |client: &mut Client, request| client.batch_validate(request).await;
        let Some(ended) = self.ask(replica, timeout, message, send).await else { return false };
        for (index, token) in tokens.iter().enumerate() {
            let answer = ended
                .result
                .as_ref()
                .map_or_else(Answer::clone, |answers| answer_of(&answers.responses[index]));
            note(&ended, *token, answer);
        }
        ended.result.is_ok()
    }

    /// Sends this message, which revokes `target`.
    pub async fn revoke(
        &self,
        replica: usize,
        timeout: Duration,
        target: Target,
        message: RevokeRequest,
    ) -> Option<Answer> {
        let send = async |client: &mut Client, request| {
            self.fleet.notify_revocation(replica);
            client.revoke(request).await
        };
        let ended = self.ask(replica, timeout, message, send).await?;
        let answer = ended.outcome();
        self.recorder.call(ended.call(Ask::Revoke(target), answer.clone()));
        Some(answer)
    }
}

/// Returns the target of a message that revokes a session by its identifier.
pub fn by_id(held: &Held) -> revoke_request::Target {
    revoke_request::Target::SessionId(held.id.clone())
}

/// Returns the target of a message that revokes all sessions with a client.
pub fn by_client(tenant: &str, client_id: &str) -> revoke_request::Target {
    revoke_request::Target::Sessions(SessionsTarget {
        r#where: Some(sessions_target::Where::Tenant(tenant.to_owned())),
        client_id: client_id.to_owned(),
        instant: None,
    })
}

/// Returns the target of a message that revokes all sessions of a subject.
pub fn by_subject(tenant: &str, subject: &str) -> revoke_request::Target {
    let (tenant, subject) = (tenant.to_owned(), subject.to_owned());
    revoke_request::Target::Subject(SubjectTarget { tenant, subject, ..Default::default() })
}
