//! Clients drop their calls at random moments. Each request must then have been carried out
//! completely or not at all.

use std::time::Duration;

use countersign::proto::{
    CreateSessionRequest, RefreshRequest, RevokeRequest, SubjectTarget, revoke_request::Target,
};
use countersign_test_support::{
    ledger::{Client, Dice, refresh},
    postgres_server::{new_database, number},
};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::replicas::{Cluster, dice, in_time};

/// The number of concurrent clients.
const CALLERS: usize = 16;
/// The number of calls of each kind that each client tries to drop.
const EACH: usize = 20;

/// A client that drops calls.
struct Caller {
    client: Client,
    dice: Dice,
    /// The time that the last call to CreateSession took.
    usual: Duration,
    dropped: usize,
    answered: usize,
}

impl Caller {
    /// Makes a call and drops it after a random time of up to twice `usual`. So some calls are
    /// answered before they are dropped, however fast the machine is.
    async fn drop_call<T>(&mut self, call: impl AsyncFnOnce(&mut Client) -> Result<T, Status>) {
        let moment = self.usual * self.dice.roll(200).try_into().unwrap() / 100;
        match timeout(moment, call(&mut self.client)).await {
            Ok(answer) => {
                answer.unwrap();
                self.answered += 1;
            }
            Err(_) => self.dropped += 1,
        }
    }

    async fn create(&mut self, request: &CreateSessionRequest) -> (String, String) {
        let started = Instant::now();
        let tokens =
            self.client.create_session(request.clone()).await.unwrap().into_inner().tokens.unwrap();
        self.usual = started.elapsed();
        (tokens.access_token, tokens.refresh_token)
    }

    /// Creates three sessions of a subject and revokes them together.
    async fn revoke_subject(&mut self, name: &str) {
        let subject = format!("whole {name}");
        let request = CreateSessionRequest { subject: subject.clone(), ..Default::default() };
        for _ in 0..3 {
            self.create(&request).await;
        }
        let target = Target::Subject(SubjectTarget { subject, ..Default::default() });
        self.drop_call(async |client| client.revoke(revocation(target)).await).await;
    }

    /// Creates a session and revokes it by one of its tokens.
    async fn revoke_session(&mut self, name: &str) {
        let request = CreateSessionRequest { subject: format!("one {name}"), ..Default::default() };
        let (access, refresh) = self.create(&request).await;
        let token = if self.dice.roll(2) == 0 { access } else { refresh };
        self.drop_call(async |client| client.revoke(revocation(Target::Token(token))).await).await;
    }

    /// Creates as many sessions of a subject as its quota allows, and one more, which evicts the
    /// oldest.
    async fn evict(&mut self, name: &str) {
        let (subject, policy) = (format!("two {name}"), "two".to_owned());
        let request = CreateSessionRequest { subject, policy, ..Default::default() };
        for _ in 0..2 {
            self.create(&request).await;
        }
        self.drop_call(async |client| client.create_session(request).await).await;
    }

    /// Creates a session whose policy revokes the access token on refresh, and refreshes it twice
    /// with the same refresh token. Only the first of the two calls may be dropped.
    async fn refresh(&mut self, name: &str) {
        let (subject, policy) = (format!("strict {name}"), "strict".to_owned());
        let (_, refresh_token) =
            self.create(&CreateSessionRequest { subject, policy, ..Default::default() }).await;
        let request = RefreshRequest { refresh_token: refresh_token.clone(), ..Default::default() };
        self.drop_call(async |client| client.refresh(request).await).await;
        refresh(&mut self.client, &refresh_token).await.unwrap();
    }

    async fn run(mut self, caller: usize) -> (usize, usize) {
        for round in 0..EACH {
            let name = format!("{caller}/{round}");
            self.revoke_subject(&name).await;
            self.revoke_session(&name).await;
            self.evict(&name).await;
            self.refresh(&name).await;
        }
        (self.dropped, self.answered)
    }
}

fn revocation(target: Target) -> RevokeRequest {
    RevokeRequest { target: Some(target), ..Default::default() }
}

/// Counts the subjects of a kind that satisfy `condition`, an SQL expression in which `n` is the
/// number of the subject's sessions, and `live` the number of those that have not ended.
async fn subjects(cluster: &Cluster, kind: &str, condition: &str) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM (SELECT count(*) AS n, count(*) FILTER (WHERE ended_at IS NULL) AS \
         live FROM sessions WHERE subject LIKE '{kind} %' GROUP BY subject) AS subjects WHERE \
         {condition}"
    );
    number(&cluster.url, &sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_its_client_drops_is_carried_out_completely_or_not_at_all() {
    let url = new_database().await;
    let policies = [
        ("COUNTERSIGN_POLICIES__TWO__MAX_SESSIONS_PER_SUBJECT", "2"),
        ("COUNTERSIGN_POLICIES__STRICT__ON_REFRESH", "revoke_access_token"),
    ];
    let cluster = Cluster::start_by([url.as_str(); 3], &url, &policies).await;
    let mut dice = dice();
    let mut callers = vec![];
    for n in 0..CALLERS {
        let dice = Dice(dice.roll(usize::MAX).try_into().unwrap());
        let client = cluster.replicas[n % 3].sessions().await;
        callers.push(tokio::spawn(
            Caller { client, dice, usual: Duration::ZERO, dropped: 0, answered: 0 }.run(n),
        ));
    }
    let (mut dropped, mut answered) = (0, 0);
    for caller in in_time("all callers come to an end", join_all(callers)).await {
        let (some, others) = caller.unwrap();
        dropped += some;
        answered += others;
    }
    println!("{dropped} calls dropped, {answered} answered before");
    assert!(dropped > CALLERS * EACH && answered > 0);

    cluster.rest().await;
    cluster.assert_consistent().await;
    let each = i64::try_from(CALLERS * EACH).unwrap();
    let (all, none) = (
        subjects(&cluster, "whole", "live = 0").await,
        subjects(&cluster, "whole", "live = 3").await,
    );
    println!("of {each} subjects {all} were revoked and {none} were not");
    assert_eq!(all + none, each, "some sessions of a subject are revoked and others are not");
    let (evicted, not) =
        (subjects(&cluster, "two", "n = 3").await, subjects(&cluster, "two", "n = 2").await);
    println!(
        "{evicted} of {each} subjects have a new session in the place of the oldest, {not} do not"
    );
    assert_eq!(evicted + not, each);
    assert_eq!(
        subjects(&cluster, "two", "live <> 2").await,
        0,
        "a session was evicted and none created, or the reverse"
    );
    let unpaired = "SELECT count(*) FROM sessions AS s WHERE policy = 'strict' AND (generation, \
                    1) <> (2, (SELECT count(*) FROM blacklist AS b WHERE b.kind = 'token' AND \
                    b.session_id = s.id))";
    assert_eq!(
        number(&url, unpaired).await,
        0,
        "a session was not rotated exactly once with one blacklist entry"
    );
}
