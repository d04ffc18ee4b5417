//! Another transaction holds a lock that all writes and reads of sessions need. They must block,
//! and nothing else may.

use std::time::Duration;

use countersign_test_support::postgres_server::{new_database, number};
use futures_util::future::join_all;

use crate::{
    flood::{Flood, read_and_give_up},
    load::{Trouble, Validator},
    replicas::{Cluster, assert_works_again, create, dice, hold},
};

const ALL_SESSIONS: &str = "LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE";
/// The deadline of calls: shorter than any time-out of the service.
const TIMEOUT: Duration = Duration::from_millis(50);
/// The memory, in MiB, that all queues take when they are full of the largest writes. A write stays
/// queued after its caller has gone, until the database answers. If the queues had no bound, the
/// calls of this test would take twice as much.
const FULL_QUEUES: u64 = 96;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_writes_end_at_their_deadline_and_do_not_fill_the_memory() {
    let cluster = Cluster::start(&new_database().await).await;
    let replica = &cluster.replicas[0];
    let mut dice = dice();
    let flood = Flood::prepare(replica).await;
    let validators =
        join_all(cluster.replicas.iter().map(|replica| Validator::start(replica, Trouble::None)))
            .await;
    let idle = replica.resident();

    let holding = hold(&cluster.url, ALL_SESSIONS).await;
    let answers = flood.run(32_000, TIMEOUT, &mut dice).await;
    let after = replica.resident();
    println!("{answers:?}; MiB resident: {idle}, in the end {after}");
    assert!(after <= idle + FULL_QUEUES, "memory grew from {idle} MiB to {after} MiB");
    for validator in validators {
        assert!(validator.stop().await > 0);
    }

    holding.release().await;
    assert_works_again(&cluster, &mut dice).await;
}

/// The connection of a caller that gave up still waits for the database. The replica must not open
/// another connection in its place for the next caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_whose_callers_give_up_do_not_add_connections() {
    let cluster = Cluster::start(&new_database().await).await;
    let mut client = cluster.replicas[0].sessions().await;
    let session_id = create(&mut client, "alice").await.session.unwrap().session_id;
    let holding = hold(&cluster.url, ALL_SESSIONS).await;
    for _ in 0..6 {
        read_and_give_up(&client, &session_id, 16, TIMEOUT).await;
    }
    let connections = number(&cluster.url, &cluster.replicas[0].connections("%")).await;
    // The limit covers the pool, the connection that listens, and the one that renews the lease.
    assert!(connections <= 18, "{connections} connections");
    holding.release().await;
    assert_works_again(&cluster, &mut dice()).await;
}
