//! Tests of replicas that cannot renew their lease. Such a replica answers that it is not current,
//! and a revocation waits for it no longer than its lease may last.

use std::time::Duration;

use countersign::proto::{BatchValidateRequest, RevokeRequest, revoke_request::Target};
use countersign_test_support::{
    ledger::{reason, validate},
    postgres_server::{new_database, number},
    proxy::Link,
};
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    load::is_retriable,
    replicas::{
        Cluster, Health, SHORT_LEASE, assert_not_current, becomes_inactive, question, revoke,
        sign_in,
    },
    witness::Witness,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_is_not_serving_until_it_is_connected_again() {
    let (cluster, links) = Cluster::linked(&new_database().await, &SHORT_LEASE).await;
    let mut clients = cluster.clients().await;
    let mut health = Health::of(&cluster.replicas[0]).await;
    health.becomes(ServingStatus::Serving).await;
    for (name, cut_off) in [("stalled", Link::stall as fn(&Link)), ("refused", Link::refuse)] {
        let good = sign_in(&mut clients[0], &format!("good {name}")).await.access_token;
        let bad = sign_in(&mut clients[0], &format!("bad {name}")).await.access_token;
        let witness = Witness::of(&cluster.replicas, &bad).await;
        cut_off(&links[0]);
        if name == "refused" {
            links[0].cut();
        }
        health.becomes(ServingStatus::NotServing).await;
        assert_not_current(&mut clients[0], &good).await;
        let batch = BatchValidateRequest { requests: vec![question(&good)] };
        let refused = clients[0].batch_validate(batch).await.unwrap_err();
        assert!(reason(&refused) == "NOT_CURRENT" && is_retriable(&refused), "{refused:?}");

        assert_eq!(
            revoke(&mut clients[1], Target::Token(bad.clone())).await,
            1,
            "the revocation is acknowledged although one replica is cut off"
        );
        witness.acknowledged();
        assert_not_current(&mut clients[0], &bad).await;
        for client in &mut clients[1..] {
            assert!(
                validate(client, &good).await.active,
                "the other replicas still accept the token"
            );
            assert!(!validate(client, &bad).await.active);
        }

        links[0].restore();
        health.becomes(ServingStatus::Serving).await;
        assert!(validate(&mut clients[0], &good).await.active);
        assert!(!validate(&mut clients[0], &bad).await.active);
        witness.stop().await;
    }
}

/// A caller that gives up before the acknowledgement gets an error, but the revocation that was
/// written takes effect all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_takes_effect_even_if_its_caller_gives_up_before_the_acknowledgement() {
    const TIMEOUT: Duration = Duration::from_millis(100);

    // The lease has its default duration, so callers give up long before it ends.
    let cluster = Cluster::start(&new_database().await).await;
    let mut clients = cluster.clients().await;
    let token = sign_in(&mut clients[0], "alice").await.access_token;
    let stopped = &cluster.replicas[2];
    assert!(validate(&mut clients[2], &token).await.active);
    let witness = Witness::of(&cluster.replicas, &token).await;
    stopped.signal("STOP");
    let target = Some(Target::Token(token.clone()));
    loop {
        let mut request =
            Request::new(RevokeRequest { target: target.clone(), ..Default::default() });
        request.set_timeout(TIMEOUT);
        let refused = clients[0]
            .revoke(request)
            .await
            .expect_err("the stopped replica has not reported that it knows the revocation");
        assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused:?}");
        // On a busy machine the caller may have given up before the entry was written.
        if number(&cluster.url, "SELECT count(*) FROM blacklist").await == 1 {
            break;
        }
    }
    for client in &mut clients[..2] {
        becomes_inactive(client, &token).await;
    }
    assert_eq!(
        revoke(&mut clients[1], Target::Token(token.clone())).await,
        0,
        "a caller that waits gets the acknowledgement"
    );
    witness.acknowledged();
    stopped.signal("CONT");
    becomes_inactive(&mut clients[2], &token).await;
    witness.stop().await;
}
