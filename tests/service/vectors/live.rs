//! A feed that is recorded from a stream of the service, with the answers of the service.

use countersign::clock::Clock;
use countersign::proto::{
    CreateSessionRequest, KeyState, ReauthenticateRequest, RevokeExtent, RevokeKeyRequest,
    RevokeRequest, SessionsTarget, SubjectTarget, SubjectsTarget, reauthenticate_request::Session,
    revoke_request::Target, sessions_target, watch_response::Event,
};
use countersign_test_support::{
    server::{START, Server, SignedIn, at, of_token, request, request_under, revocation, seconds},
    watcher::Watcher,
};
use serde_json::{Value, json};

use super::feed::Feed;

/// The service, a watcher of it, and what the watcher was sent.
struct Recording {
    server: Server,
    watcher: Watcher,
    feed: Feed,
}

impl Recording {
    /// Creates a session, and names its token.
    async fn sign_in(&mut self, name: &str, request: CreateSessionRequest) -> SignedIn {
        let session = self.server.create(request).await.unwrap();
        self.feed.token(name, &session.access);
        session
    }

    /// Records a message. The clocks of the feed stand still, so its first lease is enough.
    fn record(&mut self, response: &countersign::proto::WatchResponse) {
        if !matches!(response.event, Some(Event::Lease(_))) {
            self.feed.receive(response);
        }
        if !response.cursor.is_empty() {
            self.feed.renew();
            self.watcher.renew();
        }
    }

    /// Records everything up to the first lease.
    async fn begin(&mut self) {
        self.feed.open();
        loop {
            let response = self.watcher.next_response().await.unwrap();
            self.record(&response);
            if matches!(response.event, Some(Event::Lease(_))) {
                self.feed.receive(&response);
                break;
            }
        }
        self.feed.check_all(&self.server).await;
    }

    /// Makes a call that revokes, and records what the watcher must confirm before it is answered.
    async fn during(&mut self, call: impl Future<Output = ()> + Send + 'static) {
        let mut call = tokio::spawn(call);
        loop {
            let response = tokio::select! {
                done = &mut call => {
                    done.unwrap();
                    break;
                }
                response = self.watcher.next_response() => response.unwrap(),
            };
            self.record(&response);
        }
        self.feed.check_all(&self.server).await;
    }

    async fn revoke(&mut self, target: Target) {
        self.revoke_by(revocation(target)).await;
    }

    async fn revoke_by(&mut self, request: RevokeRequest) {
        let mut client = self.server.client();
        self.during(async move { drop(client.revoke(request).await.unwrap()) }).await;
    }
}

fn of(tenant: &str, client_id: &str, subject: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        tenant: tenant.to_owned(),
        client_id: client_id.to_owned(),
        ..request(subject)
    }
}

fn of_sessions(tenant: &str, client_id: &str, instant: Option<sessions_target::Instant>) -> Target {
    let place = Some(sessions_target::Where::Tenant(tenant.to_owned()));
    let client_id = client_id.to_owned();
    Target::Sessions(SessionsTarget { r#where: place, client_id, instant })
}

/// Returns the recorded feed.
pub async fn feeds() -> Value {
    let server = Server::start().await;
    let watcher = Watcher::open(server.channel(), vec![]).await.unwrap();
    let feed = Feed::recorded("the revocations of a service, as they were made");
    let mut all = Recording { server, watcher, feed };
    let alice = all.sign_in("alice", of("acme", "web", "alice")).await;
    let phone = all.sign_in("alice's phone", of("acme", "app", "alice")).await;
    let bob = all.sign_in("bob", request_under("strict", "bob")).await;
    all.sign_in("carol", of("", "", "carol")).await;
    all.sign_in("dave", of("acme", "app", "dave")).await;
    let erin = all.sign_in("erin", of("globex", "web", "erin")).await;
    all.sign_in("frank", of("initech", "web", "frank")).await;
    let grace = all.sign_in("grace", of("acme", "", "grace")).await;
    all.sign_in("heidi", of("umbrella", "web", "heidi")).await;
    let ivan = all.sign_in("ivan", of("umbrella", "web", "ivan")).await;
    all.server.revoke(of_token(&ivan.access)).await.unwrap();
    all.server.clock.advance(seconds(20));
    all.feed.advance(all.server.clock.now().since(START));
    all.sign_in("judy", of("umbrella", "web", "judy")).await;
    // Only the revocation of its key stops this token.
    all.sign_in("kim", of("acme", "cli", "kim")).await;
    all.begin().await;

    let token_only = RevokeExtent::TokenOnly.into();
    let of_grace = revocation(Target::Token(grace.access));
    all.revoke_by(RevokeRequest { extent: token_only, ..of_grace }).await;
    all.revoke(Target::SessionId(erin.id())).await;
    // Under this policy a refresh revokes the access token before it.
    let server = all.server.client();
    let (mut client, refresh_token) = (server.clone(), bob.refresh);
    let request = countersign::proto::RefreshRequest { refresh_token, ..Default::default() };
    all.during(async move { drop(client.refresh(request).await.unwrap()) }).await;
    let (mut client, session) = (server, Some(Session::SessionId(alice.id())));
    let request = ReauthenticateRequest { session, ..Default::default() };
    all.during(async move { drop(client.reauthenticate(request).await.unwrap()) }).await;
    all.revoke(Target::Subject(SubjectTarget {
        tenant: "acme".to_owned(),
        subject: "alice".to_owned(),
        except_session_id: phone.id(),
    }))
    .await;
    let subjects = vec!["dave".to_owned(), "alice".to_owned()];
    let tenant = "acme".to_owned();
    all.revoke(Target::Subjects(SubjectsTarget { tenant, subjects })).await;
    all.revoke(of_sessions("initech", "web", None)).await;
    let before = at(all.server.clock.now().minus(seconds(10)));
    let created = sessions_target::Instant::CreatedBefore(whole(before));
    all.revoke(of_sessions("umbrella", "", Some(created))).await;
    let second = prost_types::Timestamp { seconds: before.seconds, nanos: 0 };
    let authenticated = sessions_target::Instant::AuthenticatedBefore(second);
    all.revoke(of_sessions("", "", Some(authenticated))).await;
    all.revoke(Target::Tenant("umbrella".to_owned())).await;
    let (mut client, kid) = (all.server.keys(), all.server.signing(KeyState::Active).await.kid);
    let request = RevokeKeyRequest { kid };
    all.during(async move { drop(client.revoke_key(request).await.unwrap()) }).await;
    json!({ "feeds": [all.feed.end()] })
}

/// Returns an instant in whole milliseconds.
fn whole(at: prost_types::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { nanos: at.nanos / 1_000_000 * 1_000_000, ..at }
}
