//! Calls to the service, with deadlines and repetitions.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tracing::{Instrument, field::Empty};
use uuid::Uuid;

use crate::{
    builder::ClientBuilder,
    endpoints::{Endpoints, Replica},
    error::{Error, Reason},
    proto::{
        self, audit_service_client::AuditServiceClient, key_service_client::KeyServiceClient,
        revocation_service_client::RevocationServiceClient,
        session_service_client::SessionServiceClient,
    },
};

/// The largest answer that is read, in bytes. The service limits its answers itself
/// (`limits.max_answer_bytes`, 4 MiB by default).
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The package of the services.
const PACKAGE: &str = "countersign.v1";

/// A client of the service. A clone shares the connections.
///
/// Every call has a deadline. A call that a replica cannot answer is repeated at another replica
/// until the deadline, unless it may have taken effect and must not take effect twice.
#[derive(Clone)]
pub struct Client {
    endpoints: Arc<Endpoints>,
    authorization: Option<MetadataValue<Ascii>>,
    settings: Settings,
}

/// The settings of calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) revocation_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(1), revocation_deadline: Duration::from_secs(5) }
    }
}

/// The conditions under which a call is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// The call has the same effect however often it is made.
    Always,
    /// The call is repeated only if the service has certainly done nothing.
    IfRefused,
}

/// The deadlines of calls.
#[derive(Clone, Copy, Debug)]
enum Deadline {
    Usual,
    Revocation,
}

/// A call, besides its request.
#[derive(Clone, Copy, Debug)]
struct Call {
    service: &'static str,
    method: &'static str,
    repeat: Repeat,
    deadline: Deadline,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints.len())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Defines calls that need nothing but what [`Client::call`] does.
macro_rules! calls {
    ($($(#[$doc:meta])+
        $service:ident $name:literal $method:ident($request:ident) -> $response:ident,
        $repeat:ident, $deadline:ident;)+) => {
        impl Client {
            $($(#[$doc])+
            pub async fn $method(
                &self,
                request: proto::$request,
            ) -> Result<proto::$response, Error> {
                let call = Call {
                    service: stringify!($service),
                    method: $name,
                    repeat: Repeat::$repeat,
                    deadline: Deadline::$deadline,
                };
                self.call(call, request, |channel, request| async move {
                    calls!(@client $service)(channel)
                        .max_decoding_message_size(MAX_ANSWER_BYTES)
                        .$method(request)
                        .await
                })
                .await
            })+
        }
    };
    (@client SessionService) => { SessionServiceClient::new };
    (@client KeyService) => { KeyServiceClient::new };
    (@client AuditService) => { AuditServiceClient::new };
}

calls! {
    /// Exchanges a refresh token for the next pair of tokens.
    ///
    /// The call is repeated only if the service has certainly not exchanged the token. After
    /// another error, exchange the same refresh token again: within the grace of its policy, it
    /// yields the same tokens.
    SessionService "Refresh" refresh(RefreshRequest) -> RefreshResponse, IfRefused, Usual;
    /// Changes data of a live session. With an etag, the call is not repeated once it may have
    /// taken effect.
    SessionService "UpdateSession" update_session(UpdateSessionRequest) -> UpdateSessionResponse,
        IfRefused, Revocation;
    /// Takes over live sessions of another system.
    SessionService "ImportSessions" import_sessions(ImportSessionsRequest)
        -> ImportSessionsResponse, Always, Revocation;
    /// Checks whether an access token is active. A [`Verifier`](crate::Verifier) has a simpler
    /// answer, and can do it without a call.
    SessionService "Validate" validate(ValidateRequest) -> ValidateResponse, Always, Usual;
    /// Validates up to 256 tokens in one call.
    SessionService "BatchValidate" batch_validate(BatchValidateRequest) -> BatchValidateResponse,
        Always, Usual;
    /// Ends sessions, or makes a single access token inactive. Once this has returned `Ok`, no
    /// replica and no watcher accepts a revoked token any more.
    SessionService "Revoke" revoke(RevokeRequest) -> RevokeResponse, Always, Revocation;
    /// Lists revocations of many sessions.
    SessionService "ListRevocations" list_revocations(ListRevocationsRequest)
        -> ListRevocationsResponse, Always, Usual;
    /// Returns one session.
    SessionService "GetSession" get_session(GetSessionRequest) -> GetSessionResponse, Always, Usual;
    /// Lists sessions of a tenant.
    SessionService "ListSessions" list_sessions(ListSessionsRequest) -> ListSessionsResponse,
        Always, Usual;
    /// Counts sessions of a tenant.
    SessionService "CountSessions" count_sessions(CountSessionsRequest) -> CountSessionsResponse,
        Always, Usual;
    /// Returns the public keys that verify access tokens.
    KeyService "GetJwks" get_jwks(GetJwksRequest) -> GetJwksResponse, Always, Usual;
    /// Lists all keys.
    KeyService "ListKeys" list_keys(ListKeysRequest) -> ListKeysResponse, Always, Usual;
    /// Makes the pending key active.
    KeyService "RotateKey" rotate_key(RotateKeyRequest) -> RotateKeyResponse, IfRefused, Usual;
    /// Revokes a key. Once this has returned `Ok`, no replica and no watcher accepts any token of
    /// that key.
    KeyService "RevokeKey" revoke_key(RevokeKeyRequest) -> RevokeKeyResponse, Always, Revocation;
    /// Lists records of the audit.
    AuditService "ListAudit" list_audit(ListAuditRequest) -> ListAuditResponse, Always, Usual;
}

impl Client {
    /// Begins the settings of a client of this replica, such as `https://sessions.example:50051`.
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(endpoint.into())
    }

    pub(crate) fn new(
        endpoints: Arc<Endpoints>,
        authorization: Option<MetadataValue<Ascii>>,
        settings: Settings,
    ) -> Self {
        Self { endpoints, authorization, settings }
    }

    /// Starts a session for a user whom the caller has authenticated.
    ///
    /// If the request has no request id, it gets one, so that a repetition by this method yields the
    /// same session. To make a later call safe too, set a request id of your own.
    pub async fn create_session(
        &self,
        mut request: proto::CreateSessionRequest,
    ) -> Result<proto::CreateSessionResponse, Error> {
        with_id(&mut request.request_id);
        let call = Call {
            service: "SessionService",
            method: "CreateSession",
            repeat: Repeat::Always,
            deadline: Deadline::Usual,
        };
        self.call(call, request, |channel, request| async move {
            SessionServiceClient::new(channel).create_session(request).await
        })
        .await
    }

    /// Records that the user of a session has authenticated again. No earlier token of the session
    /// is accepted any more.
    ///
    /// The request gets a request id as in [`Client::create_session`].
    pub async fn reauthenticate(
        &self,
        mut request: proto::ReauthenticateRequest,
    ) -> Result<proto::ReauthenticateResponse, Error> {
        with_id(&mut request.request_id);
        let call = Call {
            service: "SessionService",
            method: "Reauthenticate",
            repeat: Repeat::Always,
            deadline: Deadline::Revocation,
        };
        self.call(call, request, |channel, request| async move {
            SessionServiceClient::new(channel).reauthenticate(request).await
        })
        .await
    }

    /// Makes a call, and repeats it at other replicas until its deadline.
    async fn call<Q, R, F, A>(&self, call: Call, request: Q, send: F) -> Result<R, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let span = tracing::debug_span!(
            "call",
            otel.name = format_args!("{PACKAGE}.{}/{}", call.service, call.method),
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = format_args!("{PACKAGE}.{}", call.service),
            rpc.method = call.method,
            rpc.grpc.status_code = Empty,
        );
        let ends = Instant::now()
            + match call.deadline {
                Deadline::Usual => self.settings.deadline,
                Deadline::Revocation => self.settings.revocation_deadline,
            };
        let mut failed = 0;
        // No replica has this number.
        let last = AtomicUsize::new(usize::MAX);
        let calling = (|| self.attempt(request.clone(), ends, &last, &send))
            .retry(backoff())
            .when(|error: &Error| may_repeat(error, call.repeat))
            .adjust(|error, delay| {
                failed += 1;
                self.delay(error, failed, delay?, ends)
            });
        let answer = calling.instrument(span.clone()).await;
        let code = answer.as_ref().err().map_or(Code::Ok, Error::code);
        span.record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            span.record("otel.status_code", "ERROR");
        }
        answer
    }

    /// Makes an attempt at another replica than the `last` one, if there is another.
    async fn attempt<Q, R, F, A>(
        &self,
        message: Q,
        ends: Instant,
        last: &AtomicUsize,
        send: &F,
    ) -> Result<R, Error>
    where
        F: Fn(Channel, Request<Q>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let Some(replica) = self.endpoints.next(Some(last.load(Ordering::Relaxed))) else {
            return Err(Error::deadline_exceeded());
        };
        last.store(replica.number(), Ordering::Relaxed);
        let mut request = self.request(message);
        request.set_timeout(ends.saturating_duration_since(Instant::now()));
        match timeout_at(ends, send(replica.channel(), request)).await {
            Ok(Ok(response)) => {
                self.endpoints.trust(replica);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                let error = Error::from(status);
                self.note(replica, &error);
                Err(error)
            }
            Err(_) => {
                self.endpoints.avoid(replica);
                Err(Error::deadline_exceeded())
            }
        }
    }

    /// Keeps in mind that a replica has failed, or that it works.
    fn note(&self, replica: &Replica, error: &Error) {
        let has_failed = matches!(
            error.reason(),
            Reason::Unreachable
                | Reason::NotCurrent
                | Reason::StoreUnavailable
                | Reason::Overloaded
                | Reason::DeadlineExceeded
        );
        match has_failed {
            true => self.endpoints.avoid(replica),
            false => self.endpoints.trust(replica),
        }
    }

    /// Returns the time to wait before a call is repeated; `None` if there is no time left.
    fn delay(
        &self,
        error: &Error,
        failed: usize,
        delay: Duration,
        ends: Instant,
    ) -> Option<Duration> {
        // Another replica may answer at once. The wait that a replica asks for is for itself, except
        // that an overloaded service must get fewer calls.
        let is_elsewhere = failed < self.endpoints.len() && *error.reason() != Reason::Overloaded;
        let asked = error.retry_after().filter(|_| !is_elsewhere).unwrap_or_default();
        let delay = delay.max(asked);
        (Instant::now() + delay < ends).then_some(delay)
    }

    /// Creates a request with the credentials of this client, and the trace that it belongs to.
    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        #[cfg(feature = "opentelemetry")]
        crate::telemetry::inject_context(request.metadata_mut());
        request
    }

    /// Returns the number of replicas.
    pub(crate) fn replicas(&self) -> usize {
        self.endpoints.len()
    }

    /// Prefers other replicas for a while, because the stream of this one has ended.
    pub(crate) fn avoid(&self, replica: usize) {
        self.endpoints.avoid_number(replica);
    }

    /// Opens a connection of its own to the next replica, and calls Watch. Such a connection is not
    /// shared, so that one that has died is given up with the stream. Returns the stream, and the
    /// number of the replica.
    pub(crate) async fn watch(
        &self,
        requests: impl tokio_stream::Stream<Item = proto::WatchRequest> + Send + 'static,
    ) -> Result<(tonic::Streaming<proto::WatchResponse>, usize), Error> {
        let Some(replica) = self.endpoints.next(None) else {
            return Err(Error::deadline_exceeded());
        };
        let opened = async {
            let connected = replica.endpoint().connect().await;
            let channel = connected.map_err(|error| Status::from_error(error.into()))?;
            RevocationServiceClient::new(channel)
                .max_decoding_message_size(MAX_ANSWER_BYTES)
                .watch(self.request(requests))
                .await
        };
        let ends = Instant::now() + self.settings.deadline;
        let opened = timeout_at(ends, opened).await.map_err(|_| Error::deadline_exceeded());
        match opened.and_then(|opened| opened.map_err(Error::from)) {
            Ok(response) => {
                self.endpoints.trust(replica);
                Ok((response.into_inner(), replica.number()))
            }
            Err(error) => {
                self.note(replica, &error);
                Err(error)
            }
        }
    }
}

/// Sets a random request id, unless there is one.
fn with_id(request_id: &mut String) {
    if request_id.is_empty() {
        *request_id = Uuid::new_v4().to_string();
    }
}

/// The delays between the repetitions of a call. The deadline ends them.
fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_millis(500))
        .with_jitter()
        .without_max_times()
}

fn may_repeat(error: &Error, repeat: Repeat) -> bool {
    let has_effect_once = repeat == Repeat::Always || error.is_refused();
    error.is_temporary() && has_effect_once && *error.reason() != Reason::KeyTooNew
}
