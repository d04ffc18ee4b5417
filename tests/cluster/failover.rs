//! The primary fails and its standby takes over. Everything that was acknowledged must hold. If the
//! standby had not received a revocation, the replicas that know the revocation write it again.

use countersign::proto::{
    CreateSessionRequest, Key, KeyPurpose, KeyState, ListKeysRequest, RevokeKeyRequest,
    key_service_client::KeyServiceClient, revoke_request::Target,
};
use countersign_test_support::{
    ledger::{Client, reason, refresh, validate},
    postgres_server::{Server, execute, number},
    proxy::Link,
    replication::Pair,
};
use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    load::{Load, Trouble},
    replicas::{
        Cluster, Health, Replica, SHORT_LEASE, WAYS, assert_not_current, becomes, dice, eventually,
        in_time, revoke, revoke_with_retries, sign_in,
    },
    witness::Witness,
};

/// A query that returns 1 if the table `replicas` is complete in the server's current timeline, and
/// 0 otherwise.
const SETTLED: &str = "SELECT count(*) FROM feed_head WHERE timeline = feed_timeline()";

/// The number of revocations in one check. If each of them waited for the end of leases, the check
/// would exceed its time limit.
const REVOCATIONS: usize = 200;

/// Waits until the table `replicas` counts as complete again. Then checks that revocations are
/// acknowledged by the reports of replicas, without a wait for the end of leases.
async fn assert_acknowledged_by_reports(cluster: &Cluster) {
    becomes(&cluster.url, SETTLED, 1).await;
    let mut client = cluster.replicas[0].sessions().await;
    let revocations = async {
        for _ in 0..REVOCATIONS {
            let token = sign_in(&mut client, "one of many").await.access_token;
            assert_eq!(revoke(&mut client, Target::Token(token)).await, 1);
        }
    };
    in_time("revocations are acknowledged without a wait for leases", revocations).await;
}

/// Returns whether a replica has logged the line for which operators set an alarm.
fn has_alarm(replica: &mut Replica) -> bool {
    replica.log().iter().any(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR"
            && message.starts_with("the database has lost revocations that had been acknowledged")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_takes_over_with_all_acknowledged_writes() {
    let pair = Pair::synchronous().await;
    let url = pair.url("postgres");
    let mut cluster =
        Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &SHORT_LEASE).await;
    let load = Load::start(&cluster, "failover", &mut dice(), |_| Trouble::Database).await;
    load.all_answered(50).await;
    // The last writes reach only the primary, and wait there for the standby.
    pair.part().await;
    let waiting = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE wait_event \
                   = 'SyncRep'";
    becomes(&cluster.url, waiting, 3).await;
    pair.crash();
    load.all_failed().await;
    pair.promote();
    load.all_answered(50).await;
    let mut accounts = load.stop().await;

    cluster.url = pair.standby.url("postgres");
    cluster.verify(&mut accounts).await;
    assert_acknowledged_by_reports(&cluster).await;
    cluster.verify(&mut accounts).await;
    assert!(!cluster.replicas.iter_mut().any(has_alarm), "nothing was lost");
}

/// The kernel of a primary whose processes are stopped still accepts connections and data, but no
/// answer comes back. Calls that wait there must be given up once the new primary is known, however
/// long the configured time-outs are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_is_abandoned_for_the_new_one_in_any_order_of_hosts() {
    // In the last round the new primary has lost the rows of the replicas, so they must join again.
    for (is_first, is_known) in [(true, true), (false, true), (true, false)] {
        let pair = Pair::synchronous().await;
        let mut hosts = [&pair.primary, &pair.standby];
        if !is_first {
            hosts.reverse();
        }
        let url = Server::url_of(&hosts, "postgres");
        let long_timeouts = [
            ("COUNTERSIGN_DATABASE__STATEMENT_TIMEOUT", "10m"),
            ("COUNTERSIGN_DATABASE__CONNECT_TIMEOUT", "10m"),
        ];
        let settings = [SHORT_LEASE.as_slice(), &long_timeouts].concat();
        let mut cluster =
            Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &settings).await;
        let load = Load::start(&cluster, "frozen", &mut dice(), |_| Trouble::Database).await;
        load.all_answered(50).await;
        // The test does not wait for failures: calls under way wait until there is a new primary.
        pair.primary.freeze();
        pair.promote();
        if !is_known {
            execute(&pair.standby.url("postgres"), "DELETE FROM replicas").await;
        }
        load.all_answered(50).await;
        let mut accounts = load.stop().await;
        cluster.url = pair.standby.url("postgres");
        cluster.verify(&mut accounts).await;
    }
}

/// A session that was revoked, and the way in which it was revoked.
struct Revoked {
    way: &'static str,
    access: String,
    refresh: String,
}

/// Checks that the token is inactive. The session must have ended, too, unless only the token was
/// revoked.
async fn assert_revoked(client: &mut Client, revoked: &Revoked) {
    let Revoked { way, access, refresh: refresh_token } = revoked;
    assert!(!validate(client, access).await.active, "{way}");
    if *way != "token only" {
        let refused = refresh(client, refresh_token).await.expect_err(way);
        assert_eq!(reason(&refused), "SESSION_REVOKED", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_lost_in_a_failover_are_rewritten_by_the_replicas_and_raise_an_alarm() {
    let pair = Pair::asynchronous().await;
    let url = pair.url("postgres");
    let mut cluster =
        Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &SHORT_LEASE).await;
    let mut clients = cluster.clients().await;
    let bystander = sign_in(&mut clients[0], "bystander").await;
    let mut created = vec![];
    for (way, choose) in WAYS {
        let request = CreateSessionRequest {
            subject: "alice".to_owned(),
            tenant: way.to_owned(),
            ..Default::default()
        };
        created.push((way, choose, clients[0].create_session(request).await.unwrap().into_inner()));
    }
    pair.part().await;
    let unreplicated = sign_in(&mut clients[0], "unreplicated").await.access_token;
    let mut all = vec![];
    for (n, (way, choose, created)) in created.iter().enumerate() {
        clients[n % 3].revoke(choose(created)).await.unwrap();
        let tokens = created.tokens.clone().unwrap();
        all.push(Revoked { way, access: tokens.access_token, refresh: tokens.refresh_token });
    }
    revoke(&mut clients[0], Target::Token(unreplicated.clone())).await;
    let witness = Witness::of(&cluster.replicas, &all[0].access).await;
    witness.acknowledged();

    pair.crash();
    cluster.url = pair.standby.url("postgres");
    let (entries, live) =
        ("SELECT count(*) FROM blacklist", "SELECT count(*) FROM sessions WHERE ended_at IS NULL");
    assert_eq!(
        (number(&cluster.url, entries).await, number(&cluster.url, live).await),
        (0, 6),
        "the standby has no revocation"
    );
    pair.promote();
    becomes(&cluster.url, entries, 6).await;
    // The two live sessions are the bystander's, and the session of which only a token was revoked.
    becomes(&cluster.url, live, 2).await;
    eventually("an alarm is raised", async || {
        cluster.replicas.iter_mut().any(has_alarm).then_some(())
    })
    .await;
    witness.stop().await;

    let mut newcomer = cluster.spawn(&url, &SHORT_LEASE);
    newcomer.await_serving().await;
    cluster.replicas.push(newcomer);
    for mut client in cluster.clients().await {
        for revoked in &all {
            assert_revoked(&mut client, revoked).await;
        }
        assert!(!validate(&mut client, &unreplicated).await.active);
        assert!(validate(&mut client, &bystander.access_token).await.active);
    }
    assert_acknowledged_by_reports(&cluster).await;
}

/// The replica still has a lease, but its row is missing at the new primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_waits_for_a_replica_whose_row_was_lost_in_a_failover() {
    let lease = [("COUNTERSIGN_LEASE__DURATION", "5s")];
    let pair = Pair::asynchronous().await;
    let url = pair.primary.url("postgres");
    let links = [Link::to(&url).await, Link::to(&url).await];
    let cluster = Cluster::start_by([links[0].url().as_str()], &url, &lease).await;
    let token = sign_in(&mut cluster.replicas[0].sessions().await, "alice").await.access_token;
    pair.part().await;
    let mut newcomer = cluster.spawn(&links[1].url(), &lease);
    newcomer.await_serving().await;
    assert!(validate(&mut newcomer.sessions().await, &token).await.active);

    pair.crash();
    pair.promote();
    links[0].lead_to(&pair.standby.url("postgres"));
    let newcomer = [newcomer];
    let witness = Witness::of(&newcomer, &token).await;
    revoke_with_retries(&mut cluster.replicas[0].sessions().await, &token).await;
    witness.acknowledged();
    witness.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_gets_a_lease_from_a_primary_that_was_replaced() {
    let pair = Pair::synchronous().await;
    let (cluster, links) = Cluster::linked(&pair.primary.url("postgres"), &SHORT_LEASE).await;
    let mut clients = cluster.clients().await;
    let good = sign_in(&mut clients[0], "alice").await.access_token;
    let bad = sign_in(&mut clients[1], "bob").await.access_token;
    let refreshed = sign_in(&mut clients[2], "carol").await;
    for client in &mut clients {
        assert!(validate(client, &bad).await.active);
    }
    let witness = Witness::of(&cluster.replicas, &bad).await;
    let mut health = Health::of(&cluster.replicas[2]).await;

    // The old primary keeps running, and a replica that reaches it reads the state before the
    // failover.
    pair.promote();
    let lead_to_successor = |link: &Link| {
        link.lead_to(&pair.standby.url("postgres"));
        link.cut();
    };
    links[..2].iter().for_each(lead_to_successor);
    revoke_with_retries(&mut clients[0], &bad).await;
    witness.acknowledged();
    health.becomes(ServingStatus::NotServing).await;
    for token in [&good, &bad] {
        assert_not_current(&mut clients[2], token).await;
    }

    // The old primary does not know this refresh token. A replica without a lease must not answer
    // from the state of the old primary, so it asks the new one.
    let issued = refresh(&mut clients[0], &refreshed.refresh_token)
        .await
        .unwrap()
        .tokens
        .unwrap()
        .refresh_token;
    let has_read = format!(
        "SELECT least(count(*), 1) FROM pg_stat_activity WHERE application_name = '{}' AND state \
         = 'idle' AND query LIKE 'SELECT \"sessions\".%'",
        cluster.replicas[2].name()
    );
    let failover = async {
        becomes(&pair.primary.url("postgres"), &has_read, 1).await;
        lead_to_successor(&links[2]);
    };
    tokio::join!(revoke_with_retries(&mut clients[2], &issued), failover);
    health.becomes(ServingStatus::Serving).await;
    assert!(!validate(&mut clients[0], &refreshed.access_token).await.active);
    for client in &mut clients {
        assert!(validate(client, &good).await.active);
        assert!(!validate(client, &bad).await.active);
    }
    witness.stop().await;
}

/// If the database has lost the revocation of a key, the replicas that know of it revoke the key
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revocation_lost_in_a_failover_is_repeated_by_the_replicas_that_know_it() {
    let pair = Pair::asynchronous().await;
    let url = pair.url("postgres");
    let mut cluster =
        Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &SHORT_LEASE).await;
    let mut clients = cluster.clients().await;
    let session = sign_in(&mut clients[0], "alice").await;
    pair.part().await;
    let mut keys = KeyServiceClient::new(cluster.replicas[0].channel().await);
    let listed = keys.list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys;
    let is_active =
        |key: &&Key| key.purpose() == KeyPurpose::AccessToken && key.state() == KeyState::Active;
    let kid = listed.iter().find(is_active).unwrap().kid.clone();
    keys.revoke_key(RevokeKeyRequest { kid }).await.unwrap();
    let witness = Witness::of(&cluster.replicas, &session.access_token).await;
    witness.acknowledged();

    pair.crash();
    cluster.url = pair.standby.url("postgres");
    let revoked = "SELECT count(*) FROM signing_keys WHERE revoked_at IS NOT NULL";
    assert_eq!(number(&cluster.url, revoked).await, 0, "the standby has not received it");
    pair.promote();
    becomes(&cluster.url, revoked, 1).await;
    witness.stop().await;
    for client in &mut clients {
        let created = sign_in(client, "bob").await;
        let refreshed = refresh(client, &created.refresh_token).await.unwrap().tokens.unwrap();
        assert!(validate(client, &refreshed.access_token).await.active);
    }
    assert_acknowledged_by_reports(&cluster).await;
}
