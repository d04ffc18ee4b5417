//! Helpers for the tests of a cluster, and the checks that must hold at the end of each test.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, RevokeExtent, RevokeRequest, SubjectTarget,
    Tokens, ValidateRequest, revoke_request::Target,
};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tonic::{Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

pub use countersign_test_support::cluster::{
    Cluster, Replica, becomes, becomes_inactive, eventually, in_time,
};
use countersign_test_support::ledger::{self, Account, Client, Dice, reason, validate};

use crate::load::is_retriable;

/// An open transaction of the test.
pub struct OpenTransaction {
    client: tokio_postgres::Client,
    driver: JoinHandle<Result<(), tokio_postgres::Error>>,
}

/// Begins a transaction that holds the locks that these statements take.
pub async fn hold(url: &str, sql: &str) -> OpenTransaction {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    OpenTransaction { client, driver }
}

impl OpenTransaction {
    /// Rolls the transaction back.
    pub async fn release(self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
        drop(self.client);
        self.driver.await.unwrap().unwrap();
    }
}

/// A query that counts the connections of this database that wait for a lock.
pub const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = \
                           current_database() AND wait_event_type = 'Lock'";

/// Returns a generator of random numbers, seeded by `COUNTERSIGN_TEST_SEED` or at random. The seed
/// is printed.
pub fn dice() -> Dice {
    let seed = match env::var("COUNTERSIGN_TEST_SEED") {
        Ok(seed) => seed.parse().expect("COUNTERSIGN_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(()),
    };
    println!("COUNTERSIGN_TEST_SEED={seed}");
    Dice(seed)
}

/// Returns the number of rounds of a test: `COUNTERSIGN_TEST_CRASH_ROUNDS`, or else `default`.
pub fn rounds(default: usize) -> usize {
    let rounds = env::var("COUNTERSIGN_TEST_CRASH_ROUNDS");
    rounds.map_or(default, |rounds| {
        rounds.parse().expect("COUNTERSIGN_TEST_CRASH_ROUNDS is a number")
    })
}

/// Settings of a short lease, for tests that wait for its end. A revocation that waits for a silent
/// replica waits only a fraction of a second longer than the lease.
pub const SHORT_LEASE: [(&str, &str); 3] = [
    ("COUNTERSIGN_LEASE__DURATION", "600ms"),
    ("COUNTERSIGN_LEASE__RENEWAL", "150ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

/// A stream of a replica's gRPC health status.
pub struct Health(Streaming<HealthCheckResponse>);

impl Health {
    pub async fn of(replica: &Replica) -> Self {
        let mut client = HealthClient::new(replica.channel().await);
        Self(client.watch(HealthCheckRequest::default()).await.unwrap().into_inner())
    }

    /// Waits until the status is `expected`.
    pub async fn becomes(&mut self, expected: ServingStatus) {
        let changed = async {
            while self.0.message().await.unwrap().expect("the stream ends").status() != expected {}
        };
        in_time("health changes", changed).await;
    }
}

/// A function that returns the request by which a created session is revoked.
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

/// Creates a session and returns its tokens.
pub async fn sign_in(client: &mut Client, subject: &str) -> Tokens {
    create(client, subject).await.tokens.unwrap()
}

/// Creates a session and returns its tokens, or the error if that fails.
pub async fn try_sign_in(client: &mut Client, subject: &str) -> Result<Tokens, Status> {
    let request = CreateSessionRequest { subject: subject.to_owned(), ..Default::default() };
    Ok(ledger::create(client, request).await?.tokens.unwrap())
}

/// Returns whether a replica accepts a token.
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

/// Revokes the session of a token. Retries until the database can be reached.
pub async fn revoke_with_retries(client: &mut Client, token: &str) {
    eventually("the replica revokes", async || {
        let target = Some(Target::Token(token.to_owned()));
        let revoked = client.revoke(RevokeRequest { target, ..Default::default() }).await;
        revoked.inspect_err(|status| assert!(is_retriable(status), "{status:?}")).ok()
    })
    .await;
}

/// Checks that a replica without a lease neither accepts nor rejects a token, and says when to
/// retry.
pub async fn assert_not_current(client: &mut Client, token: &str) {
    let refused = client.validate(question(token)).await.expect_err("the replica has no lease");
    assert!(reason(&refused) == "NOT_CURRENT" && is_retriable(&refused), "{refused:?}");
}

pub fn question(token: &str) -> ValidateRequest {
    ValidateRequest { access_token: token.to_owned(), ..Default::default() }
}

/// Waits until every replica writes again, and checks that no call fails from then on.
pub async fn assert_works_again(cluster: &Cluster, dice: &mut Dice) {
    let mut accounts = vec![];
    for (n, replica) in cluster.replicas.iter().enumerate() {
        let mut client = replica.sessions().await;
        eventually("the replica writes again", async || {
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
