//! Tests of the leases that watchers of an earlier process may hold, on SQLite.

use countersign::proto::{CreateSessionRequest, RevokeRequest, revoke_request::Target};
use countersign_test_support::{http_client::Metrics, process::Server, watcher::Watcher};

/// Revokes a session, and returns how often a watcher has held a revocation up since the start.
async fn held_up(server: &Server) -> f64 {
    let mut sessions = server.sessions().await;
    let request = CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() };
    let created = sessions.create_session(request).await.unwrap().into_inner();
    let target = Target::SessionId(created.session.unwrap().session_id);
    sessions.revoke(RevokeRequest { target: Some(target), ..Default::default() }).await.unwrap();
    Metrics::of(server.http()).await.get("watchers_held_up_seconds_count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_waits_for_the_watchers_of_the_process_before_it_unless_that_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let (mut watcher, _) = Watcher::begin(server.channel().await).await;
    watcher.lease().await;
    server.kill();

    let server = Server::start(folder.path());
    assert_eq!(held_up(&server).await, 1.0, "a watcher of the killed process may hold a lease");
    server.stop();
    let server = Server::start(folder.path());
    assert_eq!(held_up(&server).await, 0.0, "no watcher holds a lease");
}
