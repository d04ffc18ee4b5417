//! Tests of calls: deadlines, repetitions at other replicas, errors, and credentials.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::Router;
use countersign_client::{
    BuildError, Client, Demands, Error, Reason, Verifier,
    proto::{GetSessionRequest, ListSessionsRequest, RefreshRequest},
};
use countersign_test_support::certificates::Certificates;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Status,
    body::Body,
    service::Routes,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Service, ServiceExt};

use crate::site::{Site, caller, check, of_token, request, sign_in};

/// A server in front of a service, which may answer otherwise.
struct Front {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Front {
    /// Starts a server. `answer` gets the number of each call, the call, and the service.
    async fn start<A>(
        site: &Site,
        answer: impl Fn(usize, Request<Body>, Channel) -> A + Clone + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let channel = Endpoint::from_shared(site.url()).unwrap().connect_lazy();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        let service = tower::service_fn(move |request: axum::extract::Request| {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let answering = answer(number, request.map(Body::new), channel.clone());
            async move { Ok::<_, Infallible>(answering.await.map(axum::body::Body::new)) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Routes::from(Router::new().fallback_service(service));
        let server = Server::builder().add_routes(routes);
        let serving = tokio::spawn(async move {
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self { address, calls, _serving: AbortOnDropHandle::new(serving) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn forward(request: Request<Body>, mut channel: Channel) -> Response<Body> {
    channel.ready().await.unwrap().call(request).await.unwrap()
}

fn refusal(code: Code, reason: &str, retry: Option<Duration>) -> Response<Body> {
    let mut details = ErrorDetails::with_error_info(reason, "countersign", HashMap::new());
    details.set_retry_info(retry);
    Status::with_error_details(code, "refused by a test", details).into_http()
}

async fn sessions(client: &Client) -> usize {
    client.list_sessions(ListSessionsRequest::default()).await.unwrap().sessions.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_creation_yields_one_session() {
    let site = Site::new("");
    let _server = site.start();
    // The first answers are lost.
    let front = Front::start(&site, async |number, request, channel| {
        let answer = forward(request, channel).await;
        match number {
            0 | 1 => refusal(Code::Unavailable, "STORE_UNAVAILABLE", None),
            _ => answer,
        }
    })
    .await;
    let client = Client::builder(front.url()).build().unwrap();
    sign_in(&client, "alice").await;
    assert_eq!(front.calls(), 3);
    assert_eq!(sessions(&site.client()).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_repeated_only_if_the_service_has_done_nothing() {
    let site = Site::new("");
    let _server = site.start();
    let client = site.client();
    let tokens = client.create_session(request("alice")).await.unwrap().tokens.unwrap();
    let front = Front::start(&site, async |number, request, channel| match number {
        0 => refusal(Code::Unavailable, "NOT_CURRENT", None),
        1 => {
            forward(request, channel).await;
            refusal(Code::Unavailable, "STORE_UNAVAILABLE", None)
        }
        _ => forward(request, channel).await,
    })
    .await;
    let client = Client::builder(front.url()).build().unwrap();
    let refresh = RefreshRequest { refresh_token: tokens.refresh_token, ..Default::default() };
    let error = client.refresh(refresh.clone()).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::StoreUnavailable);
    assert!(error.is_temporary() && !error.is_refused());
    assert_eq!(front.calls(), 2);
    assert!(client.refresh(refresh).await.unwrap().replayed, "the grace makes a repetition safe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_answers_if_one_is_gone_or_not_current() {
    let site = Site::new("");
    let _server = site.start();
    let stopping = Front::start(&site, async |_, _, _| {
        refusal(Code::Unavailable, "NOT_CURRENT", Some(Duration::from_secs(30)))
    })
    .await;
    let client =
        Client::builder("http://127.0.0.1:1").endpoint(stopping.url()).endpoint(site.url());
    let client = client.build().unwrap();
    for _ in 0..6 {
        sign_in(&client, "alice").await;
    }
    assert_eq!(sessions(&client).await, 6);
    assert!(stopping.calls() <= 2, "a replica that fails is avoided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_that_a_service_asks_for_is_kept() {
    let site = Site::new("");
    let _server = site.start();
    let wait = Duration::from_millis(120);
    let front = Front::start(&site, move |number, request, channel| async move {
        match number {
            0 => refusal(Code::ResourceExhausted, "OVERLOADED", Some(wait)),
            _ => forward(request, channel).await,
        }
    })
    .await;
    let client = Client::builder(front.url()).deadline(Duration::from_secs(20)).build().unwrap();
    let began = tokio::time::Instant::now();
    sign_in(&client, "alice").await;
    assert!(began.elapsed() >= wait);
    assert_eq!(front.calls(), 2);

    let front = Front::start(&site, async |_, _, _| {
        refusal(Code::ResourceExhausted, "OVERLOADED", Some(Duration::from_secs(60)))
    })
    .await;
    let client = Client::builder(front.url()).build().unwrap();
    let error = client.create_session(request("alice")).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    assert_eq!((front.calls(), error.reason()), (1, &Reason::Overloaded));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_at_its_deadline() {
    // Connections are accepted by the kernel, and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let deadline = Duration::from_millis(200);
    let client = Client::builder(url).deadline(deadline).build().unwrap();
    let error = client.get_session(GetSessionRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::DeadlineExceeded, &Reason::DeadlineExceeded));

    let client = Client::builder("http://127.0.0.1:1").deadline(deadline).build().unwrap();
    let error = client.get_session(GetSessionRequest::default()).await.unwrap_err();
    assert_eq!((error.reason(), error.is_refused()), (&Reason::Unreachable, true));
    assert!(error.message().contains("refused"), "the cause is named: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_deadline_is_no_problem() {
    let site = Site::new("");
    let _server = site.start();
    let client = Client::builder(site.url()).deadline(Duration::MAX);
    let client = client.revocation_deadline(Duration::MAX).build().unwrap();
    let token = sign_in(&client, "alice").await;
    client.revoke(of_token(&token)).await.unwrap();
    let verifier =
        Verifier::local_unwatched(client, crate::site::ISSUER).keys_valid_for(Duration::MAX);
    let verifier = verifier.start();
    crate::site::in_time("the keys", verifier.ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_their_reason_and_their_details() {
    let site = Site::new("");
    let _server = site.start();
    let client = site.client();
    let error: Error = client.create_session(Default::default()).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::InvalidArgument, &Reason::InvalidField));
    assert_eq!(error.fields()[0].field, "subject");
    assert!(error.to_string().starts_with("INVALID_FIELD (InvalidArgument): subject"), "{error}");
    let session_id = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22".to_owned();
    let error = client.get_session(GetSessionRequest { session_id }).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::SessionNotFound);
    assert!(!error.is_temporary());
}

#[test]
fn every_reason_of_the_service_is_known() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/grpc/status.rs");
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    let is_reason = |word: &&str| {
        word.len() > 4 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let reasons: Vec<&str> = code.split('"').skip(1).step_by(2).filter(is_reason).collect();
    assert!(reasons.len() > 25, "{reasons:?}");
    for reason in reasons {
        let known = Reason::from_name(reason);
        assert!(!matches!(known, Reason::Other(_)), "{reason}");
        assert_eq!(known.as_str(), reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_identify_by_an_api_key_or_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    certificates.certificate("shop", &["shop.test"], |_| ());
    let path = |name: &str| certificates.path(name).display().to_string();
    let (login, key) = caller("login", "roles = ['issuer', 'validator']");
    let site = Site::new(&format!(
        "{login}[[callers]]\nname = 'shop'\ncertificate_names = ['dns:shop.test']\nroles = \
         ['validator']\n[tls]\ncertificate_file = '{}'\nprivate_key_file = '{}'\nclient_ca_file = \
         '{}'\n",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    ));
    let _server = site.start();
    let url = site.url().replace("http://", "https://");
    let read = |name: &str| fs::read(certificates.path(name)).unwrap();
    let builder = || Client::builder(url.clone()).ca_certificate(read("ca.pem"));

    let error = builder().build().unwrap().create_session(request("alice")).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::CallerUnknown);
    let login = builder().api_key(key).build().unwrap();
    let token = sign_in(&login, "alice").await;
    let shop = builder().client_certificate(read("shop.pem"), read("shop.key")).build().unwrap();
    let error = shop.create_session(request("alice")).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::CallerNotAllowed);
    let verifier = Verifier::local(shop.clone()).start();
    crate::site::in_time("a lease over TLS", verifier.ready()).await;
    assert!(check(&verifier, &token).is_active());
    assert!(Verifier::remote(shop).verify(&token, &Demands::new()).await.is_active());

    let stranger = Client::builder(url).build().unwrap();
    let mut error = stranger.create_session(request("alice")).await.unwrap_err();
    while *error.reason() == Reason::DeadlineExceeded {
        // A handshake was under way at the deadline.
        error = stranger.create_session(request("alice")).await.unwrap_err();
    }
    assert_eq!(*error.reason(), Reason::Unreachable, "the certificate is not trusted");
}

#[tokio::test]
async fn wrong_settings_are_refused() {
    for url in ["", "localhost:50051", "ftp://localhost", "http://"] {
        let error = Client::builder(url).build().unwrap_err();
        assert!(matches!(error, BuildError::Endpoint { .. }), "{url}: {error}");
    }
    let unencrypted = Client::builder("http://localhost").ca_certificate("x").build();
    assert!(matches!(unencrypted.unwrap_err(), BuildError::NotEncrypted { .. }));
    let key = Client::builder("http://localhost").api_key("a\nb").build();
    assert!(matches!(key.unwrap_err(), BuildError::ApiKey));
    let unreadable = Client::builder("https://localhost").ca_certificate("/etc/ca.pem").build();
    assert!(matches!(unreadable.unwrap_err(), BuildError::NoCertificate));
    let pem = Client::builder("https://localhost").client_certificate("x", "y").build();
    assert!(matches!(pem.unwrap_err(), BuildError::Tls(_)));
}

#[test]
fn a_client_needs_a_runtime() {
    let error = Client::builder("http://localhost").build().unwrap_err();
    assert!(matches!(error, BuildError::NoRuntime));
}

#[tokio::test]
async fn a_stream_that_is_reset_has_the_code_of_its_reason() {
    for (reset, code, reason) in [
        (h2::Reason::INTERNAL_ERROR, Code::Internal, ""),
        (h2::Reason::CANCEL, Code::Cancelled, ""),
        (h2::Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted, ""),
        (h2::Reason::REFUSED_STREAM, Code::Unavailable, "UNREACHABLE"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(reset);
            }
        });
        let client = Client::builder(url).deadline(Duration::from_millis(300)).build().unwrap();
        let error = client.validate(Default::default()).await.unwrap_err();
        assert_eq!((error.code(), error.reason().as_str()), (code, reason), "{reset:?}: {error}");
        serving.abort();
    }
}
