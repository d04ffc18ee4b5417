//! Tests of failures of a PostgreSQL server that can be reached.

use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, eventually, of_token, request},
};
use futures_util::future::join3;
use tonic::Code;

/// The answer to a call that needs the database while the database cannot serve it.
fn store_unavailable() -> Refusal {
    Refusal::retry(Code::Unavailable, "STORE_UNAVAILABLE")
}

/// The codes of PostgreSQL are 53100 for a full disk, 53200 for a lack of memory, and 53000 for a
/// lack of another resource.
pub async fn writes_are_refused_while_postgresql_lacks_disk_or_memory_and_succeed_afterwards() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    for code in ["53100", "53200", "53000"] {
        let sql = format!(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE \
             EXCEPTION 'could not extend file \"base/1\"' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON sessions EXECUTE FUNCTION \
             full_disk(); CREATE TRIGGER full_disk BEFORE INSERT ON blacklist EXECUTE FUNCTION \
             full_disk()"
        );
        let rows = server.rows().await;
        server.home.database.execute(&sql).await;
        let (created, refreshed, revoked) = join3(
            server.create(request("bob")),
            server.refresh(&good.refresh),
            server.revoke(of_token(&good.access)),
        )
        .await;
        assert_eq!(
            [refused(created), refused(refreshed), refused(revoked)],
            [(); 3].map(|()| store_unavailable()),
            "{code}"
        );
        assert_eq!(server.verdict(&good.access).await, Ok(()), "{code}");
        assert_eq!(server.rows().await, rows, "{code}");
        server.home.database.execute("DROP FUNCTION full_disk CASCADE").await;
        assert!(server.create(request("bob")).await.is_ok(), "{code}: by itself");
    }
    assert!(
        !server.refresh(&good.refresh).await.unwrap().replayed,
        "what was refused has changed nothing"
    );
    assert_eq!(server.revoke(of_token(&good.access)).await.unwrap(), 1);
}

/// While calls on all connections of the pool wait for a lock, further calls are refused after
/// `database.acquire_timeout`. Validate still answers, because it needs no connection.
pub async fn calls_without_a_free_connection_are_refused_and_nothing_is_lost() {
    let settings =
        "[database]\nmax_connections = 4\nacquire_timeout = '500ms'\nstatement_timeout = '60s'";
    let server = Home::new(settings).await.start().await;
    let [good, other] = [server.sign_in("alice").await, server.sign_in("bob").await];
    let held = server.home.database.hold().await;
    let mut writes = vec![];
    for number in 0..8 {
        let mut client = server.client();
        let subject = format!("subject {number}");
        writes.push(tokio::spawn(async move {
            client.create_session(request(&subject)).await.map(drop)
        }));
    }
    for token in [good.refresh.clone(), other.refresh.clone()] {
        let mut client = server.client();
        let exchange =
            countersign::proto::RefreshRequest { refresh_token: token, ..Default::default() };
        writes.push(tokio::spawn(async move { client.refresh(exchange).await.map(drop) }));
    }
    let mut client = server.client();
    let revocation = of_token(&other.access);
    writes.push(tokio::spawn(async move { client.revoke(revocation).await.map(drop) }));

    let refusal =
        eventually("no connection is free", async || server.session(&good.id()).await.err()).await;
    assert_eq!(refused::<()>(Err(refusal)), store_unavailable());
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    drop(held);
    // Each call has either succeeded, or was refused and has changed nothing.
    for write in writes {
        if let Err(status) = write.await.unwrap() {
            assert!(
                [
                    store_unavailable(),
                    Refusal::retry(Code::ResourceExhausted, "OVERLOADED"),
                    Refusal::unauthenticated("SESSION_REVOKED")
                ]
                .contains(&refused::<()>(Err(status)))
            );
        }
    }
    assert!(server.session(&good.id()).await.is_ok());
    assert!(server.create(request("carol")).await.is_ok());
}
