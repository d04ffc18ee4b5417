//! Admits calls, passes them to their services, and ends them at their deadlines.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, service::Routes};
use tower::Service;

use super::{
    audit_service::AuditRecords,
    call_kinds::{self, end_code},
    deadline,
    ext_authz::ExtAuthz,
    key_service::Keys,
    methods::{Access, BATCH_VALIDATE, CHECK, IMPORT_SESSIONS, Method, WATCH},
    overload::{
        activity::{Activity, ActivityGuard},
        admission::{Admitted, CallContext, admit},
        answer::Answer,
        refusals::{RefusalCache, take_rest},
        request_body::RequestBody,
        spawner::Spawner,
        unsent::{Reservation, UnsentBytes},
    },
    session_service::Sessions,
    status::{SizeLimit, with_reason},
    watch::Revocations,
};
use crate::{
    authority::{audit::Audit, ready::Ready},
    callers::{Callers, Refusal},
    calls::{CallObserver, CallRecord, ConnectionObserver},
    domain::call_id::CallId,
    gateway::Gateway,
    net::connection::Peer,
    proto::{
        audit_service_server::AuditServiceServer, key_service_server::KeyServiceServer,
        revocation_service_server::RevocationServiceServer,
        session_service_server::SessionServiceServer,
    },
};

/// The limits of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// The maximum size of a request, in bytes.
    pub request_bytes: usize,
    /// The maximum size of a request to BatchValidate, ImportSessions or Check, in bytes. A request
    /// to Check may carry a whole HTTP request.
    pub batch_bytes: usize,
    /// The maximum size of an answer, in bytes.
    pub answer_bytes: usize,
    /// The maximum size of all unsent answers together, in bytes.
    pub unsent_bytes: usize,
    /// The maximum size of the unsent answers of one connection together, in bytes.
    pub unsent_bytes_of_connection: usize,
    /// The longest time that a call may take, whatever deadline its caller sets.
    pub time: Duration,
}

/// The content type of a call, without the suffix that names the encoding of messages.
const GRPC: &[u8] = b"application/grpc";

/// The future of a response by a service.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The future of the response to the client. The body counts as unsent until it has been sent.
type ToAnswer = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

/// The parts that the services need.
pub struct Parts {
    /// The use cases, once they can be called.
    pub ready: Ready,
    /// The known callers.
    pub callers: Arc<Callers>,
    /// The audit, which records denied calls.
    pub audit: Audit,
    /// Decides whether requests of gateways may pass.
    pub gateway: Arc<Gateway>,
    /// Observes the calls.
    pub observer: Arc<CallObserver>,
}

/// The services of the gRPC port, and the state that they share.
pub struct Services {
    sessions: SessionServiceServer<Sessions>,
    /// The session service with the higher limit on the size of requests, for BatchValidate and
    /// ImportSessions.
    batches: SessionServiceServer<Sessions>,
    keys: KeyServiceServer<Keys>,
    audits: AuditServiceServer<AuditRecords>,
    revocations: RevocationServiceServer<Revocations>,
    /// The service for Envoy.
    gateways: AuthorizationServer<ExtAuthz>,
    /// Health, and reflection if it is enabled.
    others: Routes,
    callers: Arc<Callers>,
    audit: Audit,
    observer: Arc<CallObserver>,
    unsent: Arc<UnsentBytes>,
    unsent_bytes_of_connection: usize,
    longest: Duration,
    request_limit: SizeLimit,
    /// The limit for calls whose messages may be larger. The server also reads at most this many
    /// bytes of the rest of a message that is dropped.
    batch_limit: SizeLimit,
}

impl Services {
    /// Creates the services. `others` are health, and reflection if it is enabled.
    pub fn new(parts: Parts, others: Routes, limits: CallLimits) -> Self {
        let Parts { ready, callers, audit, gateway, observer } = parts;
        let request_limit =
            SizeLimit { setting: "limits.max_request_bytes", bytes: limits.request_bytes };
        let sessions = Arc::new(Sessions::new(ready.clone(), callers.clone(), limits.answer_bytes));
        let sized = |bytes| {
            SessionServiceServer::from_arc(sessions.clone()).max_decoding_message_size(bytes)
        };
        Self {
            sessions: sized(limits.request_bytes),
            batches: sized(limits.batch_bytes),
            gateways: AuthorizationServer::new(ExtAuthz::new(ready.clone(), gateway))
                .max_decoding_message_size(limits.batch_bytes),
            keys: KeyServiceServer::new(Keys(ready.clone()))
                .max_decoding_message_size(limits.request_bytes),
            audits: AuditServiceServer::new(AuditRecords {
                ready: ready.clone(),
                max_answer_bytes: limits.answer_bytes,
            })
            .max_decoding_message_size(limits.request_bytes),
            revocations: RevocationServiceServer::new(Revocations {
                ready,
                callers: callers.clone(),
                size_limit: request_limit,
            })
            .max_decoding_message_size(limits.request_bytes),
            others: others.prepare(),
            callers,
            audit,
            observer,
            unsent: Arc::new(UnsentBytes::of_all(limits.unsent_bytes)),
            unsent_bytes_of_connection: limits.unsent_bytes_of_connection,
            longest: limits.time,
            request_limit,
            batch_limit: SizeLimit { setting: "limits.max_batch_bytes", bytes: limits.batch_bytes },
        }
    }

    /// Checks that a request is a gRPC call (gRPC over HTTP/2, "Requests"). A web page can make a
    /// browser send requests of other content types, which would carry the client certificate of
    /// the user.
    fn is_call<B>(request: &Request<B>) -> Result<(), StatusCode> {
        if request.method() != http::Method::POST {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let content = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        match content.split_at_checked(GRPC.len()) {
            Some((start, [] | [b'+' | b';', ..])) if start.eq_ignore_ascii_case(GRPC) => Ok(()),
            _ => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        }
    }

    /// Returns the limit on the size of a call's message.
    fn size_limit(&self, path: &str) -> SizeLimit {
        match path {
            BATCH_VALIDATE | IMPORT_SESSIONS | CHECK => self.batch_limit,
            _ => self.request_limit,
        }
    }

    /// Passes a call to its service.
    fn hand_over(&self, request: Request<RequestBody<Incoming>>) -> Answering {
        let path = request.uri().path();
        if path == BATCH_VALIDATE || path == IMPORT_SESSIONS {
            self.batches.clone().call(request)
        } else if path.starts_with("/countersign.v1.SessionService/") {
            self.sessions.clone().call(request)
        } else if path.starts_with("/countersign.v1.KeyService/") {
            self.keys.clone().call(request)
        } else if path.starts_with("/countersign.v1.AuditService/") {
            self.audits.clone().call(request)
        } else if path == WATCH {
            self.revocations.clone().call(request)
        } else if path == CHECK {
            self.gateways.clone().call(request)
        } else {
            Box::pin(self.others.clone().call(request))
        }
    }
}

/// The service of one connection.
pub struct ConnectionService {
    services: Arc<Services>,
    /// The client.
    peer: Peer,
    activity: Arc<Activity>,
    spawner: Spawner,
    refusals: RefusalCache,
    observer: ConnectionObserver,
    unsent: Arc<UnsentBytes>,
}

impl ConnectionService {
    /// Creates the service for a client. The service reports its calls to `activity`, and `spawner`
    /// runs its answers.
    pub fn new(
        services: Arc<Services>,
        peer: Peer,
        activity: Arc<Activity>,
        spawner: Spawner,
    ) -> Self {
        let unsent = Arc::new(UnsentBytes::of_connection(
            services.unsent.clone(),
            services.unsent_bytes_of_connection,
        ));
        let observer = ConnectionObserver::new(services.observer.clone());
        let refusals = RefusalCache::default();
        Self { services, peer, activity, spawner, refusals, observer, unsent }
    }

    /// Records a denied call in the audit. The record names the operation if it exists, and never
    /// the path that the caller sent.
    fn record(&self, refusal: &Refusal, access: Access, call: Option<&CallId>) {
        let Some(who) = refusal.denied_caller() else { return };
        let asked = match access {
            Access::Allowed(operation) => operation.as_str(),
            Access::Known | Access::Open => "reflection, or a call that does not exist",
        };
        self.services.audit.denied(who, self.peer.address, call.cloned(), asked);
    }

    /// Answers a call that is not passed to a service.
    fn refuse(
        &self,
        request: Request<RequestBody<Incoming>>,
        mut answer: Response<Body>,
        guard: ActivityGuard,
        mut record: CallRecord,
    ) -> ToAnswer {
        self.spawner.run_next_inline();
        let reserved = Reservation::new(self.unsent.clone());
        call_kinds::end(&mut record, answer.headers_mut());
        let (answer, mut message) =
            (answer.map(|body| Answer::new(body, guard, record, reserved)), request.into_body());
        Box::pin(async move {
            take_rest(&mut message).await;
            Ok(answer)
        })
    }
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = ToAnswer;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request =
            request.map(|body| RequestBody::new(body, self.services.batch_limit.bytes));
        let guard = self.activity.begin();
        let method = Method::of(request.uri().path());
        // A client that goes away before the end of the answer has cancelled the call.
        let cancelled = end_code(Code::Cancelled);
        let mut record =
            self.observer.begin(call_kinds::kind(&method), cancelled, request.headers());
        if let Err(status) = Services::is_call(&request) {
            let mut answer = Response::default();
            *answer.status_mut() = status;
            // Clients map these HTTP statuses to this code ("HTTP to gRPC Status Code Mapping").
            record.set_code(end_code(Code::Unknown));
            return self.refuse(request, answer, guard, record);
        }
        let admitted = admit(&self.services.callers, method.access, request.headers(), &self.peer);
        let Admitted { mut actor, permit } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.record(&refusal, method.access, record.id());
                return self.refuse(request, self.refusals.answer(refusal), guard, record);
            }
        };
        if let Err(too_many) = self.unsent.check() {
            self.services.callers.refused().overloaded.inc();
            return self.refuse(request, Status::from(too_many).into_http(), guard, record);
        }
        if let Some(actor) = &mut actor {
            actor.call = record.id().cloned();
        }
        record.admit(actor.as_ref(), request.headers());
        request.extensions_mut().insert(CallContext { actor, unsent: self.unsent.clone() });
        let unsent = self.unsent.clone();
        let span = deadline::span(request.headers())
            .map_or(self.services.longest, |span| span.min(self.services.longest));
        let size_limit = self.services.size_limit(request.uri().path());
        let answering = record.observe(self.services.hand_over(request));
        Box::pin(async move {
            let exceeded = |_| {
                Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http())
            };
            let answered = timeout(span, answering).await.unwrap_or_else(exceeded)?;
            let mut answer = with_reason(answered, size_limit);
            drop(permit);
            call_kinds::end(&mut record, answer.headers_mut());
            let (mut head, body) = answer.into_parts();
            let reserved = head.extensions.remove::<Arc<Reservation>>().and_then(Arc::into_inner);
            let reserved = reserved.unwrap_or_else(|| Reservation::new(unsent));
            Ok(Response::from_parts(head, Answer::new(body, guard, record, reserved)))
        })
    }
}
