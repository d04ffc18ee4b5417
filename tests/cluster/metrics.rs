//! The metrics of replicas, both when they are healthy and when something is wrong.

use std::{collections::BTreeSet, fs, path::Path};

use countersign::proto::revoke_request::Target;
use countersign_test_support::{
    http_client::{Metrics, get},
    postgres_server::{execute, new_database},
    proxy::Link,
};
use futures_util::future::join_all;

use crate::replicas::{Cluster, Replica, eventually, revoke, sign_in};

/// Waits until the metrics of a replica satisfy `wanted`, and returns them.
async fn await_metrics(
    replica: &Replica,
    what: &str,
    wanted: impl Fn(&Metrics) -> bool,
) -> Metrics {
    eventually(what, async || Some(Metrics::of(replica.http()).await).filter(&wanted)).await
}

async fn revoke_one(replica: &Replica) {
    let mut client = replica.sessions().await;
    let token = sign_in(&mut client, "alice").await.access_token;
    revoke(&mut client, Target::Token(token)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthy_replicas_know_each_other_renew_their_leases_and_report_what_they_have_applied() {
    let url = new_database().await;
    // The lease is so long that it does not lapse on a busy machine.
    let lease = [("COUNTERSIGN_LEASE__DURATION", "20s")];
    let cluster = Cluster::start_by([url.as_str(); 3], &url, &lease).await;
    revoke_one(&cluster.replicas[0]).await;
    for (n, replica) in cluster.replicas.iter().enumerate() {
        // A replica that started before the last one joined learns of it by its next renewal.
        let metrics =
            await_metrics(replica, "two others", |metrics| metrics.get("other_replicas") == 2.0)
                .await;
        let names = ["lease_current", "blacklist_entries"];
        assert_eq!(names.map(|name| metrics.get(name)), [1.0; 2], "replica {n}");
        // In the feed, the creation of the first keys has number 1, and the revocation has number
        // 2.
        assert_eq!(
            ["feed_applied_seq", "feed_head_seq"].map(|name| metrics.get(name)),
            [2.0; 2],
            "replica {n}"
        );
        let remaining = metrics.get("lease_remaining_seconds");
        assert!(0.0 < remaining && remaining <= 20.0, "replica {n}: {remaining}");
        assert_eq!(
            metrics.acknowledged("everywhere") > 0.0,
            n == 0,
            "only the replica that was called counts the acknowledgement"
        );
        let renewals = metrics.renewals("confirmed");
        let later = await_metrics(replica, "another renewal", |metrics| {
            metrics.renewals("confirmed") > renewals
        })
        .await;
        let troubles = [
            "lease_lapses_total",
            "rejoins_total",
            "replicas_removed_total",
            "guarantee_broken_revocations_total",
        ];
        assert_eq!(troubles.map(|name| later.get(name)), [0.0; 4], "replica {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_has_no_lease_and_is_not_ready_until_it_has_joined_again() {
    let url = new_database().await;
    let link = Link::to(&url).await;
    let linked = link.url();
    let cluster = Cluster::start_by([&url, linked.as_str()], &url, &[]).await;
    let [well, cut_off] = [&cluster.replicas[0], &cluster.replicas[1]];
    assert_eq!(get(cut_off.http(), "/readyz").await.status, 200);

    link.stall();
    let metrics =
        await_metrics(cut_off, "the lease ends", |metrics| metrics.get("lease_current") == 0.0)
            .await;
    assert_eq!(metrics.get("lease_remaining_seconds"), 0.0);
    let lapsed = |metrics: &Metrics| {
        metrics.get("lease_lapses_total") > 0.0 && metrics.renewals("failed") > 0.0
    };
    let metrics = await_metrics(cut_off, "the lapse is counted", lapsed).await;
    // The last renewal is older than the duration of the lease, because the lease has ended.
    assert!(metrics.get("lease_renewal_age_seconds") > 1.0);
    eventually("the replica is not ready", async || {
        let answer = get(cut_off.http(), "/readyz").await;
        (answer.status == 503 && answer.body.starts_with("the lease has lapsed")).then_some(())
    })
    .await;
    assert_eq!(
        get(cut_off.http(), "/livez").await.status,
        200,
        "a lapse is no reason to kill the process"
    );
    let removed = |metrics: &Metrics| {
        metrics.get("replicas_removed_total") > 0.0 && metrics.get("other_replicas") == 0.0
    };
    await_metrics(well, "the replica is removed", removed).await;

    link.restore();
    await_metrics(cut_off, "there is a lease again", |metrics| metrics.get("lease_current") == 1.0)
        .await;
    eventually("the replica is ready", async || {
        (get(cut_off.http(), "/readyz").await.status == 200).then_some(())
    })
    .await;
    let metrics = Metrics::of(cut_off.http()).await;
    assert!(metrics.get("rejoins_total") > 0.0, "the row of the replica was gone");
    await_metrics(well, "the replica is back", |metrics| metrics.get("other_replicas") == 1.0)
        .await;
}

/// The test adds a row to `replicas` that cannot be deleted and never advances in the feed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_a_replica_that_does_not_report_are_counted_and_timed_and_some_are_logged() {
    let url = new_database().await;
    let settings = [
        ("COUNTERSIGN_LEASE__DURATION", "600ms"),
        ("COUNTERSIGN_LEASE__RENEWAL", "100ms"),
        ("COUNTERSIGN_LEASE__MARGIN", "50ms"),
    ];
    let mut cluster = Cluster::start_by([url.as_str()], &url, &settings).await;
    let late = "INSERT INTO replicas (incarnation, name, version, holds_for, applied) VALUES \
                (gen_random_uuid(), 'late', '0', '100ms', 0); CREATE RULE keep AS ON DELETE TO \
                replicas WHERE OLD.name = 'late' DO INSTEAD NOTHING";
    execute(&url, late).await;
    join_all((0..10).map(|_| revoke_one(&cluster.replicas[0]))).await;
    let metrics = Metrics::of(cluster.replicas[0].http()).await;
    assert_eq!(
        [metrics.acknowledged("after_wait"), metrics.acknowledged("everywhere")],
        [10.0, 0.0]
    );
    let within = |bound: &str| {
        let name = "acknowledgement_duration_seconds_bucket";
        metrics.get(&format!("{name}{{le=\"{bound}\",outcome=\"after_wait\"}}"))
    };
    assert_eq!(within("0.5"), 0.0, "every wait was at least as long as the longest lease");
    let is_warning =
        |line: &&String| line.contains("a revocation had to wait") && line.contains("WARN");
    let warnings = cluster.replicas[0].log().iter().filter(is_warning).count();
    assert!((1..10).contains(&warnings), "{warnings} lines");
}

/// The test puts the database into the state in which a failover leaves it if the standby had not
/// received the last commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_the_database_has_lost_breaks_the_guarantee_and_is_counted() {
    let url = new_database().await;
    let cluster = Cluster::start_by([url.as_str()], &url, &[]).await;
    let replica = &cluster.replicas[0];
    revoke_one(replica).await;
    let lose = "DELETE FROM blacklist; DELETE FROM replicas; UPDATE sessions SET ended_at = NULL, \
                end_reason = NULL, end_note = NULL, is_over = false";
    execute(&url, lose).await;
    let metrics = await_metrics(replica, "the loss is noticed", |metrics| {
        metrics.get("guarantee_broken_revocations_total") > 0.0
    })
    .await;
    assert_eq!(
        ["guarantee_broken_revocations_total", "rejoins_total"].map(|name| metrics.get(name)),
        [1.0; 2]
    );
    await_metrics(replica, "the revocation is written again", |metrics| {
        metrics.get("feed_applied_seq") == 3.0
    })
    .await;
}

/// Returns all words of a text that begin with `countersign_`.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("countersign_")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_names_only_existing_metrics_and_every_metric_is_documented() {
    let url = new_database().await;
    let cluster = Cluster::start_by([url.as_str()], &url, &[]).await;
    // The sizes of the database are read for the first time soon after the start.
    let has_sizes = |metrics: &Metrics| metrics.find("database_bytes").is_some();
    await_metrics(&cluster.replicas[0], "the sizes are read", has_sizes).await;
    let page = get(cluster.replicas[0].http(), "/metrics").await.body;
    let samples: BTreeSet<_> =
        page.lines().filter(|line| !line.starts_with('#')).flat_map(metric_names).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| metric_names(&fs::read_to_string(root.join(path)).unwrap());

    // A histogram is documented by its name, to which its samples add suffixes.
    let sampled: BTreeSet<_> = samples
        .iter()
        .map(|sample| {
            let histogram =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
            let is_one = |name: &&str| samples.contains(&format!("{name}_bucket"));
            histogram.filter(is_one).unwrap_or(sample).to_owned()
        })
        .collect();
    let of_tls = "countersign_certificate_expiry_timestamp_seconds";
    let is_known =
        |name: &String| samples.contains(name) || sampled.contains(name) || name == of_tls;
    for path in ["docs/operations.md", "docs/guarantees.md", "docs/metrics.md", "docs/runbook.md"] {
        let unknown: Vec<_> = read(path).into_iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
    let documented = read("docs/metrics.md");
    let undocumented: Vec<_> = sampled.difference(&documented).collect();
    assert!(undocumented.is_empty(), "docs/metrics.md lacks {undocumented:?}");
    assert!(samples.len() > 10, "{page}");
}
