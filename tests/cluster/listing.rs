//! Tests of `countersign replica list`: its table for people, and its JSON for scripts.

use countersign_test_support::{
    postgres_server::{execute, new_database, number},
    process::{Run, countersign, run},
    watcher::Watcher,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::replicas::{Cluster, SHORT_LEASE, eventually};

/// Creates a role that may only read, which is all that the command needs, and returns the URL of
/// the database with that role.
async fn read_only_url(url: &str) -> String {
    let reader = format!("{}_reader", url.rsplit_once('/').unwrap().1);
    execute(
        url,
        &format!(
            "CREATE ROLE {reader} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}"
        ),
    )
    .await;
    url.replace("postgres@", &format!("{reader}@"))
}

/// Runs the command in an empty folder, without a master key or a data directory, and checks that
/// the folder stays empty.
fn list(url: &str, args: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let mut command = countersign();
    command
        .args(["replica", "list", "--database-url", url])
        .args(args)
        .env("COUNTERSIGN_LOG__LEVEL", "error");
    let run = block_in_place(|| run(command.current_dir(folder.path())));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the command created a file");
    run
}

/// Returns one field of each listed replica.
fn each(list: &Value, field: &str) -> Vec<Value> {
    list["replicas"].as_array().unwrap().iter().map(|replica| replica[field].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_read_can_list_replicas_with_their_state() {
    let url = new_database().await;
    let lease = [("COUNTERSIGN_LEASE__DURATION", "3s")];
    let mut cluster = Cluster::start_by([url.as_str(); 2], &url, &lease).await;
    let reader = read_only_url(&url).await;

    let listed = list(&reader, &["--json"]).json();
    // The creation of the first keys has taken the first number of the feed.
    assert_eq!([&listed["head"], &listed["settled"]], [&json!(1), &json!(true)]);
    assert_eq!(each(&listed, "state"), ["REPLICA_STATE_LIVE"; 2]);
    assert_eq!(each(&listed, "version"), [env!("CARGO_PKG_VERSION"); 2]);
    assert_eq!(each(&listed, "wait"), ["3.256s"; 2]);
    assert_eq!([each(&listed, "applied"), each(&listed, "lag")], [[1; 2], [0; 2]]);
    let ids = each(&listed, "incarnation");
    assert_ne!(ids[0], ids[1]);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(each(&listed, "name"), [host.as_str(); 2]);
    let table = list(&reader, &[]).ok();
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    let header = [
        "REPLICA", "NAME", "ADDRESS", "VERSION", "STATE", "JOINED", "UNTIL", "RENEWED", "APPLIED",
        "LAG", "WATCHERS", "WAIT",
    ];
    assert_eq!(rows[0], header);
    let addresses = each(&listed, "address");
    let ports: Vec<String> =
        cluster.replicas.iter().map(|replica| replica.address().to_string()).collect();
    assert!(
        addresses[0] != addresses[1] && ports.iter().all(|port| addresses.contains(&json!(port))),
        "{listed}"
    );
    for ((row, id), address) in rows[1..3].iter().zip(&ids).zip(&addresses) {
        let expected = [id.as_str().unwrap(), &host, address.as_str().unwrap(), "live", "-"];
        assert_eq!([row[0], row[1], row[2], row[4], row[6]], expected, "{table}");
        assert_eq!(row[8..], ["ago", "1", "0", "0", "3256ms"], "{table}");
    }
    assert_eq!(
        table.lines().nth(3),
        Some("head of the feed: 1; all replicas that may answer are listed")
    );
    assert_eq!(number(&url, "SELECT count(*) FROM replicas").await, 2, "the command does not join");

    let (watcher, _) = Watcher::begin(cluster.replicas[0].channel().await).await;
    eventually("the watcher is listed at its replica", async || {
        let listed = list(&reader, &["--json"]).json();
        let mut watchers = each(&listed, "watchers");
        watchers.sort_by_key(Value::as_i64);
        (watchers == [0, 1]).then_some(())
    })
    .await;
    drop(watcher);

    // When both replicas are killed, none is left that would remove their rows. The update
    // simulates a feed that has advanced in a timeline other than the server's.
    cluster.kill(0).await;
    cluster.kill(1).await;
    execute(&url, "UPDATE feed_head SET seq = 7, timeline = 0").await;
    let listed = eventually("both are listed as gone", async || {
        let listed = list(&reader, &["--json"]).json();
        (each(&listed, "state") == ["REPLICA_STATE_GONE"; 2]).then_some(listed)
    })
    .await;
    assert_eq!([each(&listed, "lag"), each(&listed, "applied")], [[6; 2], [1; 2]]);
    let seconds =
        |span: &Value| span.as_str().unwrap().strip_suffix('s').unwrap().parse::<f64>().unwrap();
    assert!(each(&listed, "renewed_ago").iter().all(|ago| seconds(ago) >= 3.256), "{listed}");
    assert_eq!([&listed["head"], &listed["settled"]], [&json!(7), &json!(false)]);
    let table = list(&reader, &[]).ok();
    assert!(
        table.lines().nth(3).unwrap().starts_with("head of the feed: 7; there was a failover"),
        "{table}"
    );

    execute(&url, "DELETE FROM replicas").await;
    assert!(list(&reader, &[]).ok().starts_with("no replicas\nhead of the feed: 7"));
    assert_eq!(list(&reader, &["--json"]).json()["replicas"], json!([]));
}

/// Replicas with the same name differ in their addresses. A former replica is listed with the way
/// in which it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_left_or_was_removed_stays_in_the_list() {
    let url = new_database().await;
    let settings = [SHORT_LEASE.as_slice(), &[("COUNTERSIGN_REPLICA__NAME", "auth-7")]].concat();
    let mut cluster = Cluster::start_by([url.as_str(); 3], &url, &settings).await;
    let reader = read_only_url(&url).await;
    let listed = list(&reader, &["--json"]).json();
    assert_eq!(each(&listed, "name"), ["auth-7"; 3]);

    let addresses: Vec<String> =
        cluster.replicas.iter().map(|replica| replica.address().to_string()).collect();
    cluster.kill(1).await;
    cluster.replicas[2].signal("TERM");
    assert!(block_in_place(|| cluster.replicas[2].exit()).success());
    let listed = eventually("two are listed as former replicas", async || {
        let listed = list(&reader, &["--json"]).json();
        let mut states = each(&listed, "state");
        states.sort_by_key(|state| state.as_str().map(str::to_owned));
        let expected = ["REPLICA_STATE_LEFT", "REPLICA_STATE_LIVE", "REPLICA_STATE_REMOVED"];
        (states == expected).then_some(listed)
    })
    .await;
    for (state, address) in
        [("LIVE", &addresses[0]), ("REMOVED", &addresses[1]), ("LEFT", &addresses[2])]
    {
        let replicas = listed["replicas"].as_array().unwrap();
        let replica = replicas.iter().find(|replica| replica["address"] == json!(address)).unwrap();
        assert_eq!(replica["state"], json!(format!("REPLICA_STATE_{state}")), "{listed}");
        assert_eq!(replica["until"].is_string(), state != "LIVE", "{listed}");
    }
    let table = list(&reader, &[]).ok();
    let row = |address: &str| -> Vec<&str> {
        table.lines().find(|line| line.contains(address)).unwrap().split_whitespace().collect()
    };
    for (state, address) in [("removed", &addresses[1]), ("left", &addresses[2])] {
        let row = row(address);
        assert_eq!(
            [row[1], row[4], row[7], row[9], row[10]],
            ["auth-7", state, "-", "-", "-"],
            "{table}"
        );
        assert!(
            row[5].starts_with("20") && row[6].starts_with("20"),
            "the times at which it joined and left: {table}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_replicas_creates_no_tables_in_an_empty_database() {
    let url = new_database().await;
    assert!(list(&url, &[]).error(2).contains("`countersign migrate`"));
    assert_eq!(number(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
}
