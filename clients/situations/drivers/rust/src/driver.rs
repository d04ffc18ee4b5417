//! Does what it is told.

use std::{convert::Infallible, fs, sync::Arc, time::Duration};

use countersign_client::{
    Answer as Verified, Client, Demands, Error, Session, Verifier,
    layer::http::Protect,
    proto::{
        CreateSessionRequest, InactiveReason, RefreshRequest, RevokeRequest, ValidateRequest,
        revoke_request::Target,
    },
    verifier::OnLapse,
};
use http::{Request, Response, header::WWW_AUTHENTICATE};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    Answer,
    clock::MovedClock,
    command::{Command, Connect, GuardedRequest, NewSession, VerifierSettings},
    load::Load,
};

/// The client and the verifier in force.
#[derive(Default)]
pub struct Driver {
    client: Option<Client>,
    verifier: Option<Verifier>,
    clock: Arc<MovedClock>,
    load: Option<Load>,
}

impl Driver {
    /// Does what a command says.
    pub async fn answer(&mut self, command: Command) -> Answer {
        match command {
            Command::Connect(settings) => self.connect(settings),
            Command::Verifier(settings) => self.replace_verifier(settings),
            Command::Ready { within_ms } => {
                let ready = timeout(Duration::from_millis(within_ms), self.verifier()?.ready());
                Ok(json!({ "ready": ready.await.is_ok() }))
            }
            Command::Verify { token, demands } => {
                Ok(verified(&self.verifier()?.verify(&token, &demands.into()).await))
            }
            Command::Guard(request) => self.guard(request).await,
            Command::Create(session) => Ok(create(self.client()?, session).await),
            Command::Refresh { refresh_token } => {
                Ok(refresh(self.client()?, RefreshRequest { refresh_token, ..Default::default() })
                    .await)
            }
            Command::Revoke { token } => {
                let revoked = self.client()?.revoke(revocation(token)).await;
                Ok(revoked.map_or_else(|error| failure(&error), |_| json!({})))
            }
            Command::Validate { token } => Ok(validate(self.client()?, token).await),
            Command::Clock { wall_ms, uptime_ms } => {
                self.clock.advance(wall_ms, uptime_ms);
                Ok(json!({}))
            }
            Command::Load { subject } => {
                let (client, verifier) = (self.client()?.clone(), self.verifier()?.clone());
                self.load = Some(Load::start(client, verifier, subject));
                Ok(json!({}))
            }
            Command::LoadEnd {} => match self.load.take() {
                Some(load) => Ok(load.end().await?),
                None => Err("there is no load".into()),
            },
        }
    }

    fn client(&self) -> Result<&Client, &'static str> {
        self.client.as_ref().ok_or("there is no client")
    }

    fn verifier(&self) -> Result<&Verifier, &'static str> {
        self.verifier.as_ref().ok_or("there is no verifier")
    }

    fn connect(&mut self, settings: Connect) -> Answer {
        (self.client, self.verifier) = (None, None);
        let mut endpoints = settings.endpoints.into_iter();
        let mut builder = Client::builder(endpoints.next().unwrap_or_default());
        for endpoint in endpoints {
            builder = builder.endpoint(endpoint);
        }
        if let Some(key) = settings.api_key {
            builder = builder.api_key(key);
        }
        if let Some(name) = settings.server_name {
            builder = builder.server_name(name);
        }
        if let Some(ca) = settings.ca {
            builder = builder.ca_certificate(fs::read(ca)?);
        }
        if let (Some(certificate), Some(key)) = (settings.certificate, settings.key) {
            builder = builder.client_certificate(fs::read(certificate)?, fs::read(key)?);
        }
        if let Some(deadline) = settings.deadline_ms {
            builder = builder.deadline(Duration::from_millis(deadline));
        }
        if let Some(deadline) = settings.revocation_deadline_ms {
            builder = builder.revocation_deadline(Duration::from_millis(deadline));
        }
        if let Some(timeout) = settings.connect_timeout_ms {
            builder = builder.connect_timeout(Duration::from_millis(timeout));
        }
        Ok(match builder.build() {
            Ok(client) => {
                self.client = Some(client);
                json!({})
            }
            Err(_) => json!({ "refused": true }),
        })
    }

    fn replace_verifier(&mut self, settings: VerifierSettings) -> Answer {
        let (client, clock) = (self.client()?.clone(), self.clock.clone());
        self.verifier = Some(match &*settings.mode {
            "remote" => Verifier::remote(client),
            "local" => {
                let on_lapse = if settings.refuse { OnLapse::Refuse } else { OnLapse::Validate };
                Verifier::local(client).on_lapse(on_lapse).clock(clock).start()
            }
            "local_unwatched" => {
                Verifier::local_unwatched(client, settings.issuer).clock(clock).start()
            }
            other => return Err(format!("the mode {other:?} is unknown").into()),
        });
        Ok(json!({}))
    }

    async fn guard(&self, asked: GuardedRequest) -> Answer {
        let demands = Demands::from(asked.demands);
        let mut protect = Protect::new(self.verifier()?.clone(), demands);
        if let Some(cookie) = asked.cookie {
            protect = protect.cookie(cookie);
        }
        if let Some(realm) = asked.realm {
            protect = protect.realm(realm);
        }
        let application = service_fn(async |request: Request<()>| {
            let session = request.extensions().get::<Session>();
            let subject = session.map(|session| session.subject().to_owned());
            Ok::<_, Infallible>(Response::new(subject.unwrap_or_default()))
        });
        let mut request = Request::get("/");
        for (name, value) in asked.headers {
            request = request.header(name, value);
        }
        let response = protect.layer(application).oneshot(request.body(())?).await?;
        let mut answer = Map::new();
        answer.insert("status".to_owned(), response.status().as_u16().into());
        if response.status().is_success() {
            answer.insert("subject".to_owned(), response.body().as_str().into());
        } else if let Some(challenge) = response.headers().get(WWW_AUTHENTICATE) {
            answer.insert("challenge".to_owned(), challenge.to_str()?.into());
        }
        Ok(answer.into())
    }
}

/// Returns the answer of a verifier as the protocol has it.
fn verified(answer: &Verified) -> Value {
    match answer {
        Verified::Active(session) => json!({ "answer": "ACTIVE", "subject": session.subject() }),
        Verified::Inactive(reason) => {
            json!({ "answer": "INACTIVE", "reason": reason.as_str().to_uppercase() })
        }
        Verified::Unknown(_) => json!({ "answer": "UNKNOWN" }),
    }
}

async fn create(client: &Client, session: NewSession) -> Value {
    let created = client.create_session(CreateSessionRequest {
        subject: session.subject,
        scopes: session.scopes,
        tenant: session.tenant,
        audience: session.audience,
        ..Default::default()
    });
    match created.await {
        Ok(created) => {
            let tokens = created.tokens.unwrap_or_default();
            json!({
                "session_id": created.session.unwrap_or_default().session_id,
                "access_token": tokens.access_token,
                "refresh_token": tokens.refresh_token,
            })
        }
        Err(error) => failure(&error),
    }
}

async fn refresh(client: &Client, request: RefreshRequest) -> Value {
    match client.refresh(request).await {
        Ok(refreshed) => {
            let tokens = refreshed.tokens.unwrap_or_default();
            json!({ "access_token": tokens.access_token, "refresh_token": tokens.refresh_token })
        }
        Err(error) => failure(&error),
    }
}

/// Returns a request to revoke the session of a token.
pub fn revocation(token: String) -> RevokeRequest {
    RevokeRequest { target: Some(Target::Token(token)), ..Default::default() }
}

async fn validate(client: &Client, token: String) -> Value {
    match client.validate(ValidateRequest { access_token: token, ..Default::default() }).await {
        Ok(answer) if answer.active => json!({ "answer": "ACTIVE", "subject": answer.subject }),
        Ok(answer) => {
            let name = InactiveReason::as_str_name(&answer.inactive_reason());
            let reason = name.trim_start_matches("INACTIVE_REASON_");
            json!({ "answer": "INACTIVE", "reason": reason })
        }
        Err(error) => failure(&error),
    }
}

/// Returns the error of a call as the protocol has it.
fn failure(error: &Error) -> Value {
    let reason = match error.reason().as_str() {
        "" => upper_snake_case(&format!("{:?}", error.code())),
        reason => reason.to_owned(),
    };
    match error.retry_after() {
        Some(wait) => json!({ "error": reason, "retry_after_ms": wait.as_millis() as u64 }),
        None => json!({ "error": reason }),
    }
}

/// Returns the name of a code of gRPC as the protocol has it.
fn upper_snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            snake.push('_');
        }
        snake.extend(letter.to_uppercase());
    }
    snake
}
