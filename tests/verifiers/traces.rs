//! Tests of the traces that a collector receives.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use countersign::proto::{
    CreateSessionRequest, RefreshRequest, RevokeRequest, ValidateRequest, revoke_request::Target,
    session_service_client::SessionServiceClient,
};
use countersign_test_support::process::{Server, serve};
use envoy_types::pb::envoy::service::auth::v3::{
    CheckRequest, authorization_client::AuthorizationClient,
};
use serde_json::Value;
use tonic::{Request, transport::Channel};

use super::libraries;

/// The longest wait for a span.
const HANGS: Duration = Duration::from_secs(60);

/// A collector, which is killed when it is dropped.
struct Collector {
    child: Child,
    spans: Receiver<Value>,
    port: u64,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    fn start(protocol: &str, behaviour: &str) -> Self {
        let libraries = libraries();
        let mut command = Command::new(libraries.join("venv/bin/python"));
        command.args(["collector.py", protocol, behaviour]).current_dir(libraries);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, spans) = mpsc::channel::<Value>();
        thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(serde_json::from_str(&line).unwrap()))
        });
        let port = spans.recv_timeout(HANGS).unwrap().as_u64().unwrap();
        Self { child, spans, port }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits for a span with this name, or of this operation of the store, in a trace. Keeps what
    /// it has received in `seen`.
    fn span(&self, seen: &mut Vec<Value>, trace: &str, name: &str) -> Value {
        loop {
            let is_it = |span: &&Value| {
                span["trace"] == trace
                    && (span["name"] == name || span["attributes"]["operation"] == name)
            };
            if let Some(span) = seen.iter().find(is_it) {
                return span.clone();
            }
            let next = self.spans.recv_timeout(HANGS);
            seen.push(next.unwrap_or_else(|_| panic!("no span {name} of {trace}: {seen:#?}")));
        }
    }
}

/// Starts a service that sends its traces to `endpoint`.
fn start(home: &std::path::Path, endpoint: &str, protocol: &str, ratio: &str) -> Server {
    let mut command = serve(home);
    command.env("COUNTERSIGN_OTLP__ENDPOINT", endpoint);
    command.env("COUNTERSIGN_OTLP__PROTOCOL", protocol);
    command.env("COUNTERSIGN_OTLP__SAMPLE_RATIO", ratio);
    // Traces do not depend on the level of the log.
    command.env("COUNTERSIGN_LOG__LEVEL", "info,countersign=warn,countersign::app=info");
    Server::launch(&mut command)
}

/// Returns a request in the trace with this number. The trace is recorded by its client, unless
/// `flags` say otherwise.
fn traced<T>(trace: u8, flags: &str, message: T) -> (String, Request<T>) {
    let (id, mut request) = (format!("{trace:032x}"), Request::new(message));
    let parent = format!("00-{id}-{PARENT}-{flags}");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    (id, request)
}

/// The span of the client.
const PARENT: &str = "00f067aa0ba902b7";

async fn channel(server: &Server) -> Channel {
    let address = format!("http://{}", server.address());
    Channel::from_shared(address).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_the_spans_of_calls_with_their_parents_and_nothing_secret() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let collector = Collector::start(protocol, "ok");
        let server = start(home.path(), &collector.endpoint(), protocol, "0");
        let channel = channel(&server).await;
        let mut client = SessionServiceClient::new(channel.clone());
        let subject = "subject-that-must-not-be-traced";
        let new = CreateSessionRequest {
            subject: subject.to_owned(),
            client_id: "web".to_owned(),
            ..Default::default()
        };
        let (create, request) = traced(1, "01", new);
        let created = client.create_session(request).await.unwrap().into_inner();
        let tokens = created.tokens.unwrap();
        let access_token = tokens.access_token.clone();
        let (unsampled, request) =
            traced(2, "00", ValidateRequest { access_token, ..Default::default() });
        client.validate(request).await.unwrap();
        let untraced = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
        client.validate(untraced.clone()).await.unwrap();
        let (validate, request) = traced(3, "01", untraced);
        client.validate(request).await.unwrap();
        let refresh_token = tokens.refresh_token.clone();
        let (refresh, request) =
            traced(4, "01", RefreshRequest { refresh_token, ..Default::default() });
        let refreshed = client.refresh(request).await.unwrap().into_inner().tokens.unwrap();
        let target = Some(Target::Token(refreshed.access_token.clone()));
        let (revoke, request) = traced(5, "01", RevokeRequest { target, ..Default::default() });
        client.revoke(request).await.unwrap();
        let (check, request) = traced(6, "01", CheckRequest::default());
        AuthorizationClient::new(channel).check(request).await.unwrap_err();

        let mut seen = vec![];
        let service = "countersign.v1.SessionService";
        for (trace, method, children) in [
            (&create, format!("{service}/CreateSession"), &["create_session"][..]),
            (&validate, format!("{service}/Validate"), &[]),
            (&refresh, format!("{service}/Refresh"), &["refresh_session"]),
            (&revoke, format!("{service}/Revoke"), &["revoke", "acknowledgement"]),
            (&check, "envoy.service.auth.v3.Authorization/Check".to_owned(), &[]),
        ] {
            let span = collector.span(&mut seen, trace, &method);
            assert_eq!(span["parent"], PARENT, "{span}");
            assert_eq!((&span["kind"], &span["service"]), (&2.into(), &"countersign".into()));
            assert_eq!(span["attributes"]["caller"], "anybody", "{span}");
            assert_eq!(span["events"], 0, "log lines, such as those of the audit, are not sent");
            for child in children {
                let child = collector.span(&mut seen, trace, child);
                assert_eq!(child["parent"], span["id"], "{child}");
            }
        }
        let of_check =
            collector.span(&mut seen, &check, "envoy.service.auth.v3.Authorization/Check");
        assert_eq!(of_check["attributes"]["rpc.grpc.status_code"], 3, "INVALID_ARGUMENT");
        server.stop();
        seen.extend(collector.spans.try_iter());
        let traces: Vec<_> = seen.iter().map(|span| span["trace"].as_str().unwrap()).collect();
        assert!(!traces.contains(&&*unsampled), "the client does not want this trace");
        let known = [&create, &validate, &refresh, &revoke, &check];
        assert!(traces.iter().all(|trace| known.iter().any(|known| known == trace)), "{traces:?}");
        let text = format!("{seen:?}");
        for secret in [subject, &tokens.access_token, &tokens.refresh_token] {
            assert!(!text.contains(&secret[..20]), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_silent_or_refuses_delays_nothing_and_is_one_warning() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away_at = format!("http://{}", away.local_addr().unwrap());
    drop(away);
    let refusing = Collector::start("grpc", "refuse");
    for endpoint in
        [away_at, format!("http://{}", silent.local_addr().unwrap()), refusing.endpoint()]
    {
        let home = tempfile::tempdir().unwrap();
        let mut server = start(home.path(), &endpoint, "grpc", "1");
        let mut client = SessionServiceClient::new(channel(&server).await);
        let validate = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
        // More spans than the queue holds.
        for _ in 0..6_000 {
            client.validate(validate.clone()).await.unwrap();
        }
        let warning = server.line("traces are dropped, because the collector cannot be reached");
        assert_eq!(warning["endpoint"], endpoint, "{warning}");
        client.validate(validate.clone()).await.unwrap();
        let log = server.stop();
        let warnings = log.iter().filter(|line| line.contains("traces are dropped")).count();
        assert_eq!(warnings, 1, "{endpoint}: {log:#?}");
    }
}
