//! Somebody holds a lock that every write and read of sessions needs: they stall, and nothing else
//! does.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    flood::{Flood, read_and_give_up},
    load::{Trouble, Validator},
    postgres_server::{new_database, number},
    replicas::{Cluster, assert_works_again, create, dice, hold},
};

const ALL_SESSIONS: &str = "LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE";
/// How long callers wait: less than any time-out of the service.
const PATIENCE: Duration = Duration::from_millis(50);
/// What all queues take up when they are full of the largest writes, in MiB: callers who have gone
/// leave theirs behind until the database answers. Without an end to the queues the attempts below
/// would take twice as much.
const FULL_QUEUES: u64 = 96;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_stall_are_given_up_in_time_and_fill_no_memory() {
    let cluster = Cluster::start(&new_database().await).await;
    let replica = &cluster.replicas[0];
    let mut dice = dice();
    let flood = Flood::prepare(replica).await;
    let validators =
        join_all(cluster.replicas.iter().map(|replica| Validator::start(replica, Trouble::None)))
            .await;
    let idle = replica.resident();

    let holding = hold(&cluster.url, ALL_SESSIONS).await;
    let answers = flood.run(32_000, PATIENCE, &mut dice).await;
    let after = replica.resident();
    println!("{answers:?}; MiB resident: {idle}, in the end {after}");
    assert!(after <= idle + FULL_QUEUES, "memory has a bound: {idle} MiB, and then {after} MiB");
    for validator in validators {
        assert!(validator.stop().await > 0);
    }

    holding.release().await;
    assert_works_again(&cluster, &mut dice).await;
}

/// A caller who is gone must not leave a connection behind that still waits, while others take its
/// place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_give_up_do_not_add_connections() {
    let cluster = Cluster::start(&new_database().await).await;
    let mut client = cluster.replicas[0].sessions().await;
    let session_id = create(&mut client, "alice").await.session.unwrap().session_id;
    let holding = hold(&cluster.url, ALL_SESSIONS).await;
    for _ in 0..6 {
        read_and_give_up(&client, &session_id, 16, PATIENCE).await;
    }
    let connections = number(&cluster.url, &cluster.replicas[0].connections("%")).await;
    // Those of the pool, the one that listens, and the one that renews the lease.
    assert!(connections <= 18, "{connections} connections");
    holding.release().await;
    assert_works_again(&cluster, &mut dice()).await;
}
