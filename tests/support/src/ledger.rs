//! Records the answers that a client got. Checks that a server has kept everything that it
//! acknowledged, and that no call was applied in part.

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, EndReason, GetSessionRequest, InactiveReason,
    ListSessionsRequest, RefreshRequest, RefreshResponse, RevokeRequest, SessionState,
    SubjectTarget, ValidateRequest, ValidateResponse, revoke_request::Target,
    session_service_client::SessionServiceClient,
};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

/// A client of the session service.
pub type Client = SessionServiceClient<Channel>;

/// A generator of pseudo-random numbers (SplitMix64), which are the same for the same seed.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// Returns a number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(sides).unwrap()).unwrap()
    }

    /// Returns an independent generator.
    pub fn split(&mut self) -> Self {
        Self(self.roll(usize::MAX).try_into().unwrap())
    }
}

/// A subject, its acknowledged sessions, and the call that was never answered, if there was one.
#[derive(Debug)]
pub struct Account {
    subject: String,
    sessions: Vec<Known>,
    calls: usize,
    unanswered: Option<Call>,
}

#[derive(Debug)]
struct Known {
    id: String,
    access_tokens: Vec<String>,
    refresh_token: String,
    previous_refresh_token: Option<String>,
    ended: Option<EndReason>,
}

#[derive(Clone, Debug)]
enum Call {
    Create { request_id: String },
    Refresh { session: usize },
    Revoke { sessions: Vec<usize>, reason: EndReason },
}

const REASONS: [EndReason; 3] =
    [EndReason::SignedOut, EndReason::Compromised, EndReason::Administrative];

/// Returns the reason of an error.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

impl Account {
    /// Creates an account without sessions.
    pub fn new(subject: String) -> Self {
        Self { subject, sessions: vec![], calls: 0, unanswered: None }
    }

    /// Returns whether the account needs no further sessions.
    pub fn is_full(&self) -> bool {
        self.sessions.len() >= 3
    }

    fn live(&self) -> Vec<usize> {
        (0..self.sessions.len()).filter(|&index| self.sessions[index].ended.is_none()).collect()
    }

    /// Makes a random call and records its answer. A call without an answer stays recorded as
    /// unanswered.
    pub async fn call(&mut self, client: &mut Client, dice: &mut Dice) -> Result<(), Status> {
        let live = self.live();
        self.calls += 1;
        let reason = REASONS[dice.roll(REASONS.len())];
        let call = match dice.roll(10) {
            roll if live.is_empty() || roll < 3 => {
                Call::Create { request_id: format!("{}/{}", self.subject, self.calls) }
            }
            3..8 => Call::Refresh { session: live[dice.roll(live.len())] },
            8 => Call::Revoke { sessions: vec![live[dice.roll(live.len())]], reason },
            _ => Call::Revoke { sessions: live, reason },
        };
        self.unanswered = Some(call.clone());
        match &call {
            Call::Create { request_id } => self.create(client, request_id, Repeat::Once).await?,
            Call::Refresh { session } => {
                let replayed = self.refresh(client, *session, Repeat::Once).await?;
                assert!(
                    !replayed,
                    "nobody else has this token, so the refresh was applied twice: {self:?}"
                );
            }
            Call::Revoke { sessions, reason } => {
                let target = match sessions.as_slice() {
                    [only] => Target::SessionId(self.sessions[*only].id.clone()),
                    _ => Target::Subject(SubjectTarget {
                        subject: self.subject.clone(),
                        ..Default::default()
                    }),
                };
                self.revoke(client, target, sessions, *reason).await?;
            }
        }
        self.unanswered = None;
        Ok(())
    }

    async fn create(
        &mut self,
        client: &mut Client,
        request_id: &str,
        repeat: Repeat,
    ) -> Result<(), Status> {
        let request = CreateSessionRequest {
            subject: self.subject.clone(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let created = create_with(client, request, repeat).await?;
        let tokens = created.tokens.unwrap();
        self.sessions.push(Known {
            id: created.session.unwrap().session_id,
            access_tokens: vec![tokens.access_token],
            refresh_token: tokens.refresh_token,
            previous_refresh_token: None,
            ended: None,
        });
        Ok(())
    }

    async fn refresh(
        &mut self,
        client: &mut Client,
        session: usize,
        repeat: Repeat,
    ) -> Result<bool, Status> {
        let known = &mut self.sessions[session];
        let refreshed = refresh_with(client, &known.refresh_token, repeat).await?;
        let tokens = refreshed.tokens.unwrap();
        let previous = std::mem::replace(&mut known.refresh_token, tokens.refresh_token);
        known.previous_refresh_token = Some(previous);
        known.access_tokens.truncate(1);
        known.access_tokens.push(tokens.access_token);
        Ok(refreshed.replayed)
    }

    async fn revoke(
        &mut self,
        client: &mut Client,
        target: Target,
        sessions: &[usize],
        reason: EndReason,
    ) -> Result<(), Status> {
        let note = format!("note of {}", self.subject);
        let request = RevokeRequest {
            target: Some(target),
            reason: reason.into(),
            note,
            ..Default::default()
        };
        let revoked = client.revoke(request).await?.into_inner();
        assert_eq!(revoked.revoked_sessions, i64::try_from(sessions.len()).unwrap(), "{self:?}");
        for &session in sessions {
            self.sessions[session].ended = Some(reason);
        }
        Ok(())
    }

    /// Checks that the server knows everything that was acknowledged, and that it has applied the
    /// unanswered call as a whole or not at all.
    pub async fn verify(&mut self, client: &mut Client) {
        match self.unanswered.take() {
            // Repeating the request creates no second session, whether or not the first request
            // arrived.
            Some(Call::Create { request_id }) => {
                self.create(client, &request_id, Repeat::UntilCurrent).await.unwrap()
            }
            // The last acknowledged refresh token can still be exchanged, for the first time or as
            // a replay.
            Some(Call::Refresh { session }) => {
                self.refresh(client, session, Repeat::UntilCurrent).await.unwrap();
            }
            Some(Call::Revoke { sessions, reason }) => {
                let mut ended = vec![];
                for &index in &sessions {
                    ended
                        .push(state(client, &self.sessions[index].id).await == SessionState::Ended);
                }
                assert!(
                    ended.iter().all(|one| *one == ended[0]),
                    "a revocation that was applied in part: {ended:?} of {self:?}"
                );
                for index in sessions.into_iter().filter(|_| ended[0]) {
                    self.sessions[index].ended = Some(reason);
                }
            }
            None => {}
        }
        for index in 0..self.sessions.len() {
            match self.sessions[index].ended {
                Some(reason) => self.verify_ended(client, index, reason).await,
                None => self.verify_live(client, index).await,
            }
        }
        let request = ListSessionsRequest { subject: self.subject.clone(), ..Default::default() };
        let listed = client.list_sessions(request).await.unwrap().into_inner().sessions;
        assert_eq!(
            listed.len(),
            self.sessions.len(),
            "a session that was never acknowledged: {self:?}"
        );
    }

    async fn verify_live(&mut self, client: &mut Client, index: usize) {
        let known = &self.sessions[index];
        assert_eq!(state(client, &known.id).await, SessionState::Live, "{self:?}");
        for token in &known.access_tokens {
            assert!(validate(client, token).await.active, "{self:?}");
        }
        if let Some(previous) = &known.previous_refresh_token {
            let again = refresh(client, previous)
                .await
                .unwrap_or_else(|status| panic!("{status:?}: {self:?}"));
            assert!(again.replayed, "an acknowledged refresh is undone: {self:?}");
            assert_eq!(
                again.tokens.unwrap().refresh_token,
                known.refresh_token,
                "another successor: {self:?}"
            );
        }
        let replayed = self.refresh(client, index, Repeat::UntilCurrent).await.unwrap();
        assert!(!replayed, "the last acknowledged refresh token was not the current one: {self:?}");
    }

    async fn verify_ended(&self, client: &mut Client, index: usize, expected: EndReason) {
        let known = &self.sessions[index];
        let request = GetSessionRequest { session_id: known.id.clone() };
        let session = client.get_session(request).await.unwrap().into_inner().session.unwrap();
        assert_eq!(
            (session.state(), session.end_reason()),
            (SessionState::Ended, expected),
            "{self:?}"
        );
        assert_eq!(session.end_note, format!("note of {}", self.subject));
        for token in &known.access_tokens {
            let answer = validate(client, token).await;
            assert!(!answer.active, "an acknowledged revocation is undone: {self:?}");
            assert_eq!(answer.inactive_reason(), InactiveReason::Revoked);
        }
        let refused = refresh(client, &known.refresh_token).await.unwrap_err();
        assert_eq!(reason(&refused), "SESSION_REVOKED", "{self:?}");
    }
}

/// Returns whether a client should repeat the call, because the server may not know the latest
/// revocations. On a busy machine a lease may lapse at any time.
fn is_not_current<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| reason(status) == "NOT_CURRENT")
}

/// The number of times that a call is made.
#[derive(Clone, Copy, PartialEq)]
pub enum Repeat {
    /// The call is made once.
    Once,
    /// The call is repeated while the server may not know the latest revocations.
    UntilCurrent,
}

async fn create_with(
    client: &mut Client,
    request: CreateSessionRequest,
    repeat: Repeat,
) -> Result<CreateSessionResponse, Status> {
    loop {
        let answer = client.create_session(request.clone()).await.map(tonic::Response::into_inner);
        if repeat == Repeat::Once || !is_not_current(&answer) {
            return answer;
        }
    }
}

async fn refresh_with(
    client: &mut Client,
    token: &str,
    repeat: Repeat,
) -> Result<RefreshResponse, Status> {
    let request = RefreshRequest { refresh_token: token.to_owned(), ..Default::default() };
    loop {
        let answer = client.refresh(request.clone()).await.map(tonic::Response::into_inner);
        if repeat == Repeat::Once || !is_not_current(&answer) {
            return answer;
        }
    }
}

/// Creates a session. Repeats the call while the server may not know the latest revocations.
pub async fn create(
    client: &mut Client,
    request: CreateSessionRequest,
) -> Result<CreateSessionResponse, Status> {
    create_with(client, request, Repeat::UntilCurrent).await
}

/// Refreshes a session. Repeats the call while the server may not know the latest revocations.
pub async fn refresh(client: &mut Client, token: &str) -> Result<RefreshResponse, Status> {
    refresh_with(client, token, Repeat::UntilCurrent).await
}

/// Validates a token without demands. Repeats the call while the server may not know the latest
/// revocations.
pub async fn validate(client: &mut Client, token: &str) -> ValidateResponse {
    let request = ValidateRequest { access_token: token.to_owned(), ..Default::default() };
    loop {
        let answer = client.validate(request.clone()).await.map(tonic::Response::into_inner);
        if !is_not_current(&answer) {
            return answer.expect("Validate answers");
        }
    }
}

async fn state(client: &mut Client, session_id: &str) -> SessionState {
    let request = GetSessionRequest { session_id: session_id.to_owned() };
    client
        .get_session(request)
        .await
        .expect("the session exists")
        .into_inner()
        .session
        .unwrap()
        .state()
}
