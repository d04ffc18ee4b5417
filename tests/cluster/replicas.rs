//! What tests of a cluster do with it, and what must hold of it in the end.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, RevokeRequest, Tokens, ValidateRequest, revoke_request::Target,
};
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

pub use crate::cluster::{Cluster, Replica, becomes, eventually, in_time};
use crate::{
    ledger::{Account, Client, Dice, validate},
    load::is_retriable,
    postgres_server::number,
};

/// Who look at what is left, at each replica at the same time.
const CHECKERS: usize = 8;

/// A transaction of the test's own.
pub struct Holding {
    client: tokio_postgres::Client,
    driver: JoinHandle<Result<(), tokio_postgres::Error>>,
}

/// Begins a transaction that holds what these statements lock.
pub async fn hold(url: &str, sql: &str) -> Holding {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    Holding { client, driver }
}

impl Holding {
    /// Undoes it.
    pub async fn release(self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
        drop(self.client);
        self.driver.await.unwrap().unwrap();
    }
}

/// How many connections of this database wait for a lock.
pub const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Random numbers from `COUNTERSIGN_TEST_SEED`, or from a new seed, which is printed.
pub fn dice() -> Dice {
    let seed = match env::var("COUNTERSIGN_TEST_SEED") {
        Ok(seed) => seed.parse().expect("COUNTERSIGN_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(()),
    };
    println!("COUNTERSIGN_TEST_SEED={seed}");
    Dice(seed)
}

/// How often to do it: this often, or as `COUNTERSIGN_TEST_CRASH_ROUNDS` says.
pub fn rounds(default: usize) -> usize {
    let rounds = env::var("COUNTERSIGN_TEST_CRASH_ROUNDS");
    rounds.map_or(default, |rounds| rounds.parse().expect("COUNTERSIGN_TEST_CRASH_ROUNDS is a number"))
}

impl Cluster {
    /// Waits until nothing is under way in the database, nor a transaction open.
    pub async fn rest(&self) {
        for replica in &self.replicas {
            becomes(&self.url, &replica.connections("idle in %"), 0).await;
            becomes(&self.url, &replica.connections("active"), 0).await;
        }
    }

    /// Whether everything in the tables belongs together.
    pub async fn assert_consistent(&self) {
        for (what, sql) in [
            (
                "sessions that ended without an entry although a token of them may live",
                "SELECT count(*) FROM sessions AS s WHERE s.ended_at + s.access_token_ttl > now() AND NOT EXISTS \
                 (SELECT 1 FROM blacklist AS b WHERE b.kind = 'session' AND b.key = s.id::text)",
            ),
            (
                "sessions that live on although their tokens are stopped",
                "SELECT count(*) FROM blacklist AS b JOIN sessions AS s ON s.id::text = b.key AND b.kind = 'session' \
                 WHERE s.ended_at IS NULL",
            ),
            (
                "entries after the head of the feed",
                "SELECT count(*) FROM blacklist, feed_head AS h WHERE blacklist.seq > h.seq",
            ),
        ] {
            assert_eq!(number(&self.url, sql).await, 0, "{what}");
        }
    }

    /// Waits until all replicas know all that has been revoked so far. The feed has the order of the commits, so who knows
    /// the last entry knows all.
    pub async fn agree(&self) {
        let mut client = self.replicas[0].sessions().await;
        let tokens = sign_in(&mut client, "the last one").await;
        revoke(&mut client, Target::Token(tokens.access_token.clone())).await;
        for replica in &self.replicas {
            becomes_inactive(&mut replica.sessions().await, &tokens.access_token).await;
        }
    }

    /// Checks that the cluster, asked through any replica, knows all that was acknowledged and nothing by halves.
    pub async fn verify(&self, accounts: &mut [Account]) {
        self.agree().await;
        let share = accounts.len().div_ceil(CHECKERS * self.replicas.len()).max(1);
        let mut checks = vec![];
        for (share, replica) in accounts.chunks_mut(share).zip(self.replicas.iter().rev().cycle()) {
            let mut client = replica.sessions().await;
            checks.push(async move {
                for account in share {
                    account.verify(&mut client).await;
                }
            });
        }
        in_time("everything is looked at", join_all(checks)).await;
        self.assert_consistent().await;
    }
}

/// Creates a session.
pub async fn sign_in(client: &mut Client, subject: &str) -> Tokens {
    create(client, subject).await.tokens.unwrap()
}

pub async fn create(client: &mut Client, subject: &str) -> CreateSessionResponse {
    let request = CreateSessionRequest { subject: subject.to_owned(), ..Default::default() };
    client.create_session(request).await.unwrap().into_inner()
}

pub async fn revoke(client: &mut Client, target: Target) -> i64 {
    let request = RevokeRequest { target: Some(target), ..Default::default() };
    client.revoke(request).await.unwrap().into_inner().revoked_sessions
}

/// Waits until a replica has heard that a token is revoked.
pub async fn becomes_inactive(client: &mut Client, token: &str) {
    eventually("the revocation arrives", async || (!validate(client, token).await.active).then_some(())).await;
}

pub fn question(token: &str) -> ValidateRequest {
    ValidateRequest { access_token: token.to_owned(), ..Default::default() }
}

/// Waits until every replica writes again, and checks that from then on all goes well.
pub async fn assert_works_again(cluster: &Cluster, dice: &mut Dice) {
    let mut accounts = vec![];
    for (n, replica) in cluster.replicas.iter().enumerate() {
        let mut client = replica.sessions().await;
        eventually("it writes again", async || {
            let request = CreateSessionRequest { subject: "first".to_owned(), ..Default::default() };
            let created = client.create_session(request).await;
            created.inspect_err(|status| assert!(is_retriable(status), "{status:?}")).ok()
        })
        .await;
        let mut account = Account::new(format!("again {n}"));
        for _ in 0..30 {
            account.call(&mut client, dice).await.unwrap();
        }
        accounts.push(account);
    }
    cluster.rest().await;
    cluster.verify(&mut accounts).await;
}
