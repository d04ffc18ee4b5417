//! Links to the database that are slow, silent or cut.

use std::time::Duration;

use countersign_test_support::{postgres_server::new_database, proxy::Link};
use futures_util::future::join_all;

use crate::{
    flood::Flood,
    load::{Load, Trouble},
    replicas::{Cluster, Replica, becomes, becomes_inactive, dice, revoke_with_retries, sign_in},
};

const TIMEOUT: Duration = Duration::from_millis(100);
/// A delay that is longer than any time-out of the service.
const LONG_DELAY: Duration = Duration::from_secs(30);
/// The growth of resident memory, in MiB, that the test allows.
const SLACK: u64 = 48;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_very_slow_database_makes_only_writes_fail_and_does_not_fill_the_memory() {
    let (cluster, links) = Cluster::linked(&new_database().await, &[]).await;
    let mut dice = dice();
    let slow = &cluster.replicas[..2];
    let floods = join_all(slow.iter().map(Flood::prepare)).await;
    let load = Load::start(&cluster, "slow", &mut dice, |_| Trouble::Database).await;
    load.all_answered(20).await;

    links[0].delay(LONG_DELAY, Duration::ZERO);
    links[1].delay(Duration::ZERO, LONG_DELAY);
    load.failed(0).await;
    load.failed(1).await;
    let memory = || slow.iter().map(Replica::resident).collect::<Vec<_>>();
    let before = memory();
    for flood in &floods {
        println!("{:?}", flood.run(4_000, TIMEOUT, &mut dice).await);
    }
    let after = memory();
    println!("MiB resident: {before:?}, in the end {after:?}");
    assert!(
        before.iter().zip(&after).all(|(before, after)| *after <= before + SLACK),
        "{before:?}, {after:?}"
    );

    for link in &links {
        link.restore();
    }
    load.all_answered(20).await;
    let mut accounts = load.stop().await;
    cluster.rest().await;
    cluster.verify(&mut accounts).await;
}

/// A proxy or a firewall may drop a connection without telling either end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_given_up_and_replaced() {
    let (cluster, links) = Cluster::linked(&new_database().await, &[]).await;
    let mut dice = dice();
    let load = Load::start(&cluster, "silent", &mut dice, |_| Trouble::Database).await;
    load.all_answered(20).await;
    links[0].silence();
    load.failed(0).await;
    load.answered(0, 50).await;
    let mut accounts = load.stop().await;

    // The connections that read the feed must have been replaced too.
    let mut clients = [cluster.replicas[0].sessions().await, cluster.replicas[1].sessions().await];
    for (revoking, hearing) in [(0, 1), (1, 0)] {
        let token = sign_in(&mut clients[hearing], "alice").await.access_token;
        revoke_with_retries(&mut clients[revoking], &token).await;
        becomes_inactive(&mut clients[hearing], &token).await;
    }
    // The server may still have the old connections open, so they are cut.
    links[0].cut();
    cluster.rest().await;
    cluster.verify(&mut accounts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_made_as_soon_as_the_database_can_be_reached_again() {
    let (cluster, links) = Cluster::linked(&new_database().await, &[]).await;
    let mut dice = dice();
    for (name, trouble) in [("stalled", Link::stall as fn(&Link)), ("refused", Link::refuse)] {
        let load = Load::start(&cluster, name, &mut dice, |_| Trouble::Database).await;
        load.all_answered(20).await;
        trouble(&links[0]);
        links[0].cut();
        load.failed(0).await;
        links[0].restore();
        load.all_answered(20).await;
        cluster.verify(&mut load.stop().await).await;
    }
}

/// The write is committed, but its answer is lost, so the replica does not know the outcome. It
/// must not repeat the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_answer_is_lost_are_made_once_and_not_acknowledged() {
    let (cluster, links) = Cluster::linked(&new_database().await, &[]).await;
    let load = Load::start(&cluster, "answer lost", &mut dice(), |_| Trouble::Database).await;
    for _ in 0..10 {
        load.all_answered(10).await;
        links[0].delay(Duration::ZERO, LONG_DELAY);
        // When no statement is running, the server has executed everything that the replica sent.
        becomes(&cluster.url, &cluster.replicas[0].connections("active"), 0).await;
        links[0].cut();
        links[0].restore();
    }
    load.failed(0).await;
    load.all_answered(10).await;
    let mut accounts = load.stop().await;
    cluster.rest().await;
    cluster.verify(&mut accounts).await;
}

/// A proxy that has forgotten a connection may never answer its start-up packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_while_they_are_made_are_given_up_and_replaced() {
    let (cluster, links) = Cluster::linked(&new_database().await, &[]).await;
    let load = Load::start(&cluster, "half made", &mut dice(), |_| Trouble::Database).await;
    load.all_answered(20).await;
    links[0].stall();
    links[0].cut();
    // After these failures, everything that needs a connection waits for one that is being made.
    for _ in 0..20 {
        load.failed(0).await;
    }
    links[0].silence();
    links[0].restore();
    load.answered(0, 50).await;
    let mut accounts = load.stop().await;
    links[0].cut();
    cluster.rest().await;
    cluster.verify(&mut accounts).await;
}
