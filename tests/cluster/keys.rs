//! Tests of the keys that several replicas share. A rotation under load must not make any call
//! fail, and no replica may accept a token that was signed with a revoked key.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::proto::{
    Key, KeyPurpose, KeyState, ListKeysRequest, RevokeKeyRequest, RotateKeyRequest,
    key_service_client::KeyServiceClient,
};
use countersign_test_support::{
    http_client::get,
    ledger::{refresh, validate},
    postgres_server::{new_database, number},
    proxy::Link,
};
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use crate::{
    replicas::{
        Cluster, Replica, SHORT_LEASE, assert_not_current, eventually, question, rounds, sign_in,
    },
    witness::Witness,
};

const PUBLISH_AHEAD: Duration = Duration::from_secs(2);

/// Settings by which keys rotate every few seconds, so that access tokens outlive several
/// rotations.
const FAST: [(&str, &str); 8] = [
    ("COUNTERSIGN_TOKENS__MAX_ACCESS_TOKEN_TTL", "30s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "30s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "10s"),
    ("COUNTERSIGN_LEASE__MAX_CLOCK_SKEW", "100ms"),
    ("COUNTERSIGN_KEYS__ROTATION", "6s"),
    ("COUNTERSIGN_KEYS__REFRESH_ROTATION", "6s"),
    ("COUNTERSIGN_KEYS__PUBLISH_AHEAD", "2s"),
    ("COUNTERSIGN_KEYS__JWKS_MAX_AGE", "1s"),
];

async fn keys_of(replica: &Replica) -> KeyServiceClient<Channel> {
    KeyServiceClient::new(replica.channel().await)
}

async fn list(replica: &Replica) -> Vec<Key> {
    keys_of(replica).await.list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys
}

async fn signing(replica: &Replica, state: KeyState) -> String {
    let keys = list(replica).await;
    let found: Vec<_> = keys
        .iter()
        .filter(|key| key.purpose() == KeyPurpose::AccessToken && key.state() == state)
        .collect();
    assert_eq!(found.len(), 1, "{keys:#?}");
    found[0].kid.clone()
}

fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

/// Fetches the published keys; returns their identifiers, and for how long they may be cached.
async fn fetch(address: SocketAddr) -> (HashSet<String>, Duration) {
    let answer = get(address, "/.well-known/jwks.json").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let max_age = answer
        .head
        .split("max-age=")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse().ok());
    let set: Value = serde_json::from_str(&answer.body).unwrap();
    let kids =
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned());
    (kids.collect(), Duration::from_secs(max_age.unwrap_or(0)))
}

/// Polls the keys that a replica publishes, and returns the time at which it first saw each.
fn watch(replica: &Replica, stop: Arc<AtomicBool>) -> JoinHandle<HashMap<String, Instant>> {
    let address = replica.http();
    tokio::spawn(async move {
        let mut first_seen = HashMap::new();
        while !stop.load(Ordering::Relaxed) {
            let (kids, _) = fetch(address).await;
            let now = Instant::now();
            for kid in kids {
                first_seen.entry(kid).or_insert(now);
            }
            sleep(Duration::from_millis(20)).await;
        }
        first_seen
    })
}

/// A verifier of tokens behind a load balancer: it fetches the keys from any replica, and only when
/// its cached keys have expired.
#[derive(Default)]
struct Verifier {
    kids: HashSet<String>,
    until: Option<Instant>,
}

impl Verifier {
    async fn knows(&mut self, kid: &str, replica: &Replica) -> bool {
        let now = Instant::now();
        if self.until.is_none_or(|until| now >= until) {
            let (kids, max_age) = fetch(replica.http()).await;
            (self.kids, self.until) = (kids, Some(now + max_age));
        }
        self.kids.contains(kid)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_keys_rotate_under_load() {
    let url = new_database().await;
    let settings: Vec<_> = FAST.into_iter().chain(SHORT_LEASE).collect();
    let cluster = Cluster::start_by([url.as_str(); 3], &url, &settings).await;
    let stop = Arc::new(AtomicBool::new(false));
    let watching: Vec<_> =
        cluster.replicas.iter().map(|replica| watch(replica, stop.clone())).collect();
    let first: HashSet<String> =
        list(&cluster.replicas[0]).await.into_iter().map(|key| key.kid).collect();
    let mut clients = cluster.clients().await;
    let mut verifier = Verifier::default();

    let mut signed: HashMap<String, Instant> = HashMap::new();
    let mut tokens: Vec<(String, Instant)> = vec![];
    let mut last = sign_in(&mut clients[0], "all along").await.refresh_token;
    let mut n = 0;
    // Five keys mean four rotations, some of them to keys that did not exist at the beginning.
    while signed.len() < 5 {
        let now = Instant::now();
        let at = n % 3;
        let created = sign_in(&mut clients[at], &format!("user {n}")).await.access_token;
        let refreshed = refresh(&mut clients[at], &last).await.unwrap().tokens.unwrap();
        last = refreshed.refresh_token;
        for token in [created, refreshed.access_token] {
            signed.entry(kid(&token)).or_insert_with(Instant::now);
            assert!(
                verifier.knows(&kid(&token), &cluster.replicas[(at + 1) % 3]).await,
                "{} is not known",
                kid(&token)
            );
            tokens.push((token, now));
        }
        tokens.retain(|(_, issued)| issued.elapsed() < Duration::from_secs(20));
        for (m, client) in clients.iter_mut().enumerate() {
            let newest = tokens.len() - 1;
            let old = (n * 7 + m * 13) % tokens.len();
            for (token, _) in [&tokens[newest], &tokens[old]] {
                let answer = validate(client, token).await;
                assert!(
                    answer.active,
                    "replica {m}: {:?} of {}",
                    answer.inactive_reason(),
                    kid(token)
                );
            }
        }
        n += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for watching in watching {
        let first_seen = watching.await.unwrap();
        for (kid, signed) in signed.iter().filter(|(kid, _)| !first.contains(*kid)) {
            let ahead = signed.saturating_duration_since(first_seen[kid]);
            assert!(ahead >= PUBLISH_AHEAD, "{kid} was published only {ahead:?} before it signed");
        }
    }
    println!("{n} rounds, {} keys", signed.len());
    let active =
        "SELECT count(*) FROM signing_keys WHERE activated_at IS NOT NULL AND retired_at IS NULL";
    assert_eq!(number(&url, active).await, 2, "one for each purpose");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_accepts_a_token_of_a_revoked_key_after_the_acknowledgement() {
    let (cluster, links) = Cluster::linked(&new_database().await, &SHORT_LEASE).await;
    let mut clients = cluster.clients().await;
    for (what, cut_off) in
        [("all are there", None), ("one is cut off", Some(Link::stall as fn(&Link)))]
    {
        let session = sign_in(&mut clients[1], "alice").await;
        let token = session.access_token;
        eventually("every replica has a lease", async || {
            for client in &mut clients.clone() {
                if !client
                    .validate(question(&token))
                    .await
                    .is_ok_and(|answer| answer.into_inner().active)
                {
                    return None;
                }
            }
            Some(())
        })
        .await;
        let witness = Witness::of(&cluster.replicas, &token).await;
        if let Some(cut_off) = cut_off {
            cut_off(&links[2]);
        }
        let leaked = kid(&token);
        let next = signing(&cluster.replicas[0], KeyState::Pending).await;
        let request = RevokeKeyRequest { kid: leaked.clone() };
        eventually("the key is revoked", async || {
            keys_of(&cluster.replicas[0]).await.revoke_key(request.clone()).await.ok()
        })
        .await;
        witness.acknowledged();
        for (n, client) in clients.iter_mut().enumerate() {
            if n == 2 && cut_off.is_some() {
                assert_not_current(client, &token).await;
                continue;
            }
            assert!(!validate(client, &token).await.active, "{what}: replica {n}");
            let created = sign_in(client, "bob").await.access_token;
            assert_eq!(kid(&created), next, "{what}: replica {n}");
        }
        let refreshed =
            refresh(&mut clients[1], &session.refresh_token).await.unwrap().tokens.unwrap();
        assert_eq!(kid(&refreshed.access_token), next);
        assert!(
            validate(&mut clients[0], &refreshed.access_token).await.active,
            "{what}: the session has ended with its key"
        );
        links[2].restore();
        witness.stop().await;
    }
}

/// Every replica publishes a key before any replica signs with it, so a replica that does not know
/// of the rotation yet already knows the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_learns_late_of_a_rotation_accepts_tokens_of_the_next_key() {
    const LATE: Duration = Duration::from_millis(200);
    // The delays of the link make a renewal take longer, and it must still complete before the
    // lease ends.
    let lease = [("COUNTERSIGN_LEASE__DURATION", "5s")];
    let (cluster, links) = Cluster::linked(&new_database().await, &lease).await;
    let mut clients = cluster.clients().await;
    for purpose in [KeyPurpose::AccessToken, KeyPurpose::RefreshToken] {
        let session = sign_in(&mut clients[0], "alice").await;
        links[2].delay(LATE, LATE);
        let mut keys = keys_of(&cluster.replicas[0]).await;
        let rotating = tokio::spawn(async move {
            keys.rotate_key(RotateKeyRequest { purpose: purpose.into(), force: true }).await
        });
        let mut refresh_token = session.refresh_token;
        while !rotating.is_finished() {
            let tokens = refresh(&mut clients[0], &refresh_token).await.unwrap().tokens.unwrap();
            assert!(
                validate(&mut clients[2], &tokens.access_token).await.active,
                "{}",
                kid(&tokens.access_token)
            );
            refresh_token = tokens.refresh_token;
        }
        rotating.await.unwrap().unwrap();
        // The refresh token may depend on the next key, and this replica may not have learnt of
        // that key yet.
        links[2].restore();
        refresh(&mut clients[2], &refresh_token).await.unwrap();
    }
}

/// A replica may be killed at any instant of a rotation. The database must then hold the keys as
/// they were before it or as they are after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_rotation_leaves_one_key_active() {
    let url = new_database().await;
    let mut cluster = Cluster::start_by([url.as_str(); 3], &url, &SHORT_LEASE).await;
    let token = sign_in(&mut cluster.replicas[1].sessions().await, "alice").await.access_token;
    for round in 0..rounds(16) {
        let replica = &cluster.replicas[0];
        let mut keys = keys_of(replica).await;
        let rotating = tokio::spawn(async move {
            for purpose in
                [KeyPurpose::AccessToken, KeyPurpose::RefreshToken].into_iter().cycle().take(8)
            {
                if keys
                    .rotate_key(RotateKeyRequest { purpose: purpose.into(), force: true })
                    .await
                    .is_err()
                {
                    break;
                }
            }
        });
        sleep(Duration::from_millis(37 * (round as u64 + 1) % 150)).await;
        cluster.kill(0).await;
        rotating.await.unwrap();
        for state in [
            "activated_at IS NOT NULL AND retired_at IS NULL AND revoked_at IS NULL",
            "activated_at IS NULL AND revoked_at IS NULL",
        ] {
            for purpose in ["access_token", "refresh_token"] {
                let sql = format!(
                    "SELECT count(*) FROM signing_keys WHERE purpose = '{purpose}' AND {state}"
                );
                assert_eq!(number(&url, &sql).await, 1, "{purpose}: {state}");
            }
        }
        let mut newcomer = cluster.spawn(&url, &SHORT_LEASE);
        newcomer.await_serving().await;
        cluster.replicas[0] = newcomer;
        for replica in &cluster.replicas {
            let mut client = replica.sessions().await;
            let created = sign_in(&mut client, "bob").await;
            assert!(validate(&mut client, &created.access_token).await.active);
            assert!(validate(&mut client, &token).await.active, "an earlier token is still active");
        }
    }
}
