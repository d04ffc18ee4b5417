//! Tests of the traces that a collector receives.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use countersign::proto::{
    CreateSessionRequest, RefreshRequest, RevokeRequest, ValidateRequest, revoke_request::Target,
    session_service_client::SessionServiceClient,
};
use countersign_test_support::{
    certificates::Certificates,
    http_client::{Metrics, ask},
    ports::free_address,
    process::Server,
    venv::{GATEWAYS, venv},
};
use envoy_types::pb::envoy::service::auth::v3::{
    CheckRequest, authorization_client::AuthorizationClient,
};
use tokio::net::TcpStream;
use tonic::Request;

use super::collector::{Collector, HANGS, channel, count_warnings, exporting, warning};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_the_spans_of_calls_with_their_parents_and_nothing_secret() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let collector = Collector::start(protocol, "ok");
        let server = Server::launch(&mut exporting(home.path(), &collector.endpoint(), protocol));
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
        let introspect = traced_over_http(&server, 7, "01", "/oauth2/introspect", "token=x").await;
        let body = format!("token={}", refreshed.access_token);
        let revoke_again = traced_over_http(&server, 8, "01", "/oauth2/revoke", &body).await;
        let unwanted = traced_over_http(&server, 9, "00", "/oauth2/revoke", &body).await;

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
        for (trace, route, children) in [
            (&introspect, "/oauth2/introspect", &[][..]),
            (&revoke_again, "/oauth2/revoke", &["revoke", "acknowledgement"]),
        ] {
            let span = collector.span(&mut seen, trace, route);
            assert_eq!((&span["parent"], &span["kind"]), (&PARENT.into(), &2.into()), "{span}");
            assert_eq!(span["attributes"]["http.response.status_code"], 200, "{span}");
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
        for unsampled in [unsampled, unwanted] {
            assert!(!traces.contains(&&*unsampled), "the client does not want this trace");
        }
        let known = [&create, &validate, &refresh, &revoke, &check, &introspect, &revoke_again];
        assert!(traces.iter().all(|trace| known.iter().any(|known| known == trace)), "{traces:?}");
        let text = format!("{seen:?}");
        for secret in [subject, &tokens.access_token, &tokens.refresh_token] {
            assert!(!text.contains(&secret[..20]), "{text}");
        }
    }
}

/// Sends a form in the trace with this number, and returns the identifier of the trace.
async fn traced_over_http(
    server: &Server,
    trace: u8,
    flags: &str,
    path: &str,
    body: &str,
) -> String {
    let (id, length) = (format!("{trace:032x}"), body.len());
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: \
         application/x-www-form-urlencoded\r\ntraceparent: 00-{id}-{PARENT}-{flags}\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    assert_eq!(ask(server.http(), &request).await.status, 200);
    id
}

/// Runs Envoy with its example configuration and with tracing.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Envoy {
    fn start(home: &Path, listen: SocketAddr, server: &Server, collector: &Collector) -> Self {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateways/envoy.yaml");
        let ports = [
            ("port_value: 8000", u64::from(listen.port())),
            ("port_value: 50051", u64::from(server.address().port())),
            ("port_value: 4317", collector.port()),
        ];
        let mut is_about_traces = false;
        let mut lines = vec![];
        for line in fs::read_to_string(example).unwrap().lines() {
            let begins = ["# tracing:", "# - name: collector"].contains(&line.trim());
            is_about_traces = begins || is_about_traces && line.trim().starts_with("#   ");
            let line = if is_about_traces { line.replacen("# ", "", 1) } else { line.to_owned() };
            lines.push(ports.iter().fold(line, |line, (example, port)| {
                line.replace(example, &format!("port_value: {port}"))
            }));
        }
        fs::write(home.join("envoy.yaml"), lines.join("\n")).unwrap();
        let programs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gateways");
        let mut command = Command::new(venv(&programs, GATEWAYS).join("envoy"));
        command.args(["-c", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1"]);
        let log = fs::File::create(home.join("envoy.log")).unwrap();
        Self(command.current_dir(home).stderr(log).spawn().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_a_gateway_is_in_the_trace_of_the_request_that_it_checks() {
    let home = tempfile::tempdir().unwrap();
    let collector = Collector::start("grpc", "ok");
    let server = Server::launch(&mut exporting(home.path(), &collector.endpoint(), "grpc"));
    let listen = free_address();
    let mut envoy = Envoy::start(home.path(), listen, &server, &collector);
    while TcpStream::connect(listen).await.is_err() {
        assert!(envoy.0.try_wait().unwrap().is_none(), "Envoy has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let trace = format!("{:032x}", 10);
    let request = format!(
        "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\ntraceparent: \
         00-{trace}-{PARENT}-01\r\n\r\n"
    );
    assert_eq!(ask(listen, &request).await.status, 401, "there is no token");

    let mut seen = vec![];
    let mut span = collector.span(&mut seen, &trace, "envoy.service.auth.v3.Authorization/Check");
    assert_eq!(span["service"], "countersign");
    // Envoy has a span for the check, in that of the request, which is in that of the client.
    for _ in ["the check", "the request"] {
        let parent = span["parent"].clone();
        span = collector.find(&mut seen, |span| span["id"] == parent);
        assert_eq!((&span["service"], &span["trace"]), (&"gateway".into(), &trace.clone().into()));
    }
    assert_eq!(span["parent"], PARENT);
}

/// Waits until at least this number of spans were dropped for a reason.
async fn await_dropped(server: &Server, reason: &str, number: f64) {
    let series = format!("spans_dropped_total{{reason=\"{reason}\"}}");
    let waiting = async {
        while Metrics::of(server.http()).await.get(&series) < number {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(HANGS, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_silent_or_refuses_delays_nothing_and_is_one_warning() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let away = format!("http://{}", free_address());
    let refusing = ["grpc", "http"].map(|protocol| Collector::start(protocol, "refuse"));
    for (endpoint, protocol) in [
        (&away, "grpc"),
        (&away, "http"),
        (&silent, "grpc"),
        (&silent, "http"),
        (&refusing[0].endpoint(), "grpc"),
        (&refusing[1].endpoint(), "http"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut command = exporting(home.path(), endpoint, protocol);
        let mut server = Server::launch(command.env("COUNTERSIGN_OTLP__SAMPLE_RATIO", "1"));
        let mut client = SessionServiceClient::new(channel(&server).await);
        let validate = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
        // More spans than the queue holds.
        for _ in 0..6_000 {
            client.validate(validate.clone()).await.unwrap();
        }
        for kind in ["traces", "metrics"] {
            let warning = warning(&mut server, kind);
            assert_eq!(warning["endpoint"], **endpoint, "{warning}");
        }
        await_dropped(&server, "export_failed", 1.0).await;
        if *endpoint == silent {
            await_dropped(&server, "queue_full", 1.0).await;
        }
        client.validate(validate.clone()).await.unwrap();
        let log = server.stop();
        for kind in ["traces", "metrics"] {
            assert_eq!(count_warnings(&log, kind), 1, "{endpoint} {protocol}: {log:#?}");
        }
    }
}

/// Makes a call that is traced, and returns the identifier of the trace.
async fn traced_call(server: &Server) -> String {
    let message = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
    let (trace, request) = traced(1, "01", message);
    SessionServiceClient::new(channel(server).await).validate(request).await.unwrap();
    trace
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_with_a_certificate_of_the_configured_or_the_systems_authorities_is_trusted() {
    for protocol in ["grpc", "http"] {
        for authorities in ["COUNTERSIGN_OTLP__CA_FILE", "SSL_CERT_FILE"] {
            let home = tempfile::tempdir().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let certificates = Certificates::new(folder.path());
            let collector = Collector::start_with_tls(protocol, &certificates);
            let mut command = exporting(home.path(), &collector.endpoint(), protocol);
            let server = Server::launch(command.env(authorities, certificates.path("ca.pem")));
            let trace = traced_call(&server).await;
            collector.span(&mut vec![], &trace, "countersign.v1.SessionService/Validate");
            collector.metrics.recv_timeout(HANGS).unwrap();
            server.stop();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_whose_certificate_is_of_another_authority_gets_nothing_and_is_one_warning() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [own, other] = folders.each_ref().map(|folder| Certificates::new(folder.path()));
        let collector = Collector::start_with_tls(protocol, &own);
        let mut command = exporting(home.path(), &collector.endpoint(), protocol);
        let mut server =
            Server::launch(command.env("COUNTERSIGN_OTLP__CA_FILE", other.path("ca.pem")));
        traced_call(&server).await;
        for kind in ["traces", "metrics"] {
            let warning = warning(&mut server, kind);
            let problem = warning["problem"].as_str().unwrap();
            assert!(problem.contains("invalid peer certificate"), "{protocol}: {problem}");
        }
        await_dropped(&server, "export_failed", 1.0).await;
        traced_call(&server).await;
        let log = server.stop();
        for kind in ["traces", "metrics"] {
            assert_eq!(count_warnings(&log, kind), 1, "{protocol}: {log:#?}");
        }
        let received = (collector.spans.try_iter().count(), collector.metrics.try_iter().count());
        assert_eq!(received, (0, 0));
    }
}
