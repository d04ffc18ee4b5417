//! Tests a process that is stopped for a while, like a process on an overloaded machine or in a
//! virtual machine that is being migrated.

use std::time::Duration;

use countersign::proto::CreateSessionRequest;
use countersign_test_support::process::Server;
use futures_util::future::join_all;
use tonic::{Code, Request};

/// All callers share one connection. A caller that waits longer than the others must be answered on
/// that connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_during_a_pause_do_not_close_the_connection_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.sessions().await;
    let create = |deadline: Option<Duration>| {
        let mut client = client.clone();
        let mut request = Request::new(CreateSessionRequest {
            subject: "alice".to_owned(),
            ..CreateSessionRequest::default()
        });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        tokio::spawn(async move { client.create_session(request).await })
    };
    server.signal("STOP");
    let unlimited = create(None);
    let limited = join_all((0..500).map(|_| create(Some(Duration::from_millis(50))))).await;
    for outcome in limited {
        assert_eq!(
            outcome.unwrap().unwrap_err().code(),
            Code::Cancelled,
            "the deadline has passed"
        );
    }
    server.signal("CONT");
    unlimited.await.unwrap().unwrap();
    create(None).await.unwrap().unwrap();
}
