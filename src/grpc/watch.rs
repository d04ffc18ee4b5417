//! `countersign.v1.RevocationService`: converts the messages of watchers.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{
    Stream,
    stream::{self, BoxStream, StreamExt},
};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::{
    common::{duration, timestamp},
    overload::admission::actor,
    status::{SizeLimit, stream_error},
};
use crate::{
    authority::{
        Authority,
        error::AuthorityError,
        ready::Ready,
        watch::{Batch, Cursor, Event, Message, Rules, Watch, revocation},
    },
    callers::Callers,
    domain::{
        caller::Actor,
        cut_off::{Basis, CutOff, CutOffKey},
        revocation::Revoked,
        time::Timestamp,
    },
    proto::{
        self,
        revocation_service_server::RevocationService,
        revoked_sessions::{Instant, Where},
        watch_request, watch_response,
    },
};

/// The time within which the first message must arrive.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The service. It accepts calls as soon as the process has started. Until the authority is ready,
/// all of them fail with `NOT_CURRENT`.
#[derive(Debug)]
pub struct Revocations {
    /// The use cases, once they can be called.
    pub ready: Ready,
    /// The known callers. The stream of a caller whose registration changes ends.
    pub callers: Arc<Callers>,
    /// The limit on the size of a message.
    pub size_limit: SizeLimit,
}

#[tonic::async_trait]
impl RevocationService for Revocations {
    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<proto::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let by = actor(&request)?.clone();
        let connection = WatchCall {
            authority: self.ready.shared()?,
            callers: self.callers.clone(),
            size_limit: self.size_limit,
            requests: request.into_inner(),
            by,
            watch: None,
        };
        Ok(Response::new(connection.responses().boxed()))
    }
}

/// A call to Watch.
struct WatchCall {
    authority: Arc<Authority>,
    callers: Arc<Callers>,
    size_limit: SizeLimit,
    requests: Streaming<proto::WatchRequest>,
    by: Actor,
    /// The stream of the watcher, once its first message has arrived.
    watch: Option<Watch>,
}

impl fmt::Debug for WatchCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchCall").field("by", &self.by).finish_non_exhaustive()
    }
}

impl WatchCall {
    /// Returns the responses. The stream ends after an error, or when the watcher ends the call.
    fn responses(self) -> impl Stream<Item = Result<proto::WatchResponse, Status>> {
        stream::unfold(Some(self), async |call| {
            let mut call = call?;
            match call.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(call))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    /// Returns the next response; `None` once the watcher has ended its side of the call.
    async fn next(&mut self) -> Result<Option<proto::WatchResponse>, Status> {
        if self.watch.is_none() && !self.start().await? {
            return Ok(None);
        }
        let Some(watch) = &mut self.watch else { return Ok(None) };
        loop {
            tokio::select! {
                request = self.requests.message() => {
                    let request = request.map_err(|error| stream_error(error, self.size_limit))?;
                    let Some(request) = request else { return Ok(None) };
                    if !self.callers.is_in_force(&self.by.caller) {
                        // The next call is admitted, or refused, by the new configuration.
                        return Err(AuthorityError::NotCurrent.into());
                    }
                    renew(watch, request)?;
                }
                message = watch.next() => return Ok(Some(response(message?))),
            }
        }
    }

    /// Reads the first message, and opens the stream. Returns false if there is no message.
    async fn start(&mut self) -> Result<bool, Status> {
        let first = timeout(START_TIMEOUT, self.requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("there was no first message in time"))?
            .map_err(|error| stream_error(error, self.size_limit))?;
        let Some(first) = first else { return Ok(false) };
        let Some(watch_request::Message::Start(start)) = first.message else {
            return Err(AuthorityError::field("message", "must be start at first").into());
        };
        let cursor = cursor("start.cursor", &start.cursor)?;
        self.watch = Some(self.authority.watch(&self.by, cursor).await?);
        Ok(true)
    }
}

fn renew(watch: &mut Watch, request: proto::WatchRequest) -> Result<(), AuthorityError> {
    let Some(watch_request::Message::Renewal(renewal)) = request.message else {
        return Err(AuthorityError::field("message", "must be renewal after the first one"));
    };
    watch.renew(renewal.number, cursor("renewal.applied", &renewal.applied)?)
}

fn cursor(field: &str, bytes: &[u8]) -> Result<Option<Cursor>, AuthorityError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let malformed = || AuthorityError::field(field, "must be a cursor as the service sent it");
    Cursor::read(bytes).map(Some).ok_or_else(malformed)
}

fn response(Message { cursor, event }: Message) -> proto::WatchResponse {
    let event = match event {
        Event::Reset => watch_response::Event::Reset(proto::WatchReset {}),
        Event::Rules(rules) => watch_response::Event::Rules(watch_rules(&rules)),
        Event::Keys { jwks, revoked } => {
            watch_response::Event::Keys(proto::WatchKeys { jwks, revoked })
        }
        Event::Revocations(entries) => watch_response::Event::Revocations(revocations(entries)),
        Event::Batches(batches) => watch_response::Event::Revocations(encoded(&batches)),
        Event::Lease { number, valid_for, expired_up_to, now } => {
            watch_response::Event::Lease(proto::WatchLease {
                number,
                valid_for: Some(duration(valid_for)),
                expired_up_to: Some(timestamp(expired_up_to)),
                now: Some(timestamp(now)),
            })
        }
    };
    let cursor = cursor.map(|cursor| cursor.bytes().to_vec()).unwrap_or_default();
    proto::WatchResponse { cursor, event: Some(event) }
}

fn watch_rules(rules: &Rules) -> proto::WatchRules {
    let Rules { issuer, max_lifetime, leeway, reach, lease_margin } = rules;
    let names = |names: Option<Vec<String>>| names.unwrap_or_default();
    proto::WatchRules {
        issuer: issuer.clone(),
        max_lifetime: Some(duration(*max_lifetime)),
        leeway: Some(duration(*leeway)),
        tenants: names(
            reach
                .tenants
                .as_ref()
                .map(|tenants| tenants.iter().map(|tenant| tenant.to_string()).collect()),
        ),
        audiences: names(
            reach
                .audiences
                .as_ref()
                .map(|audiences| audiences.iter().map(|audience| audience.to_string()).collect()),
        ),
        lease_margin: Some(duration(*lease_margin)),
    }
}

fn encoded(batches: &[Arc<Batch>]) -> proto::WatchRevocations {
    let encode = |batch: &Arc<Batch>| {
        batch.encoded(|entries| revocations(entries.iter().map(revocation)).encode_to_vec().into())
    };
    let encoded = batches.iter().map(encode).collect();
    proto::WatchRevocations { encoded, ..proto::WatchRevocations::default() }
}

fn revocations(entries: impl IntoIterator<Item = (Revoked, Timestamp)>) -> proto::WatchRevocations {
    let mut revocations = proto::WatchRevocations::default();
    for (revoked, expires_at) in entries {
        let expires_at = Some(timestamp(expires_at));
        let id = match revoked {
            Revoked::Session(id) => *id.bytes(),
            Revoked::Token(id) => *id.bytes(),
            Revoked::Sessions { key, cut_off } => {
                let sessions = revoked_sessions(&key, cut_off);
                revocations.sessions.push(proto::RevokedSessions { expires_at, ..sessions });
                continue;
            }
        };
        revocations.ids.push(proto::RevokedId { id: id.to_vec(), expires_at });
    }
    revocations
}

fn revoked_sessions(key: &CutOffKey, cut_off: CutOff) -> proto::RevokedSessions {
    let scope = key.scope();
    let up_to = timestamp(cut_off.up_to);
    proto::RevokedSessions {
        r#where: Some(match scope.tenant() {
            Some(tenant) => Where::Tenant(tenant.to_string()),
            None => Where::AllTenants(true),
        }),
        subject: scope.subject().map(ToString::to_string).unwrap_or_default(),
        client_id: scope.client_id().map(ToString::to_string).unwrap_or_default(),
        instant: Some(match key.basis() {
            Basis::Creation => Instant::CreatedUpTo(up_to),
            Basis::Authentication => Instant::AuthenticatedUpTo(up_to),
        }),
        spared_session_id: cut_off.spared.map(|id| id.to_string()).unwrap_or_default(),
        expires_at: None,
    }
}
