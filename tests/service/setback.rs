//! Tests of what operators may do: replace the database by an older copy, or lower limits. Whatever
//! the service acknowledged before must still hold.

use countersign::proto::{
    CreateSessionRequest, InactiveReason, SubjectTarget, revoke_request::Target,
};
use countersign_test_support::server::{
    Home, Server, eventually, of_token, request, request_under, revocation, seconds,
};

/// Starts a service, runs `happening` against it, replaces the database by a copy from before that,
/// and starts the service again.
async fn with_older_database<T>(
    home: Home,
    happening: impl AsyncFnOnce(&Server) -> T,
) -> (Server, T) {
    let server = home.start().await;
    let backup = server.home.database.back_up().await;
    let happened = happening(&server).await;
    let home = server.stop().await;
    home.database.restore(backup).await;
    (home.start().await, happened)
}

pub async fn a_token_whose_session_the_database_does_not_know_any_more_can_be_revoked() {
    let (server, session) =
        with_older_database(Home::new("").await, async |server| server.sign_in("alice").await)
            .await;
    assert!(server.session(&session.id()).await.is_err());
    assert_eq!(
        server.verdict(&session.access).await,
        Ok(()),
        "its signature is good and nothing stops it"
    );
    server.revoke(of_token(&session.access)).await.unwrap();
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    let server = server.restart().await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}

/// The sessions are revoked by their refresh token, their subject or their tenant. The answer is
/// OK, so their access tokens must be inactive afterwards.
pub async fn sessions_that_the_database_does_not_know_any_more_can_be_revoked() {
    let (server, [alice, bob, carol]) = with_older_database(Home::new("").await, async |server| {
        let elsewhere = CreateSessionRequest { tenant: "globex".to_owned(), ..request("carol") };
        [
            server.sign_in("alice").await,
            server.sign_in("bob").await,
            server.create(elsewhere).await.unwrap(),
        ]
    })
    .await;
    let subject = SubjectTarget {
        tenant: "acme".to_owned(),
        subject: "bob".to_owned(),
        ..Default::default()
    };
    let orders = [
        (&alice, of_token(&alice.refresh)),
        (&bob, revocation(Target::Subject(subject))),
        (&carol, revocation(Target::Tenant("globex".to_owned()))),
    ];
    for (session, order) in orders {
        assert_eq!(server.verdict(&session.access).await, Ok(()));
        for _ in 0..2 {
            assert_eq!(
                server.revoke(order.clone()).await.unwrap(),
                0,
                "the database knows of no live session"
            );
            assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
        }
    }
    assert_eq!(server.rows().await.blacklist, 3, "repeating a revocation adds nothing");
    let server = server.restart().await;
    for session in [&alice, &bob, &carol] {
        assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    }
}

pub async fn a_token_of_a_session_that_the_database_takes_for_expired_can_be_revoked() {
    let server = Server::start().await;
    let session = server.create(request_under("short", "alice")).await.unwrap();
    let home = server.stop().await;
    // The session is refreshed after 299 of 300 idle seconds. Then the database is replaced by a
    // copy from before the refresh.
    let (server, next) = with_older_database(home, async |server| {
        server.clock.advance(seconds(299));
        server.refresh(&session.refresh).await.unwrap().now
    })
    .await;
    server.clock.advance(seconds(2));
    assert_eq!(server.verdict(&next.access).await, Ok(()));
    assert_eq!(
        server.revoke(of_token(&next.access)).await.unwrap(),
        0,
        "the database knows of no live session"
    );
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_lowered_limit_for_access_tokens_holds_for_the_refreshes_of_older_sessions() {
    let server =
        Home::new("[policies.default]\naccess_token_ttl = '1h'\n[tenants]").await.start().await;
    let session = server.sign_in("alice").await;
    let home = server.stop().await;
    let lowered = "[tokens]\nmax_access_token_ttl = '5m'\n[policies.default]\naccess_token_ttl = \
                   '5m'\n[tenants]";
    let server = home.with(lowered).start().await;
    let next = server.refresh(&session.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&next.access).await, Ok(()));
    server.clock.advance(seconds(300));
    assert_eq!(server.verdict(&next.access).await, Err(InactiveReason::Expired));
}

pub async fn the_sessions_of_a_revoked_tenant_end_even_if_the_caller_gives_up() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.store.committed_revocations.shut();
    let gone = {
        let client = server.client();
        tokio::spawn(async move {
            client.clone().revoke(revocation(Target::Tenant("acme".to_owned()))).await
        })
    };
    server.store.committed_revocations.held().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    eventually("the session ends", async || {
        let shown = server.session(&session.id()).await.unwrap();
        (shown.ended_at.is_some()).then_some(())
    })
    .await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}
