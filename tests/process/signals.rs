//! Tests of stopping by signals: the first one begins a graceful stop, and the second one stops the
//! process at once.

use countersign_test_support::process::{GRACE, Server, serve};
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

/// A time that is longer than any test waits.
const NEVER: &str = "1h";

/// Begins to watch the health of a server, and checks that the server is serving.
async fn watch(server: &Server) -> (HealthClient<Channel>, Streaming<HealthCheckResponse>) {
    let mut client = HealthClient::new(server.channel().await);
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    (client, stream)
}

#[test]
fn the_first_signal_stops_an_idle_service_gracefully() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::start(folder.path());
        server.signal(signal);
        assert_eq!(server.line("stopping")["signal"], format!("SIG{signal}"));
        server.line("stopped");
        assert_eq!(server.exit().code(), Some(0));
        let leftovers = ["countersign.db-wal", "countersign.db-shm"]
            .map(|name| folder.path().join(name).exists());
        assert_eq!(
            leftovers,
            [false, false],
            "the database is closed: a copy of its file is a whole backup"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_watches_health_does_not_delay_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::launch(serve(folder.path()).env("COUNTERSIGN_SHUTDOWN__DRAIN", NEVER));
    let (_client, _stream) = watch(&server).await;
    server.signal("TERM");
    server.line("stopped");
    assert_eq!(server.exit().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_the_grace_health_says_not_serving_and_calls_are_answered_until_the_second_signal() {
    for second in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::launch(serve(folder.path()).env(GRACE, NEVER));
        let (mut client, mut stream) = watch(&server).await;
        server.signal("TERM");
        server.line("stopping");
        assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        let health = client.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::NotServing);
        assert_eq!(server.cli(["health"]).code, Some(1));
        server.cli(["session", "create", "alice"]).ok();

        server.signal(second);
        server.line("stopped");
        assert_eq!(server.exit().code(), Some(0));
    }
}
