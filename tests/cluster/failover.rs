//! The primary fails and its standby takes over: what was acknowledged holds, and where the standby
//! had not received it, it is written again by those who know.

use countersign::proto::{
    CreateSessionRequest, Key, KeyPurpose, KeyState, ListKeysRequest, RevokeKeyRequest,
    key_service_client::KeyServiceClient, revoke_request::Target,
};
use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    ledger::{Client, reason, refresh, validate},
    load::{Load, Trouble},
    postgres_server::{Server, number},
    proxy::Link,
    replicas::{
        Cluster, Health, Replica, SHORT_LEASE, WAYS, assert_not_current, becomes, dice, eventually,
        in_time, revoke, revoke_at_last, sign_in,
    },
    replication::Pair,
    witness::Witness,
};

/// Whether the register of the replicas counts as complete in the history that the server is in.
const SETTLED: &str = "SELECT count(*) FROM feed_head WHERE timeline = feed_timeline()";

/// So many that they take longer than a test may if each waits until the leases of the others would
/// be over.
const MANY: usize = 200;

/// Waits until the word of the replicas counts again, and checks that their word is what
/// revocations are acknowledged by.
async fn assert_acknowledged_by_word(cluster: &Cluster) {
    becomes(&cluster.url, SETTLED, 1).await;
    let mut client = cluster.replicas[0].sessions().await;
    let revocations = async {
        for _ in 0..MANY {
            let token = sign_in(&mut client, "one of many").await.access_token;
            assert_eq!(revoke(&mut client, Target::Token(token)).await, 1);
        }
    };
    in_time("replicas say what they know, and nobody waits for the end of leases", revocations)
        .await;
}

/// What an alarm is raised by.
fn has_alarm(replica: &mut Replica) -> bool {
    replica.log().iter().any(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR"
            && message.starts_with("the database has lost revocations that had been acknowledged")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_commits_wait_for_takes_over_with_all_that_was_acknowledged() {
    let pair = Pair::synchronous().await;
    let url = pair.url("postgres");
    let mut cluster =
        Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &SHORT_LEASE).await;
    let load = Load::start(&cluster, "failover", &mut dice(), |_| Trouble::Database).await;
    load.all_answered(50).await;
    // The last writes reach the primary alone, and wait there.
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
    assert_acknowledged_by_word(&cluster).await;
    cluster.verify(&mut accounts).await;
    assert!(!cluster.replicas.iter_mut().any(has_alarm), "nothing was lost");
}

/// A primary that is stopped where it is accepts connections and acknowledges what it is sent, and
/// nothing comes back. Whatever is under way there is given up once the new primary is known,
/// however patient everything else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_stands_still_is_left_for_the_next_one_wherever_the_url_names_it() {
    for is_first in [true, false] {
        let pair = Pair::synchronous().await;
        let mut hosts = [&pair.primary, &pair.standby];
        if !is_first {
            hosts.reverse();
        }
        let url = Server::url_of(&hosts, "postgres");
        let patient = [
            ("COUNTERSIGN_DATABASE__STATEMENT_TIMEOUT", "10m"),
            ("COUNTERSIGN_DATABASE__CONNECT_TIMEOUT", "10m"),
        ];
        let settings = [SHORT_LEASE.as_slice(), &patient].concat();
        let mut cluster =
            Cluster::start_by([url.as_str(); 3], &pair.primary.url("postgres"), &settings).await;
        let load = Load::start(&cluster, "frozen", &mut dice(), |_| Trouble::Database).await;
        load.all_answered(50).await;
        // Nobody waits for a call to fail: what is under way is patient until there is somewhere
        // else to go.
        pair.primary.freeze();
        pair.promote();
        load.all_answered(50).await;
        let mut accounts = load.stop().await;
        cluster.url = pair.standby.url("postgres");
        cluster.verify(&mut accounts).await;
    }
}

/// A session that is to be revoked, and in which way.
struct Doomed {
    way: &'static str,
    access: String,
    refresh: String,
}

/// Whether a token is stopped, and the session with it, unless the token alone was revoked.
async fn assert_revoked(client: &mut Client, doomed: &Doomed) {
    let Doomed { way, access, refresh: refresh_token } = doomed;
    assert!(!validate(client, access).await.active, "{way}");
    if *way != "token only" {
        let refused = refresh(client, refresh_token).await.expect_err(way);
        assert_eq!(reason(&refused), "SESSION_REVOKED", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_has_lost_is_revoked_again_by_those_who_know_and_an_alarm_is_raised() {
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
    let unheard_of = sign_in(&mut clients[0], "nobody has heard of").await.access_token;
    let mut all = vec![];
    for (n, (way, choose, created)) in created.iter().enumerate() {
        clients[n % 3].revoke(choose(created)).await.unwrap();
        let tokens = created.tokens.clone().unwrap();
        all.push(Doomed { way, access: tokens.access_token, refresh: tokens.refresh_token });
    }
    revoke(&mut clients[0], Target::Token(unheard_of.clone())).await;
    let witness = Witness::of(&cluster.replicas, &all[0].access).await;
    witness.acknowledged();

    pair.crash();
    cluster.url = pair.standby.url("postgres");
    let (entries, live) =
        ("SELECT count(*) FROM blacklist", "SELECT count(*) FROM sessions WHERE ended_at IS NULL");
    assert_eq!(
        (number(&cluster.url, entries).await, number(&cluster.url, live).await),
        (0, 6),
        "all is lost"
    );
    pair.promote();
    becomes(&cluster.url, entries, 6).await;
    // The bystander, and the one of which a token alone was revoked.
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
        for doomed in &all {
            assert_revoked(&mut client, doomed).await;
        }
        assert!(!validate(&mut client, &unheard_of).await.active);
        assert!(validate(&mut client, &bystander.access_token).await.active);
    }
    assert_acknowledged_by_word(&cluster).await;
}

/// It has a lease, and nobody at the new primary has ever heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_registration_a_failover_has_lost_is_waited_for() {
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
    revoke_at_last(&mut cluster.replicas[0].sessions().await, &token).await;
    witness.acknowledged();
    witness.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_has_been_replaced_gives_nobody_a_lease() {
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

    // The old one goes on, and whoever reaches it can read there what was true before.
    pair.promote();
    let turn = |link: &Link| {
        link.lead_to(&pair.standby.url("postgres"));
        link.cut();
    };
    links[..2].iter().for_each(turn);
    revoke_at_last(&mut clients[0], &bad).await;
    witness.acknowledged();
    health.becomes(ServingStatus::NotServing).await;
    for token in [&good, &bad] {
        assert_not_current(&mut clients[2], token).await;
    }

    // It has read of no such token, and has no lease to believe that by: the new one decides.
    let issued = refresh(&mut clients[0], &refreshed.refresh_token)
        .await
        .unwrap()
        .tokens
        .unwrap()
        .refresh_token;
    let has_read = format!(
        "SELECT least(count(*), 1) FROM pg_stat_activity WHERE application_name = '{}' AND state \
         = 'idle' AND query LIKE '%FROM \"sessions\"%'",
        cluster.replicas[2].name()
    );
    let failover = async {
        becomes(&pair.primary.url("postgres"), &has_read, 1).await;
        turn(&links[2]);
    };
    tokio::join!(revoke_at_last(&mut clients[2], &issued), failover);
    health.becomes(ServingStatus::Serving).await;
    assert!(!validate(&mut clients[0], &refreshed.access_token).await.active);
    for client in &mut clients {
        assert!(validate(client, &good).await.active);
        assert!(!validate(client, &bad).await.active);
    }
    witness.stop().await;
}

/// Whoever knows that a key is worthless does not believe a database that has forgotten it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_revocation_of_a_key_that_a_failover_has_lost_is_repeated_by_those_who_know() {
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
    assert_eq!(number(&cluster.url, revoked).await, 0, "it is lost");
    pair.promote();
    becomes(&cluster.url, revoked, 1).await;
    witness.stop().await;
    for client in &mut clients {
        let created = sign_in(client, "bob").await;
        let refreshed = refresh(client, &created.refresh_token).await.unwrap().tokens.unwrap();
        assert!(validate(client, &refreshed.access_token).await.active);
    }
    assert_acknowledged_by_word(&cluster).await;
}
