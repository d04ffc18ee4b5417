//! `countersign replica list`: the register as people and scripts read it.

use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    postgres_server::{execute, new_database, number},
    replicas::{Cluster, eventually},
    support::{Run, countersign, run},
};

/// A URL under which the database may be read and nothing else. The verb needs no more.
async fn reading(url: &str) -> String {
    let reader = format!("{}_reader", url.rsplit_once('/').unwrap().1);
    execute(url, &format!("CREATE ROLE {reader} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")).await;
    url.replace("postgres@", &format!("{reader}@"))
}

/// Runs the verb where there is neither a master key nor a data directory.
fn list(url: &str, args: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let mut command = countersign();
    command.args(["replica", "list", "--database-url", url]).args(args).env("COUNTERSIGN_LOG__LEVEL", "error");
    let run = block_in_place(|| run(command.current_dir(folder.path())));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
    run
}

/// A field of each replica.
fn each(list: &Value, field: &str) -> Vec<Value> {
    list["replicas"].as_array().unwrap().iter().map(|replica| replica[field].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_listed_with_their_state_by_whoever_may_read() {
    let url = new_database().await;
    let lease = [("COUNTERSIGN_LEASE__DURATION", "3s")];
    let mut cluster = Cluster::start_by([url.as_str(); 2], &url, &lease).await;
    let reader = reading(&url).await;

    let listed = list(&reader, &["--json"]).json();
    // The first place in the feed is that of the first keys.
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
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["REPLICA", "NAME", "VERSION", "STATE", "JOINED", "RENEWED", "APPLIED", "LAG", "WAIT"]);
    for (row, id) in rows[1..3].iter().zip(&ids) {
        assert_eq!([row[0], row[1], row[3], row[6]], [id.as_str().unwrap(), &host, "live", "ago"], "{table}");
        assert_eq!(row[7..], ["1", "0", "3256ms"], "{table}");
    }
    assert_eq!(table.lines().nth(3), Some("head of the feed: 1; all who may answer are listed"));
    assert_eq!(number(&url, "SELECT count(*) FROM replicas").await, 2, "who looks does not join");

    // Nobody is left to remove them, and the feed has gone on in another history.
    cluster.kill(0).await;
    cluster.kill(1).await;
    execute(&url, "UPDATE feed_head SET seq = 7, timeline = 0").await;
    let listed = eventually("they are gone", async || {
        let listed = list(&reader, &["--json"]).json();
        (each(&listed, "state") == ["REPLICA_STATE_GONE"; 2]).then_some(listed)
    })
    .await;
    assert_eq!([each(&listed, "lag"), each(&listed, "applied")], [[6; 2], [1; 2]]);
    let seconds = |span: &Value| span.as_str().unwrap().strip_suffix('s').unwrap().parse::<f64>().unwrap();
    assert!(each(&listed, "renewed_ago").iter().all(|ago| seconds(ago) >= 3.256), "{listed}");
    assert_eq!([&listed["head"], &listed["settled"]], [&json!(7), &json!(false)]);
    let table = list(&reader, &[]).ok();
    assert!(table.lines().nth(3).unwrap().starts_with("head of the feed: 7; there was a failover"), "{table}");

    execute(&url, "DELETE FROM replicas").await;
    assert!(list(&reader, &[]).ok().starts_with("no replicas\nhead of the feed: 7"));
    assert_eq!(list(&reader, &["--json"]).json()["replicas"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_tables_is_left_without_them() {
    let url = new_database().await;
    assert!(list(&url, &[]).error(2).contains("`countersign migrate`"));
    assert_eq!(number(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
}
