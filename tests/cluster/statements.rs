//! These tests find in PostgreSQL's log which statements replicas send. Validate must send none,
//! whether the replica has a lease or not.

use std::time::Duration;

use countersign::proto::{BatchValidateRequest, revoke_request::Target};
use countersign_test_support::{
    ledger::{Client, reason},
    postgres_server::Server,
    proxy::Link,
};
use futures_util::future::join_all;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::replicas::{Cluster, Health, hold, in_time, question, revoke, sign_in};

/// Settings that turn off the sweeper and the writes to the audit table, so that replicas send only
/// their periodic statements.
const NO_SWEEP: [(&str, &str); 2] =
    [("COUNTERSIGN_SWEEPER__SCHEDULE", "0 0 29 2 *"), ("COUNTERSIGN_AUDIT__TABLE", "false")];
/// The interval at which a replica renews its lease.
const RENEWAL: Duration = Duration::from_millis(500);
/// The interval at which a replica polls the head of the feed while it gets no notifications.
const FEED_POLL: Duration = Duration::from_millis(25);
/// The number of further statements that each replica may send, because of earlier writes or a
/// lapse.
const FURTHER: usize = 25;
/// The number of connections to each replica.
const CONNECTIONS: usize = 4;

/// Replicas on a server that logs all statements, with an active token and a revoked one.
struct Logged {
    server: Server,
    cluster: Cluster,
    links: [Link; 3],
    clients: Vec<Client>,
    good: String,
    bad: String,
}

impl Logged {
    async fn start() -> Self {
        let settings = ["log_statement=all", "log_line_prefix=[%a] "].map(str::to_owned);
        let server = spawn_blocking(|| Server::start_with(|_| settings.into())).await.unwrap();
        let (cluster, links) = Cluster::linked(&server.url("postgres"), &NO_SWEEP).await;
        let mut clients = vec![];
        for _ in 0..CONNECTIONS {
            clients.extend(cluster.clients().await);
        }
        let good = sign_in(&mut clients[0], "alice").await.access_token;
        let bad = sign_in(&mut clients[1], "bob").await.access_token;
        revoke(&mut clients[2], Target::Token(bad.clone())).await;
        cluster.rest().await;
        Self { server, cluster, links, clients, good, bad }
    }

    /// Starts concurrent callers, each of which makes `each` calls one after the other. The task
    /// returns the number of calls that were refused for lack of a lease, and checks the answers to
    /// the others.
    fn ask(&self, callers: usize, each: usize) -> JoinHandle<usize> {
        let callers = (0..callers).map(|n| {
            let mut client = self.clients[n % self.clients.len()].clone();
            let requests = vec![question(&self.good), question(&self.bad)];
            tokio::spawn(async move {
                let mut refused = 0;
                for n in 0..each {
                    let answered = match requests.get(n % 3) {
                        Some(request) => client
                            .validate(request.clone())
                            .await
                            .map(|answer| vec![answer.into_inner().active]),
                        None => {
                            let batch = BatchValidateRequest { requests: requests.clone() };
                            let answers = client.batch_validate(batch).await;
                            answers.map(|answers| {
                                answers
                                    .into_inner()
                                    .responses
                                    .iter()
                                    .map(|answer| answer.active)
                                    .collect()
                            })
                        }
                    };
                    match answered {
                        Ok(active) => {
                            assert_eq!(active, [&[true][..], &[false], &[true, false]][n % 3])
                        }
                        Err(status) => {
                            assert_eq!(reason(&status), "NOT_CURRENT", "{status:?}");
                            refused += 1;
                        }
                    }
                }
                refused
            })
        });
        let callers: Vec<_> = callers.collect();
        tokio::spawn(async move {
            let refused = in_time("all calls come to an end", join_all(callers)).await;
            refused.into_iter().map(Result::unwrap).sum()
        })
    }

    async fn health(&self) -> Vec<Health> {
        join_all(self.cluster.replicas.iter().map(Health::of)).await
    }

    /// Returns the statements that replicas have sent so far.
    fn statements(&self) -> Vec<String> {
        let is_statement = |line: &&str| {
            line.starts_with("[replica ")
                && (line.contains("] LOG:  statement: ") || line.contains("] LOG:  execute "))
        };
        self.server.log().lines().filter(is_statement).map(str::to_owned).collect()
    }

    /// Checks that replicas have sent only their periodic statements since `begun`, and no more of
    /// them than the elapsed time explains. `before` is the number of statements that they had sent
    /// by then.
    fn assert_only_periodic_statements(&self, before: usize, begun: Instant) {
        let since = self.statements().split_off(before);
        // The time is read after the statements are counted, so that it covers all of them.
        let elapsed = begun.elapsed();
        let times = |interval: Duration| {
            let times = usize::try_from(elapsed.as_millis() / interval.as_millis()).unwrap();
            (times + FURTHER) * self.cluster.replicas.len()
        };
        let (renewals, others): (Vec<_>, Vec<_>) =
            since.iter().partition(|text| text.contains("UPDATE replicas SET"));
        println!(
            "{} renewals and {} other statements in {elapsed:?}",
            renewals.len(),
            others.len()
        );
        assert!(!since.iter().any(|statement| statement.contains("sessions")));
        assert!(renewals.len() <= times(RENEWAL), "{} renewals in {elapsed:?}", renewals.len());
        assert!(
            others.len() <= times(FEED_POLL),
            "{} other statements in {elapsed:?}",
            others.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_sends_no_statement_to_the_database() {
    let logged = Logged::start().await;
    let (before, begun) = (logged.statements().len(), Instant::now());
    let refused = logged.ask(CONNECTIONS * 3, 1_000).await.unwrap();
    assert_eq!(refused, 0, "a replica has no lease");
    logged.assert_only_periodic_statements(before, begun);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_lack_of_a_lease_sends_no_statement_to_the_database() {
    let logged = Logged::start().await;
    let holding = hold(&logged.cluster.url, "LOCK TABLE replicas IN EXCLUSIVE MODE").await;
    let mut health = logged.health().await;
    for health in &mut health {
        health.becomes(ServingStatus::NotServing).await;
    }
    for calls in [100, 2_000] {
        let (before, begun) = (logged.statements().len(), Instant::now());
        assert_eq!(
            logged.ask(calls, 1).await.unwrap(),
            calls,
            "a call was answered without a lease"
        );
        logged.assert_only_periodic_statements(before, begun);
    }
    holding.release().await;
    for health in &mut health {
        health.becomes(ServingStatus::Serving).await;
    }
}

/// All calls wait for the same renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_lease_sends_no_statement_to_the_database() {
    let logged = Logged::start().await;
    let mut health = logged.health().await;
    for calls in [100, 2_000] {
        for health in &mut health {
            health.becomes(ServingStatus::Serving).await;
        }
        logged.links.iter().for_each(Link::stall);
        for health in &mut health {
            health.becomes(ServingStatus::NotServing).await;
        }
        let (before, begun) = (logged.statements().len(), Instant::now());
        let asking = logged.ask(calls, 1);
        logged.links.iter().for_each(Link::restore);
        let refused = asking.await.unwrap();
        println!("{refused} of {calls} calls were refused");
        logged.assert_only_periodic_statements(before, begun);
    }
}
