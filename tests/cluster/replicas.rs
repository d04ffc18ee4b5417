//! What tests of a cluster do with it, and what must hold of it in the end.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, RevokeExtent, RevokeRequest, SubjectTarget,
    Tokens, ValidateRequest, revoke_request::Target,
};
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tonic::{Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

pub use crate::cluster::{Cluster, Replica, becomes, eventually, in_time};
use crate::{
    ledger::{self, Account, Client, Dice, reason, validate},
    load::is_retriable,
    postgres_server::number,
    proxy::Link,
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
pub const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = \
                           current_database() AND wait_event_type = 'Lock'";

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
    rounds.map_or(default, |rounds| {
        rounds.parse().expect("COUNTERSIGN_TEST_CRASH_ROUNDS is a number")
    })
}

/// A lease that ends soon, for those who wait for that, and what it makes others wait is a fraction
/// of a second more.
pub const SHORT_LEASE: [(&str, &str); 3] = [
    ("COUNTERSIGN_LEASE__DURATION", "600ms"),
    ("COUNTERSIGN_LEASE__RENEWAL", "150ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

impl Cluster {
    /// Three replicas, each behind a link of its own to this database.
    pub async fn linked(url: &str, settings: &[(&str, &str)]) -> (Self, [Link; 3]) {
        let links = [Link::to(url).await, Link::to(url).await, Link::to(url).await];
        let urls = links.each_ref().map(Link::url);
        let cluster = Self::start_by(urls.iter().map(String::as_str), url, settings).await;
        (cluster, links)
    }

    /// A client of each replica.
    pub async fn clients(&self) -> Vec<Client> {
        join_all(self.replicas.iter().map(|replica| replica.sessions())).await
    }

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
                "SELECT count(*) FROM sessions AS s WHERE s.ended_at + s.access_token_ttl > now() \
                 AND NOT EXISTS (SELECT 1 FROM blacklist AS b WHERE b.kind = 'session' AND b.key \
                 = s.id::text) AND NOT EXISTS (SELECT 1 FROM blacklist AS b WHERE b.kind = \
                 'subject' AND (b.tenant, b.subject) = (s.tenant, s.subject) AND s.ended_at <= \
                 b.up_to)",
            ),
            (
                "sessions that live on although their tokens are stopped",
                "SELECT count(*) FROM blacklist AS b JOIN sessions AS s ON s.id::text = b.key AND \
                 b.kind = 'session' OR b.kind = 'subject' AND (b.tenant, b.subject) = (s.tenant, \
                 s.subject) AND s.created_at <= b.up_to WHERE s.ended_at IS NULL",
            ),
            (
                "entries after the head of the feed",
                "SELECT count(*) FROM blacklist, feed_head AS h WHERE blacklist.seq > h.seq",
            ),
        ] {
            assert_eq!(number(&self.url, sql).await, 0, "{what}");
        }
    }

    /// Waits until all replicas know all that has been revoked so far. The feed has the order of
    /// the commits, so who knows the last entry knows all.
    pub async fn agree(&self) {
        let mut client = self.replicas[0].sessions().await;
        let tokens = sign_in(&mut client, "the last one").await;
        revoke(&mut client, Target::Token(tokens.access_token.clone())).await;
        for replica in &self.replicas {
            becomes_inactive(&mut replica.sessions().await, &tokens.access_token).await;
        }
    }

    /// Checks that the cluster, asked through any replica, knows all that was acknowledged and
    /// nothing by halves.
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

/// What a replica says of its health, as it says it.
pub struct Health(Streaming<HealthCheckResponse>);

impl Health {
    pub async fn of(replica: &Replica) -> Self {
        let mut client = HealthClient::new(replica.channel().await);
        Self(client.watch(HealthCheckRequest::default()).await.unwrap().into_inner())
    }

    /// Waits until it says this.
    pub async fn becomes(&mut self, expected: ServingStatus) {
        let said = async {
            while self.0.message().await.unwrap().expect("it goes on").status() != expected {}
        };
        in_time("health changes", said).await;
    }
}

/// What to revoke of a session.
type Choose = fn(&CreateSessionResponse) -> RevokeRequest;

/// All ways to revoke a session that is the only one of its subject and its tenant.
pub const WAYS: [(&str, Choose); 5] = [
    ("session", |created| target(Target::SessionId(created.session.clone().unwrap().session_id))),
    ("token", access_token),
    ("token only", |created| RevokeRequest {
        extent: RevokeExtent::TokenOnly.into(),
        ..access_token(created)
    }),
    ("subject", |created| {
        let session = created.session.clone().unwrap();
        let subject = SubjectTarget {
            tenant: session.tenant,
            subject: session.subject,
            ..Default::default()
        };
        target(Target::Subject(subject))
    }),
    ("tenant", |created| target(Target::Tenant(created.session.clone().unwrap().tenant))),
];

fn target(target: Target) -> RevokeRequest {
    RevokeRequest { target: Some(target), ..Default::default() }
}

fn access_token(created: &CreateSessionResponse) -> RevokeRequest {
    target(Target::Token(created.tokens.clone().unwrap().access_token))
}

/// Creates a session.
pub async fn sign_in(client: &mut Client, subject: &str) -> Tokens {
    create(client, subject).await.tokens.unwrap()
}

/// The same, which may fail.
pub async fn try_sign_in(client: &mut Client, subject: &str) -> Result<Tokens, Status> {
    let request = CreateSessionRequest { subject: subject.to_owned(), ..Default::default() };
    Ok(ledger::create(client, request).await?.tokens.unwrap())
}

/// Whether a replica accepts a token.
pub async fn is_active_at(replica: &Replica, token: &str) -> bool {
    validate(&mut replica.sessions().await, token).await.active
}

pub async fn create(client: &mut Client, subject: &str) -> CreateSessionResponse {
    let request = CreateSessionRequest { subject: subject.to_owned(), ..Default::default() };
    ledger::create(client, request).await.unwrap()
}

pub async fn revoke(client: &mut Client, target: Target) -> i64 {
    let request = RevokeRequest { target: Some(target), ..Default::default() };
    client.revoke(request).await.unwrap().into_inner().revoked_sessions
}

/// Revokes the session of a token as soon as the database can be reached.
pub async fn revoke_at_last(client: &mut Client, token: &str) {
    eventually("it revokes", async || {
        let target = Some(Target::Token(token.to_owned()));
        let revoked = client.revoke(RevokeRequest { target, ..Default::default() }).await;
        revoked.inspect_err(|status| assert!(is_retriable(status), "{status:?}")).ok()
    })
    .await;
}

/// Checks that a replica says nothing of a token, which may be revoked for all it knows, but when
/// to come back.
pub async fn assert_not_current(client: &mut Client, token: &str) {
    let refused = client.validate(question(token)).await.expect_err("it has no lease");
    assert!(reason(&refused) == "NOT_CURRENT" && is_retriable(&refused), "{refused:?}");
}

/// Waits until a replica has heard that a token is revoked.
pub async fn becomes_inactive(client: &mut Client, token: &str) {
    eventually("the revocation arrives", async || {
        (!validate(client, token).await.active).then_some(())
    })
    .await;
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
            let request =
                CreateSessionRequest { subject: "first".to_owned(), ..Default::default() };
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
