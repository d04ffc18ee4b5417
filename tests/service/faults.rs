//! Tests with a database that fails, or a caller that goes away during a call.

use countersign::{
    proto::{InactiveReason, ListSessionsRequest, SessionState, revoke_request::Target},
    store::StoreError,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Server, SignedIn, eventually, of_token, request, revocation},
};
use futures_util::future::join;
use tonic::Code;

pub async fn calls_report_a_failing_database_and_validate_still_answers() {
    let server = Server::start().await;
    let [good, bad] = [server.sign_in("alice").await, server.sign_in("bob").await];
    server.revoke(of_token(&bad.access)).await.unwrap();
    for (failure, expected) in [
        (
            StoreError::Unavailable("disk full at /secret/path".to_owned()),
            Refusal::retry(Code::Unavailable, "STORE_UNAVAILABLE"),
        ),
        (StoreError::Overloaded, Refusal::retry(Code::ResourceExhausted, "OVERLOADED")),
        (StoreError::Damaged("row 7".to_owned()), Refusal::of(Code::Internal, "INTERNAL")),
        (StoreError::Refused("SELECT".to_owned()), Refusal::of(Code::Internal, "INTERNAL")),
    ] {
        server.store.fail_with(Some(failure));
        assert_eq!(refused(server.create(request("carol")).await), expected);
        assert_eq!(refused(server.refresh(&good.refresh).await), expected);
        assert_eq!(refused(server.revoke(of_token(&good.access)).await), expected);
        assert_eq!(refused(server.session(&good.id()).await), expected);
        let list = server.client().list_sessions(ListSessionsRequest::default()).await;
        assert!(
            !list.as_ref().unwrap_err().message().contains("secret"),
            "the error text of the database is not shown to callers"
        );
        assert_eq!(refused(list), expected);

        assert_eq!(server.verdict(&good.access).await, Ok(()));
        assert_eq!(server.verdict(&bad.access).await, Err(InactiveReason::Revoked));
        let garbage = refused(server.refresh("cs_rt_garbage").await);
        assert_eq!(
            garbage,
            Refusal::unauthenticated("REFRESH_TOKEN_INVALID"),
            "garbage is refused without asking the database"
        );
    }
    server.store.fail_with(None);
    assert!(!server.refresh(&good.refresh).await.unwrap().replayed, "nothing had changed");
    assert_eq!(server.revoke(of_token(&good.access)).await.unwrap(), 1);
}

pub async fn the_index_learns_of_a_revocation_whose_caller_left_after_the_commit() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.store.committed_revocations.shut();
    let mut client = server.client();
    let token = session.access.clone();
    let revoking = tokio::spawn(async move { client.revoke(of_token(&token)).await });
    server.store.committed_revocations.held().await;
    revoking.abort();
    assert!(revoking.await.unwrap_err().is_cancelled());
    // The gate stays shut, so the entry can reach the index by the feed alone.
    eventually("the token is revoked", async || server.verdict(&session.access).await.err()).await;
}

pub async fn a_revocation_whose_caller_leaves_at_any_moment_takes_effect_fully_or_not_at_all() {
    let server = Server::start().await;
    for steps in 0..40 {
        let session = server.sign_in("alice").await;
        let mut client = server.client();
        let order = revocation(Target::SessionId(session.id()));
        let revoking = tokio::spawn(async move { client.revoke(order).await });
        for _ in 0..steps * 5 {
            tokio::task::yield_now().await;
        }
        revoking.abort();
        let _ = revoking.await;
        if server.session(&session.id()).await.unwrap().state() == SessionState::Ended {
            eventually("the token is revoked", async || {
                server.verdict(&session.access).await.err()
            })
            .await;
        }
        server.revoke(of_token(&session.access)).await.unwrap();
        assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    }
}

pub async fn writes_wait_for_a_locked_database_while_reads_and_validate_go_on() {
    let server = Server::start().await;
    let [good, bad] = [server.sign_in("alice").await, server.sign_in("bob").await];
    let held = server.home.database.hold().await;
    let (mut client, token) = (server.client(), bad.access.clone());
    let revoking = tokio::spawn(async move { client.revoke(of_token(&token)).await });
    for _ in 0..10 {
        assert_eq!(server.verdict(&good.access).await, Ok(()));
        assert!(server.session(&bad.id()).await.unwrap().ended_at.is_none(), "reads go on, too");
    }
    assert!(!revoking.is_finished());
    drop(held);
    assert_eq!(revoking.await.unwrap().unwrap().into_inner().revoked_sessions, 1);
    assert_eq!(server.verdict(&bad.access).await, Err(InactiveReason::Revoked));
}

/// Sets `on_refresh` in alice's rows, possibly to a value that the service never writes.
async fn set_on_refresh_of_alice(server: &Server, value: &str) {
    let sql = format!("UPDATE sessions SET on_refresh = '{value}' WHERE subject = 'alice'");
    server.home.database.execute(&sql).await;
}

pub async fn a_damaged_row_fails_only_the_calls_that_need_it() {
    let server = Server::start().await;
    let [damaged, intact] = [server.sign_in("alice").await, server.sign_in("bob").await];
    set_on_refresh_of_alice(&server, "perhaps").await;
    let internal = || Refusal::of(Code::Internal, "INTERNAL");
    let of = |subject: &str| ListSessionsRequest {
        tenant: "acme".to_owned(),
        subject: subject.to_owned(),
        ..Default::default()
    };
    assert_eq!(refused(server.session(&damaged.id()).await), internal());
    assert_eq!(refused(server.refresh(&damaged.refresh).await), internal());
    assert_eq!(refused(server.revoke(of_token(&damaged.access)).await), internal());
    assert_eq!(refused(server.client().list_sessions(of("alice")).await), internal());
    assert_eq!(server.verdict(&damaged.access).await, Ok(()), "nothing has been revoked");

    assert_eq!(
        server.client().list_sessions(of("bob")).await.unwrap().into_inner().sessions,
        [intact.session]
    );
    let (refreshed, refusal) =
        join(server.refresh(&intact.refresh), server.refresh(&damaged.refresh)).await;
    assert_eq!((refreshed.unwrap().replayed, refused(refusal)), (false, internal()));
    set_on_refresh_of_alice(&server, "keep_access_token").await;
    assert_eq!(server.revoke(of_token(&damaged.access)).await.unwrap(), 1);
}

pub async fn the_sessions_of_a_revoked_tenant_end_even_if_one_row_is_damaged() {
    let server = Server::start().await;
    let sessions = [server.sign_in("alice").await, server.sign_in("bob").await];
    set_on_refresh_of_alice(&server, "perhaps").await;
    assert_eq!(server.revoke(revocation(Target::Tenant("acme".to_owned()))).await.unwrap(), 2);
    let ended = async |session: &SignedIn| {
        let session = server.session(&session.id()).await.unwrap();
        (session.state() == SessionState::Ended).then_some(())
    };
    eventually("the other session ends", async || ended(&sessions[1]).await).await;
    set_on_refresh_of_alice(&server, "keep_access_token").await;
    assert_eq!(ended(&sessions[0]).await, Some(()), "the session of the damaged row ends, too");
}
