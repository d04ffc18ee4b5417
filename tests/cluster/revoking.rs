//! A revocation at one replica takes effect there at once, and soon at the others.

use std::sync::atomic::{AtomicBool, Ordering};

use countersign::{
    clock::{Clock, SystemClock},
    proto::{
        CreateSessionRequest, RevokeRequest, SessionsTarget, Tokens,
        revoke_request::Target,
        sessions_target::{Instant, Where},
    },
};
use countersign_test_support::{
    ledger::{Client, reason, refresh, validate},
    postgres_server::new_database,
};
use futures_util::future::join_all;

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

const CLIENT: &str = "web";

/// Creates and refreshes sessions until the revocation has been acknowledged, and returns all access
/// tokens.
async fn keep_signing_in(
    mut client: Client,
    request: CreateSessionRequest,
    is_revoked: &AtomicBool,
) -> Vec<String> {
    let mut tokens = vec![];
    while !is_revoked.load(Ordering::SeqCst) {
        let Ok(created) = client.create_session(request.clone()).await else { continue };
        let Tokens { access_token, refresh_token, .. } = created.into_inner().tokens.unwrap();
        tokens.push(access_token);
        if let Ok(refreshed) = refresh(&mut client, &refresh_token).await {
            tokens.push(refreshed.tokens.unwrap().access_token);
        }
    }
    tokens
}

/// Refreshes a session again and again until the revocation has been acknowledged, and returns all
/// access tokens.
async fn keep_refreshing(
    mut client: Client,
    mut tokens: Tokens,
    is_revoked: &AtomicBool,
) -> Vec<String> {
    let mut seen = vec![tokens.access_token];
    while !is_revoked.load(Ordering::SeqCst) {
        let Ok(refreshed) = refresh(&mut client, &tokens.refresh_token).await else { break };
        tokens = refreshed.tokens.unwrap();
        seen.push(tokens.access_token.clone());
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_of_a_race_with_a_wide_revocation_is_active_after_it() {
    let cluster = Cluster::start(&new_database().await).await;
    let mut clients = cluster.clients().await;
    for round in 0..6 {
        // The cut-offs of earlier rounds do not cover sessions of this tenant.
        let tenant = format!("acme {round}");
        let now = SystemClock.now().seconds();
        let at = |seconds: i64| prost_types::Timestamp { seconds, nanos: 0 };
        // In odd rounds the revocation is by authentication. Then it also covers every session that
        // is created with an earlier authentication meanwhile.
        let by_authentication = round % 2 == 1;
        let (instant, authenticated_at) = match by_authentication {
            false => (None, None),
            true => (Some(Instant::AuthenticatedBefore(at(now))), Some(at(now - 1))),
        };
        let target = SessionsTarget {
            r#where: Some(Where::Tenant(tenant.clone())),
            client_id: CLIENT.to_owned(),
            instant,
        };
        let request =
            RevokeRequest { target: Some(Target::Sessions(target)), ..Default::default() };
        let creation = CreateSessionRequest {
            subject: "alice".to_owned(),
            tenant,
            client_id: CLIENT.to_owned(),
            authenticated_at,
            ..Default::default()
        };
        let mut existing = vec![];
        for client in &mut clients {
            existing.push(client.create_session(creation.clone()).await);
        }
        let existing = existing.into_iter().map(|one| one.unwrap().into_inner().tokens.unwrap());
        let is_revoked = AtomicBool::new(false);
        let refreshing = existing
            .zip(&clients)
            .map(|(tokens, client)| keep_refreshing(client.clone(), tokens, &is_revoked));
        let signing_in = clients
            .iter()
            .map(|client| keep_signing_in(client.clone(), creation.clone(), &is_revoked));
        let mut revoking = clients[round % 3].clone();
        let (refreshed, created, revoked) =
            tokio::join!(join_all(refreshing), join_all(signing_in), async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                let revoked = revoking.revoke(request).await;
                is_revoked.store(true, Ordering::SeqCst);
                revoked
            });
        revoked.unwrap();
        let created = created.into_iter().filter(|_| by_authentication);
        for token in refreshed.into_iter().chain(created).flatten() {
            for client in &mut clients {
                assert!(!validate(client, &token).await.active, "round {round}");
            }
        }
    }
}
