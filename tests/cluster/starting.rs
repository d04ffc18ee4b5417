//! Replicas start at the same instant, are killed in the middle of a migration, or find no database
//! yet.

use std::time::Duration;

use crate::replicas::{Cluster, SHORT_LEASE, WAITING, becomes, eventually, hold, sign_in};
use countersign_test_support::{
    http_client::get,
    ledger::{refresh, validate},
    ports::free_address,
    postgres_server::{new_database, number},
    process::countersign,
    proxy::Link,
};

/// A statement that takes the advisory lock that a replica holds while it migrates.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(1129539438)";
const MIGRATIONS: &str = "SELECT count(*) FROM __diesel_schema_migrations";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_on_an_empty_database_share_one_schema_and_one_set_of_keys() {
    for _ in 0..3 {
        let url = new_database().await;
        let cluster = Cluster::start_by([url.as_str(); 2], &url, &[]).await;
        let logs = cluster.replicas.iter().flat_map(|replica| replica.seen());
        let migrated = logs.filter(|line| line.contains("database migrated")).count();
        assert_eq!(
            number(&url, MIGRATIONS).await,
            i64::try_from(migrated).unwrap(),
            "each migration is applied once"
        );
        assert!(migrated > 0);
        for (one, other) in [(0, 1), (1, 0)] {
            let tokens = sign_in(&mut cluster.replicas[one].sessions().await, "alice").await;
            let mut client = cluster.replicas[other].sessions().await;
            assert!(validate(&mut client, &tokens.access_token).await.active);
            refresh(&mut client, &tokens.refresh_token).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_whose_process_is_killed_is_carried_out_by_the_next_start() {
    let before_it_begins = MIGRATION_LOCK;
    // The migration creates this table after other tables, so it waits here in the middle of its
    // work.
    let halfway = "CREATE TABLE feed_head (half int)";
    for obstacle in [before_it_begins, halfway] {
        let url = new_database().await;
        let mut cluster = Cluster::new(&url);
        let holding = hold(&url, obstacle).await;
        cluster.replicas.push(cluster.spawn(&url, &[]));
        becomes(&url, WAITING, 1).await;
        cluster.replicas.push(cluster.spawn(&url, &[]));
        becomes(&url, WAITING, 2).await;
        cluster.replicas[0].kill();
        holding.release().await;
        cluster.replicas[1].await_serving().await;
        sign_in(&mut cluster.replicas[1].sessions().await, "alice").await;
        let all = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres"))
            .unwrap()
            .count();
        assert_eq!(number(&url, MIGRATIONS).await, i64::try_from(all).unwrap());

        // A replica that starts after the migration works too.
        let mut next = cluster.spawn(&url, &[]);
        next.await_serving().await;
        sign_in(&mut next.sessions().await, "alice").await;
    }
}

/// A migration of a large table may take minutes. A replica that starts meanwhile waits for it,
/// even if that takes longer than the statement timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_a_migration_of_another_replica_however_long_it_takes() {
    let url = new_database().await;
    let holding = hold(&url, MIGRATION_LOCK).await;
    let cluster = Cluster::new(&url);
    let mut replica = cluster.spawn(&url, &[]);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                   wait_event = 'advisory' AND backend_start < now() - interval '11 s'";
    eventually("the start waits for longer than a statement may take", async || {
        let is_there = "SELECT count(*) FROM pg_class WHERE relname = 'sessions'";
        assert_eq!(
            number(&url, is_there).await,
            0,
            "the replica migrates although another process does"
        );
        (number(&url, waiting).await == 1).then_some(())
    })
    .await;
    holding.release().await;
    replica.await_serving().await;
}

/// Machines and containers start in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_a_database_that_cannot_be_reached_yet() {
    let url = new_database().await;
    let link = Link::to(&url).await;
    link.refuse();
    let (grpc, http) = (free_address(), free_address());
    let cluster = Cluster::new(&url);
    let settings =
        [("COUNTERSIGN_LISTEN", grpc.to_string()), ("COUNTERSIGN_HTTP_LISTEN", http.to_string())];
    let mut replica = cluster
        .spawn(&link.url(), &settings.each_ref().map(|(name, value)| (*name, value.as_str())));
    while !replica.next_line().contains("cannot be reached") {}
    assert_eq!(get(http, "/livez").await.status, 200);
    assert_eq!(get(http, "/readyz").await.status, 503);
    let health =
        countersign().args(["health", "--server", &format!("http://{grpc}")]).output().unwrap();
    assert_eq!(health.status.code(), Some(1), "{health:?}");

    link.restore();
    replica.await_serving().await;
    assert_eq!(get(http, "/readyz").await.status, 200);
    sign_in(&mut replica.sessions().await, "alice").await;
    let warnings = replica.seen().iter().filter(|line| line.contains("cannot be reached")).count();
    assert_eq!(warnings, 1, "one line for each change: {:?}", replica.seen());
}

/// Unlike with a server that cannot be reached, it would not help to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_exist_ends_the_start_at_once() {
    let url = new_database().await;
    let cluster = Cluster::new(&url);
    let mut replica = cluster.spawn(&format!("{url}_missing"), &[]);
    assert_eq!(replica.exit().code(), Some(2), "{:?}", replica.seen());
    let line = replica.seen().last().unwrap();
    assert!(line.contains("_missing") && line.contains("does not exist"), "{line}");
}

/// To open a connection takes several round trips. Over this link, that is longer than the other
/// replicas wait for a renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_far_from_the_database_joins_once_and_serves() {
    let url = new_database().await;
    let mut cluster = Cluster::start_by([url.as_str()], &url, &SHORT_LEASE).await;
    let link = Link::to(&url).await;
    link.delay(Duration::from_millis(100), Duration::from_millis(100));
    let mut far = cluster.spawn(&link.url(), &SHORT_LEASE);
    far.await_serving().await;
    let metrics = get(far.http(), "/metrics").await.body;
    assert!(metrics.contains("countersign_rejoins_total 0"), "{metrics}");
    cluster.replicas.push(far);
}
