//! A revocation at one replica takes effect there at once, and soon at the others.

use countersign::proto::CreateSessionRequest;
use countersign_test_support::{
    ledger::{reason, refresh, validate},
    postgres_server::new_database,
};

use crate::replicas::{Cluster, WAYS, becomes_inactive, sign_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_at_one_replica_reaches_the_others() {
    let cluster = Cluster::start(&new_database().await).await;
    let mut clients = cluster.clients().await;
    let bystander = sign_in(&mut clients[0], "bystander").await.access_token;
    for (way, choose) in WAYS {
        for revoking in 0..3 {
            let request = CreateSessionRequest {
                subject: "alice".to_owned(),
                tenant: format!("{way} {revoking}"),
                ..Default::default()
            };
            let created =
                clients[(revoking + 1) % 3].create_session(request).await.unwrap().into_inner();
            let token = created.tokens.clone().unwrap().access_token;
            for client in &mut clients {
                assert!(validate(client, &token).await.active);
            }
            clients[revoking].revoke(choose(&created)).await.unwrap();
            assert!(
                !validate(&mut clients[revoking], &token).await.active,
                "{way}: the replica that revoked the token still accepts it"
            );
            for client in &mut clients {
                becomes_inactive(client, &token).await;
                assert!(
                    validate(client, &bystander).await.active,
                    "{way}: the token of another session was revoked, too"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reuse_at_one_replica_ends_the_session_at_the_others() {
    let url = new_database().await;
    let no_grace = [("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "0s")];
    let cluster = Cluster::start_by([url.as_str(); 3], &url, &no_grace).await;
    let mut clients = cluster.clients().await;
    let stolen = sign_in(&mut clients[0], "alice").await;
    let next = refresh(&mut clients[1], &stolen.refresh_token).await.unwrap().tokens.unwrap();
    let refused = refresh(&mut clients[2], &stolen.refresh_token).await.unwrap_err();
    assert_eq!(reason(&refused), "REFRESH_TOKEN_REUSED");
    for client in &mut clients {
        for token in [&stolen.access_token, &next.access_token] {
            becomes_inactive(client, token).await;
        }
        let refused = refresh(client, &next.refresh_token).await.unwrap_err();
        assert_eq!(reason(&refused), "SESSION_REVOKED");
    }
}
